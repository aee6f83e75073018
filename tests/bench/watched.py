# SPDX-License-Identifier: Apache-2.0
"""
A loop with and without each of several watchers, and what BPF programs of ours cost under it.

Loop times are taken with the kernel's statistics off, because these cost some
tens of nanoseconds a run themselves; programs are measured in a run of their own.
What is lost costs less than what is told, so that nothing may be: between two loops
a watcher is given the time to say what it has seen.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from kprobe_modules.collector import Collector
from kprobe_modules.libbpf import ids, program
from tests.bench.figures import Figure, Missing, ratios
from tests.bench.rounds import WrongContentsError
from tests.bench.schedule import PRODUCER_CPU, scheduled
from tests.bench.startup import running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from kprobe_modules.libbpf.program import ProgramInfo
    from tests.bench.effort import Effort

    Watcher = Callable[[], AbstractContextManager[Path]]
    """Runs meanwhile, and writes to that file."""

__all__ = ["KPROBES", "Loop", "Peer", "bcc_lacks", "headers_lack", "programs", "runs", "slowdowns"]

KPROBES = Path("/sys/bus/event_source/devices/kprobe/type")

CATCH_UP_DEADLINE = 120.0
"""Python writes some ten thousand records a second, where it has a processor."""

PATIENCE = 10.0
"""How long to wait for a single turn before another one is run."""

START_DEADLINE = 600.0
"""bcc compiles its program first; in an emulated guest that takes minutes."""


@attrs.frozen
class Loop:
    """
    A program that prints how many nanoseconds it has taken for so many turns.
    """

    name: str
    command: list[str]
    count: int
    """Turns, of what it prints the time of."""

    def run(self) -> float:
        """
        Microseconds per turn.
        """
        with scheduled(PRODUCER_CPU):
            done = subprocess.run(self.command, stdout=subprocess.PIPE, text=True, check=True)
        return int(done.stdout) / self.count / 1000


@attrs.frozen
class Peer:
    """
    A tool that watches as a module of ours does.
    """

    name: str
    path: Path
    heading: str
    """What it prints once it is attached."""
    lacks: str = ""
    """What it needs of this kernel and does not find; empty if nothing."""

    @property
    def missing(self) -> str:
        """
        Why it cannot run here; empty if it can.
        """
        if self.lacks or (self.path.exists() and shutil.which("unshare")):
            return self.lacks
        return f"needs {self.path}"


@contextmanager
def _peer(peer: Peer, scratch: Path) -> Iterator[Path]:
    """
    Run a peer until it has printed its heading, which it does once attached.
    """
    path = scratch / f"{peer.name}.txt"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # The guest's and this machine's tracefs may not be mounted; a private mount
    # namespace leaves the host as it is.
    mount = "mountpoint -q /sys/kernel/tracing || mount -t tracefs none /sys/kernel/tracing;"
    command = ["stdbuf", "-oL", str(peer.path)]
    shell = ["unshare", "-m", "sh", "-c", f'{mount} exec "$@"', "sh", *command]
    with path.open("wb") as output:
        process = subprocess.Popen(shell, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_DEADLINE
        while peer.heading.encode() not in path.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                msg = f"{peer.path}: {path.read_text(errors='replace')[-500:]}"
                raise RuntimeError(msg)
            time.sleep(0.05)
        yield path
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _ours(scratch: Path, name: str, arguments: Sequence[str]) -> Iterator[Path]:
    """
    Run the command with modules and further *arguments*.

    Raises:
        WrongContentsError: it has lost something.
    """
    with running(scratch, name, arguments):
        yield scratch / f"{name}.json"
    errors = (scratch / f"{name}.stderr").read_text(errors="replace")
    totals = next(line for line in errors.splitlines() if " emitted, " in line)
    if ", 0 lost," not in totals:
        raise WrongContentsError(totals)


def _watch_once(loop: Loop, path: Path) -> float:
    """
    Run a loop under the watcher that writes to *path*, and wait until it has caught up.
    """
    before = path.stat().st_size
    took = loop.run()
    deadline = time.monotonic() + CATCH_UP_DEADLINE
    while not _tells_of_one_more(loop, path, before):
        if time.monotonic() > deadline:
            msg = f"{path} does not tell of what has happened"
            raise RuntimeError(msg)
    return took


def _tells_of_one_more(loop: Loop, path: Path, since: int) -> bool:
    """
    Run a single turn, and tell whether it is heard of soon; it may have been lost.

    What watchers say is in order, and has the process: so all else was said before.
    """
    with subprocess.Popen([loop.command[0], "1"], stdout=subprocess.DEVNULL) as last:
        pass
    last_pid = re.compile(rb"\b%d\b" % last.pid)
    patience = time.monotonic() + PATIENCE
    while time.monotonic() < patience:
        if last_pid.search(path.read_bytes()[since:]):
            return True
        time.sleep(0.1)
    return False


def bcc_lacks() -> str:
    """
    What bcc needs of this kernel and does not find; empty if nothing.
    """
    return headers_lack() if KPROBES.exists() else "needs kprobes"


def headers_lack() -> str:
    """
    What bcc needs where a tool of it attaches no kprobes; empty if it is there.
    """
    build = Path("/lib/modules") / os.uname().release / "build"
    if "BCC_KERNEL_SOURCE" not in os.environ and not build.exists():
        return f"needs the headers of Linux {os.uname().release}"
    return ""


def slowdowns(
    loop: Loop, ours: Mapping[str, Sequence[str]], peers: Sequence[Peer], effort: Effort
) -> list[Figure | Missing]:
    """
    Loop time with each watcher over the median of the loops before and after it.

    Args:
        ours: what to put behind the name of a figure, to modules (with commas) and further
            arguments of the command.

    Raises:
        WrongContentsError: a module has lost something.
    """
    watchers: dict[str, Watcher] = {
        suffix: partial(_ours, effort.scratch, f"{loop.name}{suffix}", arguments)
        for suffix, arguments in ours.items()
    }
    for peer in peers:
        if not peer.missing:
            watchers[f"_{peer.name}"] = partial(_peer, peer, effort.scratch)
    watched: dict[str, list[float]] = {name: [] for name in watchers}
    alone: dict[str, list[float]] = {name: [] for name in watchers}
    each = -(-effort.rounds // effort.starts)
    loop.run()
    for start in range(effort.starts):
        before = [loop.run() for _ in range(each)]
        for name, make in watchers.items():
            with make() as path:
                watched[name] += [_watch_once(loop, path) for _ in range(each)]
            after = [loop.run() for _ in range(each)]
            alone[name] += [statistics.median(before + after)] * each
            before = after
        effort.progress(f"{loop.name}: start {start + 1} of {effort.starts}")
    figures: list[Figure | Missing] = [
        Figure(f"{loop.name}_slowdown{name}", ratios(times, alone[name]), "x")
        for name, times in watched.items()
    ]
    figures.append(
        Figure(f"{loop.name}_us", alone[next(iter(ours))], "us", note="unwatched, per loop")
    )
    figures += [
        Missing(f"{loop.name}_slowdown_{peer.name}", peer.missing) for peer in peers if peer.missing
    ]
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


def runs(loop: Loop, collector: Collector, known: set[int]) -> dict[str, tuple[int, int]]:
    """
    Run the loop, and return nanoseconds and runs of each program that is not among *known* and ran.
    """
    before = {info.name: info for info in _run_infos(known)}
    with program.enable_stats():
        _run_while_polling(loop, collector)
    found = {}
    for info in _run_infos(known):
        old = before.get(info.name)
        times = info.run_cnt - (old.run_cnt if old else 0)
        if times:
            found[info.name] = info.run_time_ns - (old.run_time_ns if old else 0), times
    _refuse_loss(collector)
    return found


def _refuse_loss(collector: Collector) -> None:
    """
    Raises:
        WrongContentsError: a module has lost something.
    """
    for name, module in collector.stats().modules.items():
        if module["lost"]:
            msg = f"{name}: {module['lost']} lost"
            raise WrongContentsError(msg)


def programs(loop: Loop, modules: Sequence[str], effort: Effort) -> list[Figure | Missing]:
    """
    Nanoseconds per run of each program of *modules*, under the loop, and memory of their maps.
    """
    known = set(ids.program_ids())
    spent: dict[str, list[float]] = {}
    total: dict[str, int] = {}
    with Collector(modules) as collector:
        for _ in range(effort.rounds):
            for name, (took, times) in runs(loop, collector, known).items():
                spent.setdefault(name, []).append(took / times)
                total[name] = total.get(name, 0) + times
        memory = {each.module: each.memory for each in collector.metrics()}
    return [
        *(
            Figure(f"program_{name}_ns", values, "ns", note=f"{total[name]} runs")
            for name, values in sorted(spent.items())
        ),
        *(
            Figure(f"{name}_kib", [memory[name] / 1024], "KiB", note="programs and maps")
            for name in modules
        ),
    ]


def _run_while_polling(loop: Loop, collector: Collector) -> None:
    with scheduled(PRODUCER_CPU):
        process = subprocess.Popen(loop.command, stdout=subprocess.DEVNULL)
    with process:
        while process.poll() is None:
            collector.poll(timeout=0.1)
    collector.flush()
