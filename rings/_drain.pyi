# SPDX-License-Identifier: Apache-2.0
from kprobe_modules.rings.framing import Drained, Framing, Ring, Tails

class Batch:
    """
    Messages of one type as contiguous rows.

    A read-only buffer of format ``B`` with ``count * stride`` bytes. A row is
    the fixed part of a message, zero-filled if the message was shorter, its
    time moved by the drain's ``time_offset``. The memory is used again once
    the batch and every view of it are collected.
    """

    @property
    def key(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def stride(self) -> int: ...
    @property
    def tails(self) -> Tails | None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Drainer:
    """
    Takes messages out of many rings, as one batch per type of message.

    Not for use by two threads at a time.
    """

    def __init__(self, framing: Framing) -> None: ...
    @property
    def framing(self) -> Framing: ...
    def add_ring(self, cpu: int, ring: Ring) -> None:
        """
        Drain this ring too; *cpu* is SHARED if all CPUs write to it.

        Raises:
            RingError: the ring was added already, or its memory is not a ring.
        """

    def remove_ring(self, cpu: int, ring: Ring | None = None) -> None:
        """
        Leave a ring and its memory alone; what is still in it is not drained.

        Raises:
            RingError: it is not in this drainer.
        """

    def register(self, key: int, fixed_size: int, ragged: bool = False) -> None:
        """
        Collect messages of this key: *fixed_size* bytes per row, and tails if *ragged*.

        Raises:
            RingError: registered already, or out of range.
        """

    def unregister(self, key: int) -> None:
        """
        Count messages of this key as unknown from now on.

        Raises:
            RingError: it is not registered.
        """

    def drain(
        self,
        until: int | None = None,
        *,
        merge: bool = True,
        time_offset: int = 0,
        budget: int | None = None,
    ) -> Drained:
        """
        Take what is due from all rings, and give its room back to the kernel.

        Args:
            until: newest time to release, nanoseconds of the rings' clock. A
                perf ring is released in its own order up to the first newer
                message, a BPF ring buffer in order of time.
            merge: release in order of time over all rings; else ring by ring.
            time_offset: added to the time of each row.
            budget: bytes of ring to release at most (but one message always);
                unmerged, each ring gets an equal share.

        Raises:
            RingError: the budget is not positive.
            MemoryError: not even one message could be released.
        """

    def read(self, cpu: int, until: int | None = None) -> list[bytes]:
        """
        Take whole messages of one CPU's perf ring, in ring order up to the first newer one.

        Raises:
            RingError: the ring is a BPF ring buffer.
        """

    def pending(self) -> int:
        """
        Return the bytes that wait in all rings, without walking them.
        """

    def received(self, key: int) -> dict[int, int]:
        """
        Return how many records were released per CPU since the key was registered.

        Raises:
            RingError: it is not registered.
        """
