# SPDX-License-Identifier: Apache-2.0
"""
Perf rings: one ring, and the set of one per online CPU.

Facts about the memory are those of ``struct perf_event_mmap_page`` in
linux/perf_event.h: one page of metadata with ``data_head`` (the kernel's) at
1024 and ``data_tail`` (ours) at 1032, then a power of two of data pages.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING

import attrs
from kprobe_modules.rings.cpus import ONLINE, parse_cpus
from kprobe_modules.rings.framing import Framing, RingMemory
from kprobe_modules.rings.mapped import MappedRing, RingSet

from kprobe_modules.errors import RingError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["PerfRing", "PerfRings"]

_HEAD = slice(1024, 1032)
_TAIL = slice(1032, 1040)


class PerfRing(MappedRing):
    """
    The mapped memory of one perf event.

    Args:
        fd: descriptor of the event.
        pages: data pages, a power of two.
        own: close the descriptor together with the ring.

    Raises:
        RingError: *pages* is not a power of two, or the kernel refuses the
            mapping; ``errno`` says why (EPERM is about memory that may be
            locked: RLIMIT_MEMLOCK and ``kernel.perf_event_mlock_kb``).
    """

    def __init__(self, fd: int, pages: int, *, own: bool = False) -> None:
        super().__init__(fd, own=own)
        if pages < 1 or pages & (pages - 1):
            message = f"perf ring: {pages} pages, expected a power of two"
            raise RingError(message)
        self.pages = pages
        self._whole = self._map((1 + pages) * mmap.PAGESIZE, writable=True)

    def memory(self) -> RingMemory:
        """
        Return views of the ring's memory; the ring cannot be closed while they live.
        """
        whole = memoryview(self._whole)
        return RingMemory("perf", whole[_HEAD], whole[_TAIL], whole[mmap.PAGESIZE :])


@attrs.define(eq=False, repr=False)
class _Leaving:
    """
    A ring whose CPU went offline with records still in it.
    """

    cpu: int
    ring: PerfRing


class PerfRings(RingSet):
    """
    One perf ring per online CPU, drained together.

    The set owns the events that *open_event* returns. That matters: an event
    leaves a perf-event array when the file that inserted it closes.

    Args:
        pages: data pages per ring, a power of two.
        open_event: opens the event of a CPU and returns its descriptor; an
            OSError with ENODEV means that the CPU has just gone.
        insert: puts ``(cpu, descriptor)`` in the perf-event array.
        remove: takes a CPU out of the array.
        framing: of the messages.
        online: the file that lists the online CPUs.

    Raises:
        RingError: a ring cannot be mapped. What was opened is closed again.
    """

    def __init__(
        self,
        *,
        pages: int,
        open_event: Callable[[int], int],
        insert: Callable[[int, int], None],
        remove: Callable[[int], None],
        framing: Framing | None = None,
        online: Path = ONLINE,
    ) -> None:
        super().__init__(framing or Framing())
        self._pages = pages
        self._open_event = open_event
        self._insert = insert
        self._remove = remove
        self._online = online
        self._rings: dict[int, PerfRing] = {}
        self._leaving: list[_Leaving] = []
        try:
            self.refresh()
        except BaseException:
            self.close()
            raise

    @property
    def cpus(self) -> tuple[int, ...]:
        """
        The CPUs that have a ring.
        """
        return tuple(sorted(self._rings))

    def refresh(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """
        Follow CPUs that came online or went offline since the last time.

        The ring of a CPU that went is drained to its end before it is closed,
        by a later refresh.

        Returns:
            The CPUs that got a ring, and those that lost theirs.
        """
        self._part()
        online = parse_cpus(self._online.read_text(encoding="ascii"))
        removed = [cpu for cpu in self.cpus if cpu not in online]
        for cpu in removed:
            self._take_leave(cpu)
        added = [cpu for cpu in online if cpu not in self._rings and self._add(cpu)]
        return tuple(added), tuple(removed)

    def _add(self, cpu: int) -> bool:
        """
        Open a CPU's ring; False if the CPU went away meanwhile.
        """
        try:
            fd = self._open_event(cpu)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        try:
            ring = PerfRing(fd, self._pages, own=True)
        except RingError:
            os.close(fd)
            raise
        self._rings[cpu] = ring
        self._watch(fd)
        self.drainer.add_ring(cpu, ring)
        try:
            self._insert(cpu, fd)
        except BaseException:
            self._take_leave(cpu, inserted=False)
            raise
        return True

    def _take_leave(self, cpu: int, *, inserted: bool = True) -> None:
        ring = self._rings.pop(cpu)
        self._leaving.append(_Leaving(cpu, ring))
        # A dead CPU's event reports a hang-up for ever.
        self._unwatch(ring.fileno())
        if inserted:
            self._remove(cpu)

    def _part(self, *, anyway: bool = False) -> None:
        """
        Close the rings of departed CPUs that are empty by now.
        """
        for leaving in list(self._leaving):
            memory = leaving.ring.memory()
            empty = bytes(memory.produced) == bytes(memory.consumed)
            del memory
            if empty or anyway:
                self.drainer.remove_ring(leaving.cpu, leaving.ring)
                self._leaving.remove(leaving)
                leaving.ring.close()

    def _hung_up(self) -> None:
        self.refresh()

    def read(self, cpu: int, until: int | None = None) -> list[bytes]:
        """
        Take the messages of one CPU in the order of its ring, up to the first newer one.

        For a ring whose records are announced by those of another ring. What is
        lost or malformed on the way is told by the next drain.

        Args:
            cpu: whose ring; a CPU without one has no messages.
            until: newest time to take, nanoseconds of the messages' clock.
        """
        return self.drainer.read(cpu, until)

    def close(self) -> None:
        """
        Close every ring and its event. Closing twice is harmless.

        Descriptors leave the array on their own when they close; *remove* is not called.
        """
        self._part(anyway=True)
        while self._rings:
            cpu, ring = self._rings.popitem()
            self.drainer.remove_ring(cpu, ring)
            ring.close()
        super().close()
