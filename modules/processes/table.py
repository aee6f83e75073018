# SPDX-License-Identifier: Apache-2.0
"""
The processes that are alive, and for a short while those that were.

The handler offers its table to other modules' handlers as ``process_table``:
``context.find("process_table")`` gives a `ProcessTable`, or None while the
processes module is not attached.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Process", "ProcessTable"]

GRACE_NS = 10_000_000_000
"""How long an ended process can still be asked for."""

GRACE_COUNT = 8192
"""How many ended processes are kept at most."""


ALIVE_COUNT = 1 << 16
"""How many living processes are kept at most: as many as ``tgid_info_table`` holds."""


@attrs.define(eq=False)
class Process:
    """
    What is known of a process.  For readers: only the processes module changes it.
    """

    pid: int
    start_time: int
    """Nanoseconds since boot; with the pid, the identity."""
    parent_pid: int
    uid: int
    comm: str
    cgroup_id: int
    argv: tuple[str, ...] = ()
    executable: str = ""
    kernel_thread: bool = False
    ended: int | None = None
    """When it ended, in nanoseconds since the epoch; None while it is alive."""


class ProcessTable:
    """
    Processes by pid.

    Attributes:
        forgotten: living processes that had to make room for others; what is heard of
            one of them starts it anew.
    """

    def __init__(self) -> None:
        self.forgotten = 0
        self._alive: dict[int, Process] = {}
        # In the order of their ends; by identity, as a pid may end more than once.
        self._ended: OrderedDict[tuple[int, int], Process] = OrderedDict()
        self._last_ended: dict[int, Process] = {}

    def __len__(self) -> int:
        return len(self._alive)

    def __iter__(self) -> Iterator[Process]:
        """
        Iterate over a copy of those that are alive.
        """
        return iter(list(self._alive.values()))

    def get(self, pid: int) -> Process | None:
        """
        Return the living process with that pid, else the last that ended seconds ago.
        """
        return self._alive.get(pid) or self._last_ended.get(pid)

    def alive(self, pid: int) -> Process | None:
        """
        Return the living process with that pid.
        """
        return self._alive.get(pid)

    def has_ended(self, pid: int, start_time: int) -> bool:
        """
        Tell whether that very process ended within the last seconds.
        """
        return (pid, start_time) in self._ended

    def add(self, process: Process) -> None:
        """
        Enter a process that is alive.
        """
        self._alive[process.pid] = process
        if len(self._alive) > ALIVE_COUNT:
            del self._alive[next(iter(self._alive))]
            self.forgotten += 1

    def end(self, process: Process, now: int) -> None:
        """
        Take a process from those alive to those ended.
        """
        if self._alive.get(process.pid) is process:
            del self._alive[process.pid]
        process.ended = now
        self._ended[process.pid, process.start_time] = process
        self._last_ended[process.pid] = process
        while len(self._ended) > GRACE_COUNT:
            self._forget_oldest()

    def expire(self, now: int) -> None:
        """
        Forget who ended too long ago.
        """
        while self._ended:
            oldest = next(iter(self._ended.values()))
            if oldest.ended is not None and now - oldest.ended < GRACE_NS:
                return
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, process = self._ended.popitem(last=False)
        if self._last_ended.get(process.pid) is process:
            del self._last_ended[process.pid]
