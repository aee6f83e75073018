# SPDX-License-Identifier: Apache-2.0
"""
From messages about processes to records, with the table that remembers between them.

What the messages promise is written in ``lifetime.h``: every process is announced
at least once and its end comes once, in that order.  The table turns "at least once"
into once, and when a ring was full and something is missing, it makes the sequence
whole again: whatever is heard first of a process starts it.
"""
# ruff: noqa: PLR0913, PLR0917 - a message method takes the fields of its message

from __future__ import annotations

from typing import TYPE_CHECKING

from kprobe_modules.modules.processes.procfs import Procfs, split_arguments
from kprobe_modules.modules.processes.records import (
    ProcessExecuted,
    ProcessExited,
    ProcessMoved,
    ProcessRenamed,
    ProcessStarted,
    ThreadExited,
)
from kprobe_modules.modules.processes.table import ALIVE_COUNT, Process, ProcessTable

from kprobe_modules.api import Handler, Suspects, text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kprobe_modules.api import Context, Record

__all__ = ["ProcessesHandler"]


def _exit_code(status: int) -> int:
    return status >> 8 & 0xFF


def _signal(status: int) -> int:
    return status & 0x7F


def _core_dumped(status: int) -> bool:
    return bool(status & 0x80)


class ProcessesHandler(Handler):
    """
    Handles the messages of ``messages.h``.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._table = ProcessTable()
        self._procfs = Procfs(context.proc_root, context.observe)
        self._suspects: Suspects[tuple[int, int]] = Suspects()
        """Processes that a resync did not find, and since when."""
        context.provide("process_table", self._table)

    # -- messages -----------------------------------------------------------

    def on_pid_info(
        self,
        time: int,
        pid: int,
        start_time: int,
        parent_pid: int,
        uid: int,
        comm: bytes,
        cgroup_id: int,
        existing: int,
        kernel_thread: int,
    ) -> Iterable[Record] | None:
        """
        Start a process, unless it is known already.
        """
        known = self._table.alive(pid)
        if known is not None and known.start_time >= start_time:
            return None
        if self._table.has_ended(pid, start_time):
            return None
        process = Process(pid, start_time, parent_pid, uid, text(comm), cgroup_id)
        process.kernel_thread = bool(kernel_thread)
        return self._start(time, process, existing=bool(existing))

    def on_pid_exec(
        self,
        time: int,
        pid: int,
        start_time: int,
        parent_pid: int,
        uid: int,
        comm: bytes,
        cgroup_id: int,
        truncated: int,
        args: bytes,
    ) -> Iterable[Record]:
        """
        Take what a process runs now.
        """
        process, before = self._known(time, pid, start_time, parent_pid, uid, comm, cgroup_id)
        if process is None:
            return ()
        path, _, arguments = args.partition(b"\0")
        old_comm = process.comm if not before else None
        process.comm = text(comm)
        process.executable = path.decode("utf-8", "replace")
        process.argv = split_arguments(arguments)
        process.kernel_thread = False
        executed = ProcessExecuted(
            time,
            pid,
            start_time,
            parent_pid,
            uid,
            process.comm,
            cgroup_id,
            list(process.argv),
            process.executable,
            old_comm,
            bool(truncated),
        )
        return (*before, executed)

    def on_pid_set_comm(
        self,
        time: int,
        pid: int,
        start_time: int,
        parent_pid: int,
        uid: int,
        old_comm: bytes,
        comm: bytes,
        cgroup_id: int,
    ) -> Iterable[Record]:
        """
        Rename a process.
        """
        process, before = self._known(time, pid, start_time, parent_pid, uid, old_comm, cgroup_id)
        if process is None:
            return ()
        process.comm = text(comm)
        renamed = ProcessRenamed(
            time, pid, start_time, parent_pid, uid, process.comm, cgroup_id, text(old_comm)
        )
        return (*before, renamed)

    def on_cgroup_attach_task(
        self,
        time: int,
        pid: int,
        start_time: int,
        parent_pid: int,
        uid: int,
        comm: bytes,
        cgroup_id: int,
    ) -> Iterable[Record]:
        """
        Move a process to another cgroup.
        """
        process, before = self._known(time, pid, start_time, parent_pid, uid, comm, cgroup_id)
        if process is None:
            return ()
        old_cgroup_id = process.cgroup_id if not before else None
        process.cgroup_id = cgroup_id
        moved = ProcessMoved(
            time, pid, start_time, parent_pid, uid, text(comm), cgroup_id, old_cgroup_id
        )
        return (*before, moved)

    def on_pid_exit(
        self,
        time: int,
        pid: int,
        tid: int,
        start_time: int,
        parent_pid: int,
        uid: int,
        comm: bytes,
        cgroup_id: int,
        status: int,
    ) -> Record:
        """
        Report the exit of a thread.
        """
        return ThreadExited(
            time,
            pid,
            start_time,
            parent_pid,
            uid,
            text(comm),
            cgroup_id,
            tid,
            _exit_code(status),
            _signal(status),
        )

    def on_pid_close(
        self,
        time: int,
        pid: int,
        start_time: int,
        parent_pid: int,
        uid: int,
        comm: bytes,
        cgroup_id: int,
        status: int,
        duration: int,
        files_closed: int,
        kernel_thread: int,
    ) -> Iterable[Record]:
        """
        End a process.
        """
        process, before = self._known(time, pid, start_time, parent_pid, uid, comm, cgroup_id)
        if process is None:
            return ()
        process.comm = text(comm)
        self._table.end(process, time)
        exited = ProcessExited(
            time,
            pid,
            start_time,
            parent_pid,
            uid,
            process.comm,
            cgroup_id,
            list(process.argv),
            process.executable,
            _exit_code(status),
            _signal(status),
            _core_dumped(status),
            duration,
            bool(files_closed),
            bool(kernel_thread),
        )
        return (*before, exited)

    # -- the table ----------------------------------------------------------

    def _known(
        self,
        time: int,
        pid: int,
        start_time: int,
        parent_pid: int,
        uid: int,
        comm: bytes,
        cgroup_id: int,
    ) -> tuple[Process | None, tuple[Record, ...]]:
        """
        Return the process of a message, started first if its start was lost.

        None when the message is about a process that has ended for us.
        """
        known = self._table.alive(pid)
        if known is not None:
            if known.start_time == start_time:
                return known, ()
            if known.start_time > start_time:
                return None, ()
        if self._table.has_ended(pid, start_time):
            return None, ()
        process = Process(pid, start_time, parent_pid, uid, text(comm), cgroup_id)
        return process, tuple(self._start(time, process, existing=True))

    def _start(self, time: int, process: Process, *, existing: bool) -> Iterable[Record]:
        """
        Enter a process, ending the one that had its pid before.
        """
        records: list[Record] = []
        previous = self._table.alive(process.pid)
        if previous is not None:
            records.append(self._end_unseen(time, previous))
        if not process.kernel_thread:
            self._learn_arguments(process, existing=existing)
        self._table.add(process)
        records.append(
            ProcessStarted(
                time,
                process.pid,
                process.start_time,
                process.parent_pid,
                process.uid,
                process.comm,
                process.cgroup_id,
                list(process.argv),
                process.executable,
                existing,
                process.kernel_thread,
            )
        )
        return records

    def _learn_arguments(self, process: Process, *, existing: bool) -> None:
        if not existing:
            # A fork runs what its parent runs, until it executes something.
            parent = self._table.alive(process.parent_pid)
            if parent is not None:
                process.argv, process.executable = parent.argv, parent.executable
                return
        if self._procfs.find(process.pid, process.start_time) is None:
            return
        arguments = self._procfs.arguments(process.pid)
        executable = self._procfs.executable(process.pid)
        # Asked again: the pid may have changed hands between the reads.
        if self._procfs.find(process.pid, process.start_time) is not None:
            process.argv, process.executable = arguments, executable

    def _end_unseen(self, time: int, process: Process, status: int | None = None) -> Record:
        """
        End a process whose end was missed.
        """
        self._table.end(process, time)
        return ProcessExited(
            time,
            process.pid,
            process.start_time,
            process.parent_pid,
            process.uid,
            process.comm,
            process.cgroup_id,
            list(process.argv),
            process.executable,
            exit_code=None if status is None else _exit_code(status),
            signal=None if status is None else _signal(status),
            core_dumped=status is not None and _core_dumped(status),
            duration=None,
            files_closed=False,
            kernel_thread=process.kernel_thread,
        )

    # -- the rest of a module's life ----------------------------------------

    def poke(self, hook: str) -> None:
        """
        Make the kernel look up every process.

        Reading ``/proc/<pid>/stat`` calls get_pid_task() in proc_single_show()
        on 5.10 to 7.3; a mere path lookup does so no more since 5.16.
        """
        del hook
        for pid in self._procfs.pids():
            self._procfs.stat(pid)

    def steady(self, *, resync: bool) -> Iterable[Record]:
        """
        After a loss, look for processes whose end was lost.
        """
        if resync and self._procfs.is_hosts():
            for process in self._table:
                self._compare(process)
        return ()

    def _compare(self, process: Process) -> None:
        """
        Compare a process with /proc; its end may still be under way.
        """
        stat = self._procfs.find(process.pid, process.start_time)
        if stat is None or stat.is_over:
            self._suspects.add((process.pid, process.start_time))
        elif not process.kernel_thread and stat.comm != process.comm:
            # A lost exec or rename: what it is now is right from now on.
            process.comm = stat.comm
            process.argv = self._procfs.arguments(process.pid)
            process.executable = self._procfs.executable(process.pid)

    def tick(self, now: int) -> Iterable[Record]:
        """
        Forget the dead, and end those that nobody has seen ending.
        """
        self._table.expire(now)
        if self._table.forgotten:
            self.context.log.warning(
                "%d processes were forgotten, as more than %d are alive",
                self._table.forgotten,
                ALIVE_COUNT,
            )
            self._table.forgotten = 0
        records: list[Record] = []
        for pid, start_time in self._suspects.due(now):
            process = self._table.alive(pid)
            if process is None or process.start_time != start_time:
                continue
            stat = self._procfs.find(pid, start_time)
            if stat is None or stat.is_over:
                status = stat.status if stat is not None else None
                records.append(self._end_unseen(now, process, status))
        return records
