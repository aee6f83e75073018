# SPDX-License-Identifier: Apache-2.0
"""
A fork+exec loop with and without a watcher, and what each BPF program of ours cost.

Loop times are taken with the kernel's statistics off, because these cost some
tens of nanoseconds a run themselves; programs are measured in a run of their own.
bcc's execsnoop attaches kprobes, so it is compared only on kernels that have
them; that of libbpf-tools uses tracepoints and runs everywhere.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kprobe_modules.collector import Collector
from kprobe_modules.libbpf import ids, program
from tests.bench.figures import Figure, Missing, ratios
from tests.bench.schedule import PRODUCER_CPU, scheduled
from tests.bench.startup import running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from kprobe_modules.libbpf.program import ProgramInfo
    from tests.bench.effort import Effort
    from tests.bench.workshop import Workshop

    Watcher = Callable[[], AbstractContextManager[None]]

__all__ = ["measure"]

KPROBES = Path("/sys/bus/event_source/devices/kprobe/type")

BCC_EXECSNOOP = Path("/usr/sbin/execsnoop-bpfcc")
LIBBPF_EXECSNOOP = Path("/usr/sbin/execsnoop")

START_DEADLINE = 600.0
"""bcc compiles its program first; in an emulated guest that takes minutes."""


def churn(workshop: Workshop, count: int) -> float:
    """
    Microseconds per fork, exec and wait.
    """
    command = [str(workshop.churn()), str(count)]
    with scheduled(PRODUCER_CPU):
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout) / count / 1000


@contextmanager
def _snooping(command: list[str], scratch: Path) -> Iterator[None]:
    """
    Run an execsnoop until it has printed its heading, which it does once attached.
    """
    path = scratch / "execsnoop.txt"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # The guest's and this machine's tracefs may not be mounted; a private mount
    # namespace leaves the host as it is.
    mount = "mountpoint -q /sys/kernel/tracing || mount -t tracefs none /sys/kernel/tracing;"
    shell = ["unshare", "-m", "sh", "-c", f'{mount} exec "$@"', "sh", "stdbuf", "-oL", *command]
    with path.open("wb") as output:
        process = subprocess.Popen(shell, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_DEADLINE
        while b"PCOMM" not in path.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                msg = f"{command[0]}: {path.read_text(errors='replace')[-500:]}"
                raise RuntimeError(msg)
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _ours(scratch: Path) -> Iterator[None]:
    with running(scratch, "overhead"):
        yield


def _bcc_lacks() -> str:
    """
    What bcc needs of this kernel and does not find; empty if nothing.
    """
    if not KPROBES.exists():
        return "needs kprobes"
    build = Path("/lib/modules") / os.uname().release / "build"
    if "BCC_KERNEL_SOURCE" not in os.environ and not build.exists():
        return f"needs the headers of Linux {os.uname().release}"
    return ""


def _peers(
    scratch: Path,
) -> tuple[dict[str, Watcher], dict[str, str]]:
    """
    Which execsnoops can run here, and why not the others.
    """
    peers: dict[str, Watcher] = {}
    missing: dict[str, str] = {}
    for name, path, why in (
        ("execsnoop", BCC_EXECSNOOP, _bcc_lacks()),
        ("execsnoop_libbpf", LIBBPF_EXECSNOOP, ""),
    ):
        if why or not path.exists() or not shutil.which("unshare"):
            missing[name] = why or f"needs {path}"
        else:
            peers[name] = partial(_snooping, [str(path)], scratch)
    return peers, missing


def _loops(workshop: Workshop, effort: Effort, times: int) -> list[float]:
    return [churn(workshop, effort.loops) for _ in range(times)]


def slowdowns(workshop: Workshop, effort: Effort) -> list[Figure | Missing]:
    """
    Loop time with each watcher over the median of the loops before and after it.
    """
    peers, missing = _peers(effort.scratch)
    watchers: dict[str, Watcher] = {"": partial(_ours, effort.scratch)}
    watchers.update({f"_{name}": make for name, make in peers.items()})
    watched: dict[str, list[float]] = {name: [] for name in watchers}
    alone: dict[str, list[float]] = {name: [] for name in watchers}
    each = -(-effort.rounds // effort.starts)
    _loops(workshop, effort, 1)
    for start in range(effort.starts):
        before = _loops(workshop, effort, each)
        for name, make in watchers.items():
            with make():
                watched[name] += _loops(workshop, effort, each)
            after = _loops(workshop, effort, each)
            alone[name] += [statistics.median(before + after)] * each
            before = after
        effort.progress(f"overhead: start {start + 1} of {effort.starts}")
    figures: list[Figure | Missing] = [
        Figure(f"fork_exec_slowdown{name}", ratios(times, alone[name]), "x")
        for name, times in watched.items()
    ]
    figures.append(Figure("fork_exec_us", alone[""], "us", note="unwatched, per loop"))
    figures += [Missing(f"fork_exec_slowdown_{name}", why) for name, why in missing.items()]
    return figures


def _run_infos(known: set[int]) -> list[ProgramInfo]:
    """
    What the kernel counted of every program that is not among *known*.
    """
    infos = []
    for identity in set(ids.program_ids()) - known:
        descriptor = ids.open_program(identity)
        if descriptor is not None:
            infos.append(program.prog_info(descriptor))
            os.close(descriptor)
    return infos


def programs(
    workshop: Workshop, effort: Effort, module: str = "processes"
) -> list[Figure | Missing]:
    """
    Nanoseconds per run of each program of *module*, under the loop.
    """
    known = set(ids.program_ids())
    spent: dict[str, list[float]] = {}
    runs: dict[str, int] = {}
    with Collector() as collector:
        collector.attach(module)
        for _ in range(effort.rounds):
            before = {info.name: info for info in _run_infos(known)}
            with program.enable_stats():
                _churn_while_polling(workshop, collector, effort.loops)
            for info in _run_infos(known):
                old = before.get(info.name)
                times = info.run_cnt - (old.run_cnt if old else 0)
                if times:
                    took = info.run_time_ns - (old.run_time_ns if old else 0)
                    spent.setdefault(info.name, []).append(took / times)
                    runs[info.name] = runs.get(info.name, 0) + times
    return [
        Figure(f"program_{name}_ns", values, "ns", note=f"{runs[name]} runs")
        for name, values in sorted(spent.items())
    ]


def _churn_while_polling(workshop: Workshop, collector: Collector, count: int) -> None:
    command = [str(workshop.churn()), str(count)]
    with scheduled(PRODUCER_CPU):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    with process:
        while process.poll() is None:
            collector.poll(timeout=0.1)


def measure(workshop: Workshop, effort: Effort) -> list[Figure | Missing]:
    """
    Slowdowns, then the programs one by one.
    """
    return slowdowns(workshop, effort) + programs(workshop, effort)
