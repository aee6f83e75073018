# SPDX-License-Identifier: Apache-2.0
"""
The processes handler against any order of messages, with procfs as plain files.
"""
# ruff: noqa: PLR0913 - messages have many fields

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kprobe_modules.modules.processes.handler import ProcessesHandler
from kprobe_modules.modules.processes.procfs import (
    INITIAL_PID_NAMESPACE,
    NS_PER_TICK,
    Procfs,
    split_arguments,
)
from kprobe_modules.modules.processes.table import GRACE_COUNT, GRACE_NS, Process, ProcessTable

from kprobe_modules.api import Context
from kprobe_modules.suspects import CONFIRM_NS

TICK = NS_PER_TICK
SECOND = 1_000_000_000


class Proc:
    """
    A folder that looks like procfs to who reads it.
    """

    def __init__(self, root: Path, *, hosts: bool = True) -> None:
        self.root = root
        namespace = root / "1" / "ns"
        namespace.mkdir(parents=True)
        (namespace / "pid").symlink_to(INITIAL_PID_NAMESPACE if hosts else "pid:[4026532000]")

    def put(self, pid, start_time, comm="shell", argv=(), state="S", threads=1, status=0):
        folder = self.root / str(pid)
        folder.mkdir(exist_ok=True)
        fields = [
            state,
            *["0"] * 16,
            str(threads),
            "0",
            str(start_time // TICK),
            *["0"] * 29,
            str(status),
        ]
        (folder / "stat").write_text(f"{pid} ({comm}) {' '.join(fields)}\n")
        (folder / "cmdline").write_bytes(b"".join(item.encode() + b"\0" for item in argv))
        (folder / "exe").unlink(missing_ok=True)
        (folder / "exe").symlink_to(f"/bin/{comm}")

    def remove(self, pid):
        for path in (self.root / str(pid)).iterdir():
            path.unlink()
        (self.root / str(pid)).rmdir()


def make_handler(root: Path) -> tuple[ProcessesHandler, ProcessTable]:
    offers: dict[str, object] = {}

    def refuse(*_: object) -> object:
        raise AssertionError

    context = Context(
        name="processes",
        tunables={"thread_exits": 0},
        proc_root=root,
        provide=offers.__setitem__,
        find=offers.get,
        data=refuse,
        live={},
        map=refuse,
        program_fd=refuse,
    )
    handler = ProcessesHandler(context)
    table = offers["process_table"]
    assert isinstance(table, ProcessTable)
    return handler, table


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


@pytest.fixture
def made(proc: Proc) -> tuple[ProcessesHandler, ProcessTable]:
    return make_handler(proc.root)


@pytest.fixture
def handler(made) -> ProcessesHandler:
    return made[0]


@pytest.fixture
def table(made) -> ProcessTable:
    return made[1]


def comm(name: str) -> bytes:
    return name.encode().ljust(16, b"\0")


def info(handler, time, pid, start_time, *, parent=1, name="shell", existing=0, kernel=0):
    return list(
        handler.on_pid_info(time, pid, start_time, parent, 1000, comm(name), 77, existing, kernel)
        or ()
    )


def execute(handler, time, pid, start_time, args=b"/bin/ls\0ls\0-l\0", *, name="ls", truncated=0):
    return list(
        handler.on_pid_exec(time, pid, start_time, 1, 1000, comm(name), 77, truncated, args)
    )


def rename(handler, time, pid, start_time, old, new):
    return list(handler.on_pid_set_comm(time, pid, start_time, 1, 1000, comm(old), comm(new), 77))


def move(handler, time, pid, start_time, cgroup):
    return list(
        handler.on_cgroup_attach_task(time, pid, start_time, 1, 1000, comm("shell"), cgroup)
    )


def close(handler, time, pid, start_time, status=0):
    return list(
        handler.on_pid_close(time, pid, start_time, 1, 1000, comm("shell"), 77, status, 5, 1, 0)
    )


def kinds(records):
    return [record.record for record in records]


def test_a_whole_life(handler, table):
    records = [
        *info(handler, 1, 10, 100),
        *execute(handler, 2, 10, 100),
        *rename(handler, 3, 10, 100, "ls", "other"),
        *move(handler, 4, 10, 100, 88),
        *close(handler, 5, 10, 100, 3 << 8),
    ]

    assert kinds(records) == [
        "process_started",
        "process_executed",
        "process_renamed",
        "process_moved",
        "process_exited",
    ]
    started, executed, renamed, moved, exited = records
    assert (started.existing, started.comm, started.uid) == (False, "shell", 1000)
    assert (executed.argv, executed.executable) == (["ls", "-l"], "/bin/ls")
    assert (executed.old_comm, executed.comm) == ("shell", "ls")
    assert (renamed.old_comm, renamed.comm) == ("ls", "other")
    assert (moved.old_cgroup_id, moved.cgroup_id) == (77, 88)
    assert (exited.exit_code, exited.signal, exited.core_dumped) == (3, 0, False)
    assert (exited.argv, exited.executable) == (["ls", "-l"], "/bin/ls")
    assert (exited.duration, exited.files_closed) == (5, True)
    assert {record.module for record in records} == {"processes"}
    assert len(table) == 0


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (0, (0, 0, False)),
        (255 << 8, (255, 0, False)),
        (9, (0, 9, False)),
        (11 | 0x80, (0, 11, True)),
    ],
)
def test_wait_status(handler, status, expected):
    info(handler, 1, 10, 100)

    (exited,) = close(handler, 2, 10, 100, status)

    assert (exited.exit_code, exited.signal, exited.core_dumped) == expected


def test_a_second_start_of_the_same_process_is_dropped(handler):
    assert kinds(info(handler, 1, 10, 100)) == ["process_started"]
    assert info(handler, 2, 10, 100, existing=1) == []
    assert kinds(close(handler, 3, 10, 100)) == ["process_exited"]
    assert info(handler, 4, 10, 100, existing=1) == []
    assert close(handler, 5, 10, 100) == []


@pytest.mark.parametrize("first", [execute, close])
def test_whatever_comes_first_starts_the_process(handler, first):
    records = first(handler, 1, 10, 100)

    assert kinds(records)[0] == "process_started"
    assert records[0].existing
    assert len(records) == 2


def test_a_reused_pid_ends_the_process_before(handler, table):
    info(handler, 1, 10, 100)

    ended, started = info(handler, 2, 10, 200)

    assert kinds([ended, started]) == ["process_exited", "process_started"]
    assert (ended.start_time, ended.exit_code, ended.signal, ended.duration) == (
        100,
        None,
        None,
        None,
    )
    assert table.get(10).start_time == 200


def test_late_word_of_the_process_before_changes_nothing(handler, table):
    info(handler, 1, 10, 200)

    assert info(handler, 2, 10, 100) == []
    assert execute(handler, 2, 10, 100) == []
    assert close(handler, 3, 10, 100) == []
    assert table.alive(10).start_time == 200


def test_a_fork_has_its_parents_arguments_as_of_now(handler):
    info(handler, 1, 10, 100)
    execute(handler, 2, 10, 100, b"/bin/sh\0sh\0-c\0x\0", name="sh")
    (first,) = info(handler, 3, 11, 300, parent=10)
    execute(handler, 4, 10, 100)
    (second,) = info(handler, 5, 12, 300, parent=10)

    assert (first.argv, first.executable) == (["sh", "-c", "x"], "/bin/sh")
    assert second.argv == ["ls", "-l"]


def test_a_found_process_is_described_by_procfs(proc, handler):
    proc.put(10, 100 * TICK, comm="a) b (c", argv=("tool", "", "two words"))

    (started,) = info(handler, 1, 10, 100 * TICK + TICK // 2, existing=1)

    assert started.existing
    assert started.argv == ["tool", "", "two words"]
    assert started.executable == "/bin/a) b (c"


def test_procfs_of_another_process_with_that_pid_is_not_believed(proc, handler):
    proc.put(10, 100 * TICK, argv=("impostor",))

    (started,) = info(handler, 1, 10, 50 * TICK, existing=1)

    assert (started.argv, started.executable) == ([], "")


def test_kernel_threads_have_no_arguments(proc, handler):
    proc.put(10, 100 * TICK, argv=("no",))

    (started,) = info(handler, 1, 10, 100 * TICK, existing=1, kernel=1)

    assert started.kernel_thread
    assert started.argv == []


def test_strange_arguments(handler):
    info(handler, 1, 10, 100)

    (no_path,) = execute(handler, 2, 10, 100, b"", truncated=1)
    (no_arguments,) = execute(handler, 3, 10, 100, b"/bin/x\0")
    (cut,) = execute(handler, 4, 10, 100, b"/bin/x\0x\0\xff\xfecut", truncated=1)

    assert (no_path.argv, no_path.executable, no_path.argv_truncated) == ([], "", True)
    assert (no_arguments.argv, no_arguments.executable) == ([], "/bin/x")
    assert cut.argv == ["x", "��cut"]


def test_resync_ends_only_what_stays_away(proc, handler, table):
    for pid in (10, 11, 12, 13, 14):
        info(handler, 1, pid, 100 * TICK)
    proc.put(10, 100 * TICK)
    proc.put(11, 900 * TICK)
    proc.put(13, 100 * TICK, state="Z", status=4 << 8)
    proc.put(14, 100 * TICK, state="Z", threads=3)

    assert list(handler.steady(resync=True)) == []
    assert list(handler.tick(SECOND)) == []
    late = close(handler, SECOND, 12, 100 * TICK, 7 << 8)
    ended = {record.pid: record for record in handler.tick(SECOND + CONFIRM_NS)}

    assert late[0].exit_code == 7, "the end that was still in the ring counts"
    assert ended.keys() == {11, 13}
    assert (ended[11].exit_code, ended[11].signal) == (None, None)
    assert ended[13].exit_code == 4
    assert {process.pid for process in table} == {10, 14}
    assert list(handler.tick(SECOND + 2 * CONFIRM_NS)) == []


def test_resync_learns_what_was_renamed_meanwhile(proc, handler, table):
    info(handler, 1, 10, 100 * TICK)
    proc.put(10, 100 * TICK, comm="later", argv=("later", "1"))

    handler.steady(resync=True)

    assert (table.get(10).comm, table.get(10).argv) == ("later", ("later", "1"))


def test_another_namespaces_procfs_ends_nobody(tmp_path):
    proc = Proc(tmp_path, hosts=False)
    handler, table = make_handler(proc.root)
    info(handler, 1, 10, 100 * TICK)

    handler.steady(resync=True)
    handler.tick(SECOND)

    assert list(handler.tick(SECOND + CONFIRM_NS)) == []
    assert len(table) == 1


def test_the_dead_can_be_asked_for_a_while(handler, table):
    info(handler, SECOND, 10, 100)
    close(handler, SECOND, 10, 100)
    assert table.alive(10) is None
    assert table.get(10).ended == SECOND

    handler.tick(SECOND + GRACE_NS - 1)
    assert table.get(10) is not None
    handler.tick(SECOND + GRACE_NS)

    assert table.get(10) is None
    assert not table.has_ended(10, 100)


def test_the_table_is_bounded():
    table = ProcessTable()
    for index in range(GRACE_COUNT + 100):
        process = Process(index % 97, index, 1, 0, "x", 1)
        table.add(process)
        table.end(process, 1)

    assert len(table) == 0
    assert not table.has_ended(99 % 97, 99)
    assert table.has_ended((GRACE_COUNT + 99) % 97, GRACE_COUNT + 99)
    table.expire(GRACE_NS + 1)
    assert table.get(5) is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["info", "exec", "rename", "move", "close"]),
            st.integers(1, 3),
            st.integers(1, 3),
            st.binary(max_size=20),
        ),
        max_size=40,
    )
)
def test_any_sequence_gives_balanced_lives(messages):
    handler, table = make_handler(Path("/nonexistent"))
    records = []
    for time, (message, pid, start_time, raw) in enumerate(messages, 1):
        if message == "info":
            records += info(handler, time, pid, start_time)
        elif message == "exec":
            records += execute(handler, time, pid, start_time, raw)
        elif message == "rename":
            records += rename(handler, time, pid, start_time, "a", "b")
        elif message == "move":
            records += move(handler, time, pid, start_time, 9)
        else:
            records += close(handler, time, pid, start_time)

    lives: dict[tuple[int, int], list[str]] = {}
    for record in records:
        lives.setdefault((record.pid, record.start_time), []).append(record.record)
    for identity, life in lives.items():
        assert life[0] == "process_started"
        assert life.count("process_started") == 1
        assert life.count("process_exited") <= 1
        if "process_exited" in life:
            assert life[-1] == "process_exited"
        else:
            assert table.alive(identity[0]).start_time == identity[1]


def test_real_procfs_knows_this_process():
    procfs = Procfs(Path("/proc"))
    stat = procfs.stat(os.getpid())

    assert stat is not None
    assert not stat.is_over
    assert procfs.find(os.getpid(), stat.start_ticks * TICK) == stat
    assert procfs.find(os.getpid(), (stat.start_ticks + 100) * TICK) is None
    assert os.getpid() in procfs.pids()
    assert procfs.executable(os.getpid()) == str(Path("/proc/self/exe").readlink())
    raw = Path("/proc/self/cmdline").read_bytes()[:4096]
    assert procfs.arguments(os.getpid()) == split_arguments(raw)


def test_namespaces_are_told_apart(tmp_path):
    for name, ours, first in [
        ("host", True, True),
        ("hidden", True, False),
        ("mount", False, True),
    ]:
        for who, initial in [("self", ours), ("1", first)]:
            folder = tmp_path / name / who / "ns"
            folder.mkdir(parents=True)
            (folder / "pid").symlink_to(INITIAL_PID_NAMESPACE if initial else "pid:[4026532000]")
        assert Procfs(tmp_path / name).is_hosts(), name


def test_a_process_that_is_not_there():
    procfs = Procfs(Path("/nonexistent"))

    assert procfs.stat(1) is None
    assert procfs.arguments(1) == ()
    assert procfs.executable(1) == ""
    assert procfs.pids() == []
    assert not procfs.is_hosts()
