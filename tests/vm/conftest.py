# SPDX-License-Identifier: Apache-2.0
"""
Boots the guests that the tests of this folder ask for, a few at a time.
"""

from __future__ import annotations

import compileall
import os
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from tests.support import bpfcc, churn, connections, libbpfs, stacked
from tests.vm import boot, fetch, kernels, verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Run in the guest when KPROBE_MODULES_VM_TESTS does not say otherwise: what another kernel
#: may answer otherwise.  Emulation is slow, and the rest of tests/bpf runs on the host's kernel.
TESTS = (
    # A replay does the same after each kernel; captures from all of them are in tests/unit.
    "tests/kernel --ignore tests/kernel/test_containers_capture.py "
    "tests/bpf/test_processes_object.py tests/bpf/test_containers_object.py "
    "tests/bpf/test_nat_object.py tests/bpf/test_tcp_object.py tests/bpf/test_udp_object.py "
    "tests/bpf/test_libbpf_attach.py tests/bpf/test_features.py tests/bpf/test_collector_order.py"
)
#: Seconds for one guest, its boot included.
TIMEOUT = 2400.0


@attrs.frozen
class Run:
    """
    One guest's run of the tests.
    """

    kernel: kernels.Kernel
    image: fetch.Image
    outcome: boot.Outcome
    verdict: verdict.Verdict
    splats: tuple[str, ...]


class Guests:
    """
    Every chosen kernel's run; the first that is asked for starts them all.
    """

    def __init__(self, chosen: list[str], folder: Path) -> None:
        self._chosen = chosen
        self._folder = folder
        at_a_time = int(os.environ.get("KPROBE_MODULES_VM_PARALLEL", "1"))
        self._pool = ThreadPoolExecutor(at_a_time, thread_name_prefix="guest")
        self._runs: dict[str, Future[Run]] = {}

    def result(self, name: str) -> Run:
        """
        Wait for the run of the kernel called ``name``; raise what it raised.
        """
        if not self._runs:
            _compile()
        for chosen in self._chosen:
            if chosen not in self._runs:
                self._runs[chosen] = self._pool.submit(self._run, kernels.find(chosen))
        return self._runs[name].result()

    def finished(self) -> Iterator[tuple[str, Run]]:
        """
        Yield the runs that came to an end.
        """
        for name, future in self._runs.items():
            if future.done() and future.exception() is None:
                yield name, future.result()

    def close(self) -> None:
        """
        Let running guests end and start no more.
        """
        self._pool.shutdown(cancel_futures=True)

    def _run(self, kernel: kernels.Kernel) -> Run:
        share = self._folder / kernel.name
        share.mkdir(parents=True, exist_ok=True)
        report = share / "junit.xml"
        report.unlink(missing_ok=True)
        image = fetch.fetch(kernel)
        outcome = boot.run(
            image,
            inner(report),
            share=share,
            timeout=float(os.environ.get("KPROBE_MODULES_VM_TIMEOUT", TIMEOUT)),
        )
        try:
            read = verdict.read(report)
        except ValueError as error:
            tail = "\n".join(outcome.output.splitlines()[-60:])
            msg = f"{error}; exit status {outcome.status}; the end of what it printed:\n{tail}"
            raise boot.BootError(msg) from error
        return Run(kernel, image, outcome, read, tuple(verdict.splats(outcome.dmesg)))


def _compile() -> None:
    """
    Compile what guests would: emulated, it takes them long, and they can't keep it.
    """
    for folder in ("src", "modules", "rings", "tests"):
        compileall.compile_dir(boot.ROOT / folder, quiet=2)
    churn.build()
    connections.build()
    bpfcc.compile_bpf(libbpfs.OBJECTS / "selftest.c")
    bpfcc.compile_bpf(libbpfs.OBJECTS / "refused.c")
    with tempfile.TemporaryDirectory() as folder:
        stacked.build(Path(folder))


def inner(report: Path) -> str:
    """
    Return the guest's command: pytest of this very environment, on the tests that need a kernel.
    """
    tests = os.environ.get("KPROBE_MODULES_VM_TESTS") or TESTS
    python = boot.python()
    # Its plugin imports all of Hypothesis, which pytest compiles anew in every guest: half a minute
    # for what no test uses there.
    without = "-p no:cacheprovider -p no:hypothesispytest"
    return (
        f"{python} -m pytest {without} -o faulthandler_timeout=900 --timeout=900 "
        f"--durations=10 --junitxml={report} {tests}"
    )


def pytest_configure(config: pytest.Config) -> None:
    """
    Choose kernels by ``KPROBE_MODULES_KERNELS``: names with blanks or commas between, or all.
    """
    config.stash[GUESTS] = Guests(chosen(), config.rootpath / "build" / "vm")


def chosen() -> list[str]:
    """
    Return the names of the kernels to run on.
    """
    wanted = os.environ.get("KPROBE_MODULES_KERNELS", "").replace(",", " ").split()
    return [kernels.find(name).name for name in wanted] or [
        kernel.name for kernel in kernels.KERNELS
    ]


def pytest_unconfigure(config: pytest.Config) -> None:
    """
    Leave no guest behind.
    """
    config.stash[GUESTS].close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """
    One test per chosen kernel.
    """
    if "kernel" in metafunc.fixturenames:
        metafunc.parametrize("kernel", chosen())


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """
    Say what each guest counted; its own report has only one line per kernel otherwise.
    """
    runs = list(config.stash[GUESTS].finished())
    if not runs:
        return
    terminalreporter.section("guests")
    for name, run in runs:
        terminalreporter.write_line(
            f"{name:5} {run.image.release:24} {run.verdict} in {run.outcome.seconds:.0f} s"
        )
        for left_out in run.verdict.skipped:
            terminalreporter.write_line(f"      skipped {left_out.test}: {left_out.text.strip()}")


@pytest.fixture
def guests(request: pytest.FixtureRequest) -> Guests:
    """
    The guests of this session.
    """
    return request.config.stash[GUESTS]


GUESTS = pytest.StashKey[Guests]()
