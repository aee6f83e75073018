# SPDX-License-Identifier: Apache-2.0
"""
A BPF ring buffer, as an alternative to perf rings: one map that all CPUs share.

Facts about the memory are those of kernel/bpf/ringbuf.c: page 0 of the map
holds the consumer's position and may be written, page 1 the producer's, and
the data follow twice in a row so that no record wraps.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from kprobe_modules.rings.cpus import ONLINE, parse_cpus
from kprobe_modules.rings.framing import SHARED, Framing, RingMemory
from kprobe_modules.rings.mapped import MappedRing, RingSet

from kprobe_modules.errors import RingError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BpfRing", "BpfRings"]


class BpfRing(MappedRing):
    """
    The mapped memory of one BPF ring buffer.

    Args:
        fd: descriptor of the map.
        size: its ``max_entries``, bytes, a power of two and of pages.
        own: close the descriptor together with the ring.

    Raises:
        RingError: *size* does not fit, or the kernel refuses the mapping.
    """

    def __init__(self, fd: int, size: int, *, own: bool = False) -> None:
        super().__init__(fd, own=own)
        page = mmap.PAGESIZE
        if size < page or size & (size - 1):
            message = f"BPF ring buffer: {size} bytes, expected a power of two from {page}"
            raise RingError(message)
        self.size = size
        self._consumer = self._map(page, writable=True)
        try:
            self._producer = self._map(page + 2 * size, writable=False, offset=page)
        except RingError:
            self._consumer.close()
            raise

    def memory(self) -> RingMemory:
        """
        Return views of the ring's memory; the ring cannot be closed while they live.
        """
        producer = memoryview(self._producer)
        consumed = memoryview(self._consumer)[:8]
        return RingMemory("bpf", producer[:8], consumed, producer[mmap.PAGESIZE :])


class BpfRings(RingSet):
    """
    The interface of :class:`PerfRings` over one BPF ring buffer.

    Args:
        fd: descriptor of the map; it stays the caller's.
        size: its ``max_entries``, bytes.
        framing: of the messages.
        online: the file that lists the online CPUs.

    Raises:
        RingError: the ring cannot be mapped.
    """

    def __init__(
        self, fd: int, size: int, *, framing: Framing | None = None, online: Path = ONLINE
    ) -> None:
        super().__init__(framing or Framing())
        self._online = online
        self._ring: BpfRing | None = None
        try:
            self._ring = BpfRing(fd, size)
            self.drainer.add_ring(SHARED, self._ring)
            self._watch(fd)
        except BaseException:
            self.close()
            raise

    @property
    def cpus(self) -> tuple[int, ...]:
        """
        The online CPUs: all of them write to the one ring.
        """
        return parse_cpus(self._online.read_text(encoding="ascii"))

    def refresh(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """
        Do nothing: a shared ring needs nothing when CPUs come and go.
        """
        return (), ()

    def read(self, cpu: int, until: int | None = None) -> list[bytes]:
        """
        Refuse: a ring that all CPUs share cannot be read in step with one of them.

        Raises:
            RingError: always.
        """
        message = f"ring of cpu {cpu}: is shared, only a perf ring can be read in step ({until=})"
        raise RingError(message)

    def close(self) -> None:
        """
        Unmap the ring. Closing twice is harmless.
        """
        ring, self._ring = self._ring, None
        if ring is not None:
            self.drainer.remove_ring(SHARED, ring)
            ring.close()
        super().close()
