# SPDX-License-Identifier: Apache-2.0
"""
The processes module against the truth, on whatever kernel this runs on.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kprobe_modules.modules.processes import MODULE
from kprobe_modules.modules.processes.records import (
    ProcessExecuted,
    ProcessExited,
    ProcessMoved,
    ProcessRenamed,
    ProcessStarted,
    ThreadExited,
)

from kprobe_modules import Collector
from kprobe_modules.features import Features
from kprobe_modules.objectfile import read
from tests.support.cgroups import own_cgroup_id
from tests.support.churn import Process, churn_command, read_truth
from tests.support.requirements import needs
from tests.support.watch import by_pid, record_until, record_workload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kprobe_modules import Record

TICK = 10_000_000
"""Nanoseconds per tick of /proc/PID/stat: USER_HZ is 100 everywhere."""

MANY_THREADS = ("threads", "leader_first", "exec_thread")

LATE_ENDS = ("do_notify_parent", "cgroup_exit", "cgroup_task_exit")
"""Hook functions that run after a process has closed its files."""


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    needs.root()


def of(records: Sequence[Record], kind: type[Any]) -> list[Any]:
    return [record for record in records if isinstance(record, kind)]


def check_one(truth: Process, records: Sequence[Record], *, execs: bool = True) -> None:
    """
    Compare all that was recorded of one process with what the workload did.
    """
    started, exited = of(records, ProcessStarted), of(records, ProcessExited)

    assert len(started) == 1, f"{truth}: started {len(started)} times"
    assert len(exited) == 1, f"{truth}: exited {len(exited)} times"
    start, end = started[0], exited[0]
    assert records[0] is start, f"{truth}: {records[0]} came first"
    assert records[-1] is end, f"{truth}: {records[-1]} came last"
    assert [record.time for record in records] == sorted(record.time for record in records)
    assert (end.exit_code, end.signal) == (truth.exit_code, truth.signal), truth
    assert start.parent_pid == truth.parent_pid
    assert not start.existing
    assert {record.start_time for record in records} == {start.start_time}  # type: ignore[attr-defined]
    assert start.start_time // TICK == truth.ticks, truth
    assert 0 < end.duration <= truth.died - truth.born
    assert {start.uid, end.uid} == {os.getuid()}
    assert start.comm == "churn"
    if execs:
        check_execs(truth, records)
    renames = of(records, ProcessRenamed)
    expected = [("churn", truth.renamed)] if truth.renamed else []
    assert [(item.old_comm, item.comm) for item in renames] == expected, truth
    assert end.comm == (truth.renamed or "churn")


def check_execs(truth: Process, records: Sequence[Record]) -> None:
    executed = of(records, ProcessExecuted)

    assert [item.argv for item in executed] == truth.execs, truth
    for item in executed:
        assert Path(item.executable).name == "churn"
        assert item.comm == "churn"
        assert not item.argv_truncated


def test_every_process_exactly_once() -> None:
    with Collector(["processes"]) as collector:
        records, output = record_workload(collector, churn_command(1009))
        stats = collector.stats().modules["processes"]
        files_closed = collector.status("processes").live["end"].endswith(LATE_ENDS)
    truth = read_truth(output)
    found = by_pid(records, (process.pid for process in truth))

    assert len(truth) == 1009
    for process in truth:
        check_one(process, found[process.pid])
    ends = [item for process in truth for item in of(found[process.pid], ProcessExited)]
    assert {item.files_closed for item in ends} == {files_closed}
    assert {item.cgroup_id for item in ends} == {own_cgroup_id()}
    assert stats["lost"] == stats["errors"] == 0
    # A virtual CPU may be taken away between a program's time stamp and its output.
    assert stats["late"] <= 5
    assert stats["emitted"] == stats["received"]


REAPED_NS = 500_000_000
"""How long a zombie may have waited for the workload to reap it, on a busy machine."""


def test_attach_in_the_middle() -> None:
    command = churn_command(1009, 200)
    with Collector() as collector, subprocess.Popen(command, stdout=subprocess.PIPE) as run:
        time.sleep(0.2)
        before = time.monotonic_ns()
        collector.attach("processes")
        after = time.monotonic_ns()
        assert run.stdout is not None
        assert run.poll() is None, "the workload ended before the module was attached"
        fd = run.stdout.fileno()
        os.set_blocking(fd, False)
        output = bytearray()

        def done() -> bool:
            try:
                chunk = os.read(fd, 1 << 16)
            except BlockingIOError:
                return False
            output.extend(chunk)
            return not chunk

        records = record_until(collector, done)
    truth = read_truth(output.decode())
    found = by_pid(records, (process.pid for process in truth))

    late = 0
    for process in truth:
        seen = found[process.pid]
        started, exited = of(seen, ProcessStarted), of(seen, ProcessExited)
        if process.died < before:
            assert not started, f"{process} had ended"
            continue
        assert len(started) == len(exited), process
        # When it died is not known to who reaps it: some are reaped late on purpose, and the
        # others when the workload gets to run again.
        waited = process.died > after + REAPED_NS and process.kind != "late_reap"
        if process.born > after or waited:
            assert len(started) == 1, f"{process}: started {len(started)} times"
            late += 1
        if started:
            assert seen[0] is started[0]
            assert (exited[0].exit_code, exited[0].signal) == (process.exit_code, process.signal)
            assert started[0].start_time // TICK == process.ticks
    assert 100 < late < 1009, f"attached too early or too late: {late} processes ended after"


def test_existing_processes_are_found_once() -> None:
    sleepers = [
        subprocess.Popen(
            [sys.executable, "-c", "input()", f"sleeper-{index}"], stdin=subprocess.PIPE
        )
        for index in range(13)
    ]
    try:
        time.sleep(0.5)
        before = all_pids()
        with Collector(["processes"]) as collector:
            records = collector.flush()
        after = all_pids()
        expected = {sleeper.pid: f"sleeper-{index}" for index, sleeper in enumerate(sleepers)}
        executable = str(Path(f"/proc/{sleepers[0].pid}/exe").readlink())
    finally:
        for sleeper in sleepers:
            sleeper.communicate(b"\n")
    started = of(records, ProcessStarted)
    times = Counter(item.pid for item in started)
    steady = [record for record in records if record.record == "steady"]

    assert {pid for pid, count in times.items() if count > 1} == set()
    missed = {item for item in before & after if item not in times}
    assert {item for item in missed if not is_zombie(item) and not is_hidden(item)} == set()
    for item in started:
        if item.pid in expected:
            assert item.existing
            assert item.argv[-1] == expected[item.pid]
            assert item.executable == executable
            assert item.cgroup_id == own_cgroup_id()
            assert item.parent_pid == os.getpid()
    assert len(steady) == 1
    assert steady[0].found == sum(item.existing for item in started)


def all_pids() -> set[int]:
    return {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()}


def is_zombie(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def is_hidden(pid: int) -> bool:
    """
    Tell whether the machine keeps a process even from root, as some sandboxes do their own.
    """
    try:
        Path(f"/proc/{pid}/exe").readlink()
    except PermissionError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def scratch_cgroup() -> Iterator[Path]:
    base = Path("/sys/fs/cgroup/memory")
    if not base.is_dir():
        base = Path("/sys/fs/cgroup")
    needs.that((base / "cgroup.procs").exists(), f"needs a cgroup hierarchy at {base}")
    folder = base / f"km-test-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        deadline = time.monotonic() + 10
        while True:
            try:
                folder.rmdir()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


def test_moves_between_cgroups() -> None:
    with scratch_cgroup() as cgroup, Collector(["processes"]) as collector:
        sleepers = [subprocess.Popen(["sleep", "60"]) for _ in range(7)]
        for sleeper in sleepers:
            (cgroup / "cgroup.procs").write_text(str(sleeper.pid))
        wanted, home = cgroup.stat().st_ino, own_cgroup_id()
        for sleeper in sleepers:
            sleeper.terminate()
            sleeper.wait()
        records = collector.flush()
    found = by_pid(records, (sleeper.pid for sleeper in sleepers))

    for sleeper in sleepers:
        seen = found[sleeper.pid]
        moves = of(seen, ProcessMoved)
        assert [item.cgroup_id for item in moves] == [wanted]
        assert moves[0].old_cgroup_id == home
        assert of(seen, ProcessStarted)[0].cgroup_id == home
        (end,) = of(seen, ProcessExited)
        assert (end.signal, end.cgroup_id) == (signal.SIGTERM, wanted)


def test_threads_on_request() -> None:
    with Collector() as collector:
        collector.attach("processes", thread_exits=1)
        records, output = record_workload(collector, churn_command(101))
    truth = read_truth(output)
    found = by_pid(records, (process.pid for process in truth))

    for process in truth:
        exits = of(found[process.pid], ThreadExited)
        expected = {"threads": 4, "leader_first": 2, "exec_thread": 2}.get(process.kind, 1)
        assert len(exits) == expected, process
        assert process.pid in {item.tid for item in exits}


def alternatives() -> list[tuple[str, str, str, str]]:
    spec = read(MODULE.object_bytes("x86_64"), "processes")
    return [
        (hook.name, item.name, spec.program(item.program).kind, spec.program(item.program).target)
        for hook in MODULE.hooks
        for item in hook.alternatives
    ]


ABSENT_SOMEWHERE = {
    "cgroup_exit": "renamed cgroup_task_exit in 6.19",
    "cgroup_task_exit": "called cgroup_exit before 6.19",
}


@pytest.mark.parametrize(("hook", "program", "kind", "target"), alternatives())
def test_each_alternative(hook: str, program: str, kind: str, target: str) -> None:
    features = Features()
    try:
        answer = features.program(kind, target)
        kprobes = bool(features.kprobes())
    finally:
        features.close()
    if not answer:
        reason = answer.reason
        allowed = target in ABSENT_SOMEWHERE or not kprobes
        assert allowed, f"{kind}/{target} should be on this kernel: {reason}"
        return
    with Collector(chosen={f"processes.{hook}": program}) as collector:
        collector.attach("processes", thread_exits=hook == "thread_exit")
        assert collector.status("processes").live[hook] == f"{kind}/{target}"
        existing = of(collector.flush(), ProcessStarted)
        records, output = record_workload(collector, churn_command(101))
    truth = read_truth(output)
    found = by_pid(records, (process.pid for process in truth))

    assert os.getpid() in {item.pid for item in existing}
    for process in truth:
        seen = [item for item in found[process.pid] if not isinstance(item, ThreadExited)]
        check_one(process, seen)
        if hook == "end":
            (end,) = of(seen, ProcessExited)
            if "cgroup" in target and process.kind in MANY_THREADS:
                # A sibling may still have been closing files, and then it does not claim so.
                continue
            assert end.files_closed == (target in LATE_ENDS)


def tool(name: str) -> str:
    path = shutil.which(name, path="/usr/sbin:/usr/bin")
    needs.that(path, f"needs Debian's {name} (package libbpf-tools)")
    assert path is not None
    return path


def observed(command: list[str], ready: str) -> tuple[subprocess.Popen[str], list[str]]:
    """
    Start an observer and wait until it has printed its heading.
    """
    observer = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert observer.stdout is not None
    heading = observer.stdout.readline()
    if ready not in heading:
        observer.kill()
        needs.unmet(f"{command[0]} does not run on this kernel: {heading.strip()}")
    return observer, [heading]


def test_agrees_with_execsnoop_and_exitsnoop() -> None:
    needs.kprobes()
    execs, _ = observed(["stdbuf", "-oL", tool("execsnoop")], "PCOMM")
    exits, _ = observed(["stdbuf", "-oL", tool("exitsnoop")], "PCOMM")
    with Collector(["processes"]) as collector:
        records, output = record_workload(collector, churn_command(211))
    time.sleep(2)
    lines = []
    for observer in (execs, exits):
        observer.send_signal(signal.SIGINT)
        lines.append(observer.communicate(timeout=60)[0].splitlines())
    truth = read_truth(output)
    pids = {process.pid for process in truth}
    ours_exec = Counter(item.pid for item in of(records, ProcessExecuted) if item.pid in pids)
    theirs_exec = Counter(
        int(line.split()[1])
        for line in lines[0]
        if " --of=" in line and int(line.split()[1]) in pids
    )
    # It files an exec under the thread that asked for it, which then takes its leader's id.
    by_thread = {process.pid for process in truth if process.kind == "exec_thread"}
    ours_exit = {
        item.pid: f"signal {item.signal}" if item.signal else f"code {item.exit_code}"
        for item in of(records, ProcessExited)
        if item.pid in pids
    }

    assert ours_exec == Counter({item.pid: len(item.execs) for item in truth if item.execs})
    assert {pid: count for pid, count in ours_exec.items() if pid not in by_thread} == {
        pid: count for pid, count in theirs_exec.items() if pid not in by_thread
    }
    assert ours_exit.keys() == pids
    # It reports each thread's own code; the process's is another if its leader went first.
    plain = {process.pid for process in truth if process.kind != "leader_first"}
    theirs_exit = exit_codes(lines[1], plain)
    assert theirs_exit.keys() == plain
    assert theirs_exit == {pid: ours_exit[pid] for pid in plain}


def exit_codes(lines: Sequence[str], pids: set[int]) -> dict[int, str]:
    """
    Parse exitsnoop: PCOMM PID PPID TID AGE(s) EXIT_CODE, code or signal; leaders only.
    """
    found = {}
    for line in lines:
        words = line.split()
        if len(words) < 6 or not words[1].isdecimal():
            continue
        pid, tid, what = int(words[1]), int(words[3]), words[5:]
        if pid in pids and pid == tid:
            if what[0] == "signal":
                found[pid] = f"signal {what[1]}"
            else:
                found[pid] = f"code {what[-1] if what[0] == 'code' else what[0]}"
    return found
