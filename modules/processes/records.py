# SPDX-License-Identifier: Apache-2.0
"""
What the processes module says: one record class for each thing that can happen.

The field names are a contract: they are the keys of the JSON output.  A process is
named by ``pid`` and ``start_time`` together, as pids are used again.
"""

from __future__ import annotations

import attrs

from kprobe_modules.api import Record

__all__ = [
    "ProcessExecuted",
    "ProcessExited",
    "ProcessMoved",
    "ProcessRenamed",
    "ProcessStarted",
    "ThreadExited",
]


@attrs.define(eq=False, repr=False)
class _ProcessRecord(Record):
    """
    What every record about a process has.
    """

    pid: int
    """Process id (the kernel's tgid) in the initial PID namespace."""
    start_time: int
    """When the process started, in nanoseconds since boot, suspend included."""
    parent_pid: int
    """Process id of the parent at that moment; 0 when the kernel is."""
    uid: int
    """Real user id in the initial user namespace."""
    comm: str
    """Command name, at most 15 bytes."""
    cgroup_id: int
    """Id of its cgroup: the inode number of the cgroup's folder.  Of the memory
    controller where that has a hierarchy of its own (version 1), else of version 2."""


@attrs.define(eq=False, repr=False)
class ProcessStarted(_ProcessRecord, module="processes"):
    """
    A process was forked, or was found to be there.
    """

    argv: list[str]
    """Its parent's arguments if it was seen starting, its own if it was found."""
    executable: str
    """Path of the program, empty if unknown."""
    existing: bool
    """Whether it was found rather than seen starting."""
    kernel_thread: bool
    """Whether it belongs to the kernel and has no program."""


@attrs.define(eq=False, repr=False)
class ProcessExecuted(_ProcessRecord, module="processes"):
    """
    A process runs another program.
    """

    argv: list[str]
    """The arguments of this execution, read before the program could change them."""
    executable: str
    """Path of what runs, as the kernel was told; for a script its interpreter."""
    old_comm: str | None
    """The command name before, None if it is not known."""
    argv_truncated: bool
    """Whether there were more arguments than are kept (4 KiB with the path)."""


@attrs.define(eq=False, repr=False)
class ProcessRenamed(_ProcessRecord, module="processes"):
    """
    A process got another command name, not by executing a program.
    """

    old_comm: str


@attrs.define(eq=False, repr=False)
class ProcessMoved(_ProcessRecord, module="processes"):
    """
    A process was moved to another cgroup.
    """

    old_cgroup_id: int | None
    """The cgroup before, None if it is not known."""


@attrs.define(eq=False, repr=False)
class ProcessExited(_ProcessRecord, module="processes"):
    """
    A process ended: its last thread is gone.
    """

    argv: list[str]
    executable: str
    exit_code: int | None
    """The code given to exit(2), 0 to 255, and 0 when a signal ended it.  None when
    the end was not seen but found out later: then nobody knows how it ended."""
    signal: int | None
    """The signal that ended it, else 0; None like `exit_code`."""
    core_dumped: bool
    duration: int | None
    """Nanoseconds from start to end, suspend excluded; None like `exit_code`."""
    files_closed: bool
    """Whether this comes after the process's files and sockets were closed."""
    kernel_thread: bool


@attrs.define(eq=False, repr=False)
class ThreadExited(_ProcessRecord, module="processes"):
    """
    One thread of a process exited; reported if the tunable ``thread_exits`` is 1.
    """

    tid: int
    """Id of the thread; ``comm`` is the thread's name."""
    exit_code: int
    signal: int
