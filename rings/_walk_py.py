# SPDX-License-Identifier: Apache-2.0
"""
Walking one ring in pure Python: which messages it offers, and how far it may be given back.
"""

from __future__ import annotations

import threading
from operator import itemgetter
from struct import Struct
from typing import TYPE_CHECKING, TypeAlias

import attrs
from kprobe_modules.rings.framing import SHARED, SLACK

if TYPE_CHECKING:
    from collections.abc import Callable

    from kprobe_modules.rings.framing import Framing, Ring, RingMemory

__all__ = ["BpfWalker", "Message", "PerfWalker", "Walker", "open_walker"]

#: Order (the time, but never before an earlier message of its perf ring), time,
#: key, bytes it is in, start there, length, bytes it takes in the ring, CPU, walker.
Message: TypeAlias = "tuple[int, int, int, bytes, int, int, int, int, Walker]"

WORD = (1 << 64) - 1

_LOST = 2
_SAMPLE = 9
_PERF_HEADER = 8
_RAW = 12
_BPF_HEADER = 8
_BUSY = 1 << 31
_DISCARDED = 1 << 30
_COUNT = Struct("<Q")

_fence = threading.Lock()
_fence.acquire()


def _barrier() -> None:
    """
    Keep what was read before apart from what is read after, for other CPUs' writes.

    Releasing and taking a lock is a release followed by an acquire, which no
    access passes in either direction; Python has no plainer word for it.
    """
    _fence.release()
    _fence.acquire()


def _field_reader(framing: Framing, prefix: str) -> Callable[[bytes, int], tuple[int, ...]]:
    """
    Return what reads a record's prefix, and time, key, length and CPU of its message.
    """
    fields = sorted(
        [
            (framing.time_offset, "Q", 8, 0),
            (framing.key_offset, "I", 4, 1),
            (framing.length_offset, "H", 2, 2),
            (framing.cpu_offset, "H", 2, 3),
        ]
    )
    layout, at = "<" + prefix, 0
    for offset, letter, size, _ in fields:
        layout += f"{offset - at}x{letter}"
        at = offset + size
    unpack = Struct(layout).unpack_from
    places = [field[3] for field in fields]
    if places == sorted(places):
        return unpack
    before = len(Struct("<" + prefix).unpack(bytes(Struct("<" + prefix).size)))
    order = itemgetter(*range(before), *(before + places.index(place) for place in range(4)))
    return lambda data, start: order(unpack(data, start))


class Walker:
    """
    What the walkers of both kinds of ring share.

    Attributes:
        cut: the walk ended because of the budget, not because of the ring.
        offered: bytes that the last offer takes in the ring.
        lost, malformed, skipped: counted since somebody last took them.
        in_step: may be read message by message, in the ring's own order.
    """

    in_step = False

    def __init__(self, cpu: int, ring: Ring, memory: RingMemory) -> None:
        self.cpu = cpu
        self.ring = ring
        self.cut = False
        self.offered = 0
        self.lost = 0
        self.malformed = 0
        self.skipped = 0
        self._size = memory.size
        self._views = [memory.produced, memory.consumed, memory.data]
        self._produced = memory.produced.cast("B").cast("Q")
        self._consumed = memory.consumed.cast("B").cast("Q")
        self._data = memory.data
        self._start = self._origin = self._end = 0

    def close(self) -> None:
        """
        Let go of the ring's memory.
        """
        for view in (self._produced, self._consumed, *self._views):
            view.release()

    def pending(self) -> int:
        """
        Return the bytes that wait.
        """
        return min((self._produced[0] - self._consumed[0]) & WORD, self._size)

    def _begin(self) -> None:
        """
        See how far the kernel has written; where positions make no sense, go to the end.
        """
        self._end = self._produced[0]
        _barrier()
        self._start = self._origin = self._consumed[0]
        waiting = (self._end - self._start) & WORD
        if waiting and ((self._end | self._start) & 7 or waiting > self._size):
            self.malformed += 1
            self._origin = self._end

    def _copy(self, length: int) -> bytes:
        """
        Return what was written from the origin on, in one piece, and some zeros.
        """
        at = self._origin & (self._size - 1)
        first = bytes(self._data[at : min(at + length, self._size)])
        return first + bytes(self._data[: length - len(first)]) + bytes(2 * SLACK)

    def _publish(self, position: int) -> None:
        if position & WORD != self._start:
            _barrier()
            self._consumed[0] = position & WORD

    def offer(self, until: int, budget: int) -> list[Message]:
        """
        Return what may be released, in the order in which it has to be.

        The message that does not fit in the budget any more may end the list.
        """
        raise NotImplementedError

    def settle(self, released: int) -> None:
        """
        Give back the room of the first messages of the offer.
        """
        raise NotImplementedError


class PerfWalker(Walker):
    """
    Walks a perf ring, record by record in its own order.
    """

    in_step = True

    def __init__(self, cpu: int, ring: Ring, memory: RingMemory, framing: Framing) -> None:
        super().__init__(cpu, ring, memory)
        self._least = _RAW + framing.header_size
        self._read = _field_reader(framing, "I2xHI")
        self._offered: list[Message] = []
        self._passed: list[tuple[int, str, int]] = []
        self._stop = 0

    def offer(self, until: int, budget: int) -> list[Message]:
        """
        Walk up to the first message that is newer than *until*, or does not fit.
        """
        self._begin()
        size = (self._end - self._origin) & WORD
        data = self._copy(size)
        offered: list[Message] = []
        passed: list[tuple[int, str, int]] = []
        self._offered, self._passed = offered, passed
        read, least, cpu = self._read, self._least, self.cpu
        at = taken = latest = 0
        while at < size:
            kind, whole, raw, time, key, length, _ = read(data, at)
            if whole < _PERF_HEADER or whole & 7 or whole > size - at:
                passed.append((at, "malformed", 1))
                at = size
                break
            if kind != _SAMPLE:
                passed.append((at, *self._other(kind, data, at, whole)))
            elif whole < least or raw > whole - _RAW or not least - _RAW <= length <= raw:
                passed.append((at, "malformed", 1))
            elif time > until:
                break
            else:
                latest = max(latest, time)
                offered.append((latest, time, key, data, at + _RAW, length, whole, cpu, self))
                taken += whole
                if taken > budget and len(offered) > 1:
                    break
            at += whole
        self._stop = at
        self.offered = taken
        return offered

    @staticmethod
    def _other(kind: int, data: bytes, at: int, whole: int) -> tuple[str, int]:
        if kind == _LOST and whole >= _PERF_HEADER + 16:
            return "lost", _COUNT.unpack_from(data, at + _PERF_HEADER + 8)[0]
        return "skipped", 1

    def settle(self, released: int) -> None:
        """
        Count what carries no message up to the first message that stays.
        """
        offered = self._offered
        to = offered[released][4] - _RAW if released < len(offered) else self._stop
        self._offered = []
        for at, what, count in self._passed:
            if at < to:
                setattr(self, what, getattr(self, what) + count)
        self._publish(self._origin + to)


def _whole(header: int) -> int:
    """
    Return the bytes that a record of a BPF ring buffer takes.
    """
    return (header & ~_DISCARDED) + _BPF_HEADER + 7 & ~7


@attrs.define(eq=False)
class _Indexed:
    """
    A message of a BPF ring buffer; *end* is None for one that has left the ring.
    """

    message: Message
    start: int
    end: int | None


class BpfWalker(Walker):
    """
    Walks a BPF ring buffer: what it offers is sorted by time first.
    """

    def __init__(self, cpu: int, ring: Ring, memory: RingMemory, framing: Framing) -> None:
        super().__init__(cpu, ring, memory)
        self._least = framing.header_size
        self._read = _field_reader(framing, "")
        self._words = memory.data.cast("B").cast("I")
        self._held: list[_Indexed] = []
        self._index: list[_Indexed] = []
        self._in_ring_order: list[_Indexed] = []
        self._malformed_at: list[int] = []
        self._stop = 0

    def close(self) -> None:
        """
        Let go of the ring's memory.
        """
        self._words.release()
        super().close()

    def _held_bytes(self) -> int:
        return sum(entry.message[6] for entry in self._held)

    def pending(self) -> int:
        """
        Return the bytes that wait, in the ring or held.
        """
        return super().pending() + self._held_bytes()

    def _committed(self) -> tuple[list[tuple[int, int]], int]:
        """
        Return ``(position, header)`` of the records that are written, and where they end.
        """
        found = []
        position = self._origin
        while position != self._end:
            header = self._words[(position & (self._size - 1)) >> 2]
            if header & _BUSY:
                break
            found.append((position, header))
            whole = _whole(header)
            if whole > (self._end - position) & WORD:
                return found, self._end
            position = position + whole & WORD
        return found, position

    def offer(self, until: int, budget: int) -> list[Message]:
        """
        Index what the budget allows beside what is held, and sort it.
        """
        self._begin()
        found, stop = self._committed()
        _barrier()
        data = self._copy((stop - self._origin) & WORD)
        self.cut = False
        self._malformed_at = []
        fresh: list[_Indexed] = []
        taken = self._held_bytes()
        for position, header in found:
            at = (position - self._origin) & WORD
            size = header & ~_DISCARDED
            whole = _whole(header)
            start = at + _BPF_HEADER
            if whole > (self._end - position) & WORD:
                self._malformed_at.append(at)
                continue
            if header & _DISCARDED:
                continue
            time, key, length, cpu = self._read(data, start)
            if size < self._least or not self._least <= length <= size:
                self._malformed_at.append(at)
                continue
            if taken and taken + whole > budget:
                self.cut = True
                stop = position
                break
            taken += whole
            cpu = cpu if self.cpu == SHARED else self.cpu
            message = (time, time, key, data, start, length, whole, cpu, self)
            fresh.append(_Indexed(message, at, at + whole))
        self._stop = (stop - self._origin) & WORD
        self._in_ring_order = [*self._held, *fresh]
        self._index = sorted(self._in_ring_order, key=lambda entry: entry.message[0])
        self.offered = taken
        return [entry.message for entry in self._index if entry.message[0] <= until]

    def settle(self, released: int) -> None:
        """
        Hold what must leave the ring with the released messages, and count the malformed.
        """
        gone = {id(entry) for entry in self._index[:released]}
        left = max((entry.end or 0 for entry in self._index[:released]), default=0)
        to = self._stop
        self._held = []
        for entry in self._in_ring_order:
            if id(entry) in gone:
                continue
            if entry.end is not None and entry.start >= left:
                to = min(to, entry.start)
            else:
                self._held.append(_held(entry))
        self.malformed += sum(at < to for at in self._malformed_at)
        self._index = self._in_ring_order = []
        self._publish(self._origin + to)


def _held(entry: _Indexed) -> _Indexed:
    """
    Return a message in memory of its own.
    """
    if entry.end is None:
        return entry
    order, time, key, data, start, length, whole, cpu, walker = entry.message
    copy = data[start : start + length]
    return _Indexed((order, time, key, copy, 0, length, whole, cpu, walker), 0, None)


def open_walker(cpu: int, ring: Ring, framing: Framing) -> Walker:
    """
    Return the walker for a ring of either kind.
    """
    memory = ring.memory()
    kind = BpfWalker if memory.kind == "bpf" else PerfWalker
    return kind(cpu, ring, memory, framing)
