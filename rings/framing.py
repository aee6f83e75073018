# SPDX-License-Identifier: Apache-2.0
"""
What both drainers share: how messages are framed, what memory a ring is, what a drain yields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import attrs

from kprobe_modules.errors import RingError

if TYPE_CHECKING:
    from kprobe_modules.rings._drain import Batch

__all__ = [
    "DEFAULT_BUDGET",
    "LARGEST_BUDGET",
    "SHARED",
    "Drained",
    "Framing",
    "Ring",
    "RingMemory",
    "Tails",
    "check_registration",
]

#: Bytes of ring that one drain releases unless told otherwise.
DEFAULT_BUDGET = 8 << 20

#: Tails are addressed by 32-bit offsets, so a drain stays well below.
LARGEST_BUDGET = 1 << 30

#: In place of a CPU: the ring is written by all CPUs and each message says by which.
SHARED = -1

#: Batches of one drain are numbered with 16 bits.
LARGEST_REGISTRY = 65535

_SMALLEST_RING = 64
_POSITION = 8


@attrs.frozen(eq=False, repr=False)
class Framing:
    """
    Where in a message the fields are that a drainer has to read; all little endian.

    Args:
        time_offset: of the time, u64 nanoseconds.
        key_offset: of the key that tells the message's type, u32.
        length_offset: of the message's whole length, header included, u16.
        header_size: a shorter message is malformed.
        cpu_offset: of the CPU that wrote the message, u16; read only from
            rings that all CPUs share.

    Raises:
        RingError: a field lies outside the header or on another.
    """

    time_offset: int = 0
    key_offset: int = 8
    length_offset: int = 12
    header_size: int = 16
    cpu_offset: int = 14

    def __attrs_post_init__(self) -> None:
        """
        Refuse a field that a shortest message would not have.
        """
        if not 0 < self.header_size <= SLACK:
            message = f"framing: header_size is {self.header_size}, expected 1 to {SLACK}"
            raise RingError(message)
        sizes = {"time_offset": 8, "key_offset": 4, "length_offset": 2, "cpu_offset": 2}
        taken: set[int] = set()
        for name, size in sizes.items():
            offset = getattr(self, name)
            if not 0 <= offset <= self.header_size - size:
                message = (
                    f"framing: {name} is {offset}, expected 0 to {self.header_size - size} "
                    f"as the header has {self.header_size} bytes"
                )
                raise RingError(message)
            if not taken.isdisjoint(range(offset, offset + size)):
                message = f"framing: {name} is {offset}, where another field is"
                raise RingError(message)
            taken.update(range(offset, offset + size))


#: Largest header; the native twin may read so far without looking.
SLACK = 128


def _are_positions(produced: memoryview, consumed: memoryview) -> bool:
    return produced.nbytes == consumed.nbytes == _POSITION and not consumed.readonly


@attrs.frozen(eq=False, repr=False)
class RingMemory:
    """
    The memory of one ring, as a drainer takes it.

    Args:
        kind: ``"perf"``: records are a ``struct perf_event_header``, a raw
            size and the message, and wrap anywhere. ``"bpf"``: records are a
            BPF ring buffer's header and the message, and never wrap as
            *data* is mapped twice in a row.
        produced: 8 bytes, the position up to which the kernel has written.
        consumed: 8 writable bytes, the position up to which we have read.
        data: the records.

    Raises:
        RingError: the pieces cannot be a ring.
    """

    kind: Literal["perf", "bpf"]
    produced: memoryview
    consumed: memoryview
    data: memoryview

    def __attrs_post_init__(self) -> None:
        """
        Refuse memory whose arithmetic would not work.
        """
        if self.kind not in {"perf", "bpf"}:
            message = f"ring memory: kind is {self.kind!r}, expected 'perf' or 'bpf'"
            raise RingError(message)
        if not _are_positions(self.produced, self.consumed):
            message = "ring memory: a position is not 8 bytes, or ours is read-only"
            raise RingError(message)
        size = self.size
        if size < _SMALLEST_RING or size & (size - 1):
            message = f"ring memory: size is {size}, expected a power of two from {_SMALLEST_RING}"
            raise RingError(message)

    @property
    def size(self) -> int:
        """
        Bytes of records that the ring can hold.
        """
        return self.data.nbytes // (2 if self.kind == "bpf" else 1)


class Ring(Protocol):
    """
    What a drainer needs of a ring.
    """

    def memory(self) -> RingMemory:
        """
        Return views of the ring's memory; the ring cannot be closed while they live.
        """
        ...


@attrs.frozen(eq=False, repr=False)
class Tails:
    """
    The variable parts of a ragged batch's messages.

    Attributes:
        offsets: memoryview of format ``I``, one more than there are rows: tail
            *i* is ``blob[offsets[i]:offsets[i + 1]]``.
        blob: memoryview of format ``B``, the tails one after the other.
    """

    offsets: memoryview
    blob: memoryview

    def tail(self, row: int) -> memoryview:
        """
        Return the tail of one row, without copying it.

        Raises:
            IndexError: there is no such row.
        """
        if row < 0:
            row += len(self.offsets) - 1
            if row < 0:
                message = f"row {row}: there are {len(self.offsets) - 1}"
                raise IndexError(message)
        return self.blob[self.offsets[row] : self.offsets[row + 1]]


@attrs.define(eq=False, repr=False)
class Drained:
    """
    What one drain took from the rings.

    Attributes:
        batches: those that are not empty, in order of their first record.
        sequence: memoryview of format ``H``: for every record, in the order
            of time over all rings, the index of its batch in ``batches`` (its
            row is the number of earlier entries equal to it). Empty if not
            merged.
        lost: ``(cpu, count)`` as told by the kernel in the rings themselves.
        unknown: records whose key is not registered.
        malformed: records whose sizes contradict each other. Where a ring is
            so damaged that the next record cannot be found, its rest counts
            as one.
        skipped: perf records of a type that carries no message.
        late: ``(key, cpu, count)`` of records that were released after a newer
            one was, by this drain or an earlier one. Empty if not merged.
        newest: the newest time released so far, nanoseconds of the rings'
            clock (no offset added); 0 before the first record.
        records: rows in all batches.
        more: the budget ran out; drain again.
    """

    batches: list[Batch]
    sequence: memoryview
    lost: list[tuple[int, int]]
    unknown: int
    malformed: int
    skipped: int
    late: list[tuple[int, int, int]]
    newest: int
    records: int
    more: bool

    def batch(self, key: int) -> Batch | None:
        """
        Return the batch of one key, or None if there was no such record.
        """
        return next((batch for batch in self.batches if batch.key == key), None)


def check_registration(key: int, fixed_size: int, framing: Framing, registered: int) -> None:
    """
    Refuse a registration that neither twin can serve.

    Raises:
        RingError: the key is not 32 bits, the size not between the header's
            and 65535, or there are too many keys.
    """
    if not 0 <= key < 1 << 32:
        message = f"key {key:#x}: expected 32 bits"
        raise RingError(message)
    if not framing.header_size <= fixed_size < 1 << 16:
        message = (
            f"key {key:#x}: fixed size is {fixed_size}, "
            f"expected {framing.header_size} (the header) to 65535"
        )
        raise RingError(message)
    if registered >= LARGEST_REGISTRY:
        message = f"key {key:#x}: {registered} keys are registered already, unregister some"
        raise RingError(message)
