# SPDX-License-Identifier: Apache-2.0
"""
What a user waits for, and what an idle collector holds.

Everything runs in fresh interpreters, as a user's would.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.figures import Figure, Missing, Target
from tests.bench.schedule import scheduled
from tests.bench.workshop import ROOT, system_python

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.bench.effort import Effort

__all__ = ["measure", "running"]

#: Times an import, and fails it if it opens what only the kernel offers.
IMPORT = """
import sys, time
touched = []
def watch(event, arguments):
    if event == "ctypes.dlopen" and "bpf" in str(arguments[0]):
        touched.append(str(arguments[0]))
    if event == "open" and str(arguments[0]).startswith(("/sys/", "/proc/")):
        touched.append(str(arguments[0]))
sys.addaudithook(watch)
before = time.perf_counter_ns()
{statement}
took = time.perf_counter_ns() - before
sys.exit(f"touched {{touched}}") if touched else print(took)
"""

RUN = ["-m", "kprobe_modules", "run", "-o", "json", "-m"]
"""The command, but for the modules and further arguments."""

DEADLINE = 600.0
"""Of a start that must succeed, in an emulated guest too."""


def environment(scratch: Path) -> dict[str, str]:
    """
    What an installed package has: compiled bytecode, even where ours may not be written.
    """
    ours = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**ours, "PYTHONPYCACHEPREFIX": str(scratch / "pycache")}


def import_ms(statement: str, scratch: Path) -> float:
    """
    Milliseconds of one import statement in an interpreter of its own.
    """
    with scheduled():
        done = subprocess.run(
            [sys.executable, "-c", IMPORT.format(statement=statement)],
            cwd=ROOT,
            env=environment(scratch),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        msg = f"{statement}: {done.stderr.strip()}"
        raise RuntimeError(msg)
    return int(done.stdout) / 1e6


def python_start_ms(python: list[str]) -> float:
    """
    Milliseconds of an interpreter that starts and ends: what no import can avoid.
    """
    with scheduled():
        started = time.monotonic_ns()
        subprocess.run([*python, "-c", ""], cwd=ROOT, check=True)
        return (time.monotonic_ns() - started) / 1e6


def first_record_ms(python: list[str], scratch: Path) -> float:
    """
    Milliseconds from starting the command to its first line of output.
    """
    with scheduled():
        started = time.monotonic_ns()
        process = subprocess.Popen(
            [*python, *RUN, "processes", "--max-records", "1"],
            cwd=ROOT,
            env=environment(scratch),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        took = time.monotonic_ns() - started
        errors = process.stderr.read()
    if not line.startswith(b"{"):
        msg = f"no record: {errors.decode().strip()}"
        raise RuntimeError(msg)
    return took / 1e6


@contextmanager
def running(scratch: Path, name: str, arguments: Sequence[str] = ("processes",)) -> Iterator[int]:
    """
    Run the command, its output in *scratch*; yield its pid once it is steady.
    """
    path, errors = scratch / f"{name}.json", scratch / f"{name}.stderr"
    with path.open("wb") as out, errors.open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, *RUN, *arguments],
            cwd=ROOT,
            env=environment(scratch),
            stdout=out,
            stderr=err,
        )
    try:
        deadline = time.monotonic() + DEADLINE
        while b'"steady"' not in path.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                msg = f"not steady: {errors.read_text(errors='replace').strip()}"
                raise RuntimeError(msg)
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def _resident_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    line = next(line for line in text.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle(seconds: float, scratch: Path) -> tuple[float, float]:
    """
    Resident MiB and CPU percent of a collector with nothing to do but its host's processes.
    """
    with running(scratch, "idle") as pid:
        time.sleep(seconds / 2)
        before = _cpu_seconds(pid)
        time.sleep(seconds)
        return _resident_mib(pid), 100 * (_cpu_seconds(pid) - before) / seconds


def measure(effort: Effort) -> list[Figure | Missing]:
    """
    Import, first record, and the idle collector.
    """
    # A user's Python is the distribution's, and a checkout's may be any build: the same
    # version starts in half the time, or in twice.
    python = system_python()
    bare: list[float] = []
    imports: list[float] = []
    collectors: list[float] = []
    firsts: list[float] = []
    own_firsts: list[float] = []
    everything = (bare, imports, collectors, firsts, own_firsts)
    residents: list[float] = []
    percents: list[float] = []
    for turn in range(effort.rounds + 1):
        values = (
            python_start_ms(python),
            import_ms("import kprobe_modules", effort.scratch),
            import_ms("from kprobe_modules import Collector", effort.scratch),
            first_record_ms(python, effort.scratch),
            first_record_ms([sys.executable], effort.scratch),
        )
        # The first round reads files that later ones find in memory.
        if turn:
            for series, value in zip(everything, values, strict=True):
                series.append(value)
        effort.progress(f"startup: round {turn} of {effort.rounds}")
    for _ in range(min(effort.rounds, 3)):
        resident, percent = idle(effort.seconds, effort.scratch)
        residents.append(resident)
        percents.append(percent)
    return [
        Figure("import_ms", imports, "ms", Target(at_most=60)),
        Figure("import_collector_ms", collectors, "ms"),
        Figure("first_record_ms", firsts, "ms", Target(at_most=150), note=f"by {python[-1]}"),
        Figure("first_record_checkout_ms", own_firsts, "ms", note=f"by {sys.executable}"),
        Figure("idle_rss_mib", residents, "MiB", Target(at_most=30)),
        Figure("idle_cpu_percent", percents, "%", note="follows what the host's processes do"),
        Figure("python_start_ms", bare, "ms", note="an interpreter that does nothing"),
    ]
