# SPDX-License-Identifier: Apache-2.0
"""
The pure-Python twin of ``_drain``: the same names, the same results, slower.

What each name promises is written once, in ``_drain.pyi``.
"""

from __future__ import annotations

from collections import Counter
from operator import itemgetter
from struct import Struct
from typing import TYPE_CHECKING, cast

import attrs
from kprobe_modules.rings._walk_py import WORD, open_walker
from kprobe_modules.rings.batch import Batch
from kprobe_modules.rings.framing import (
    DEFAULT_BUDGET,
    LARGEST_BUDGET,
    SHARED,
    Drained,
    Tails,
    check_registration,
)

from kprobe_modules.errors import RingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kprobe_modules.rings import _drain
    from kprobe_modules.rings._walk_py import Message, Walker
    from kprobe_modules.rings.framing import Framing, Ring

__all__ = ["Batch", "Drainer"]

_LARGEST_CPU = 65535
_TIME = Struct("<Q")
_by_order = itemgetter(0)


@attrs.define(eq=False)
class _Slot:
    """
    One registered key.
    """

    key: int
    fixed_size: int
    ragged: bool
    received: Counter[int] = attrs.Factory(Counter)


class _Collected:
    """
    Messages of one drain, by key.
    """

    def __init__(self, slots: dict[int, _Slot], newest: int) -> None:
        self.slots = slots
        self.newest = newest
        self.unknown = 0
        self.sequence: list[int] = []
        self.groups: dict[int, tuple[int, list[Message]]] = {}
        self.late: Counter[tuple[int, int]] = Counter()

    def collect(self, messages: Sequence[Message]) -> None:
        """
        Sort messages out, in the order in which they are released.
        """
        groups, sequence, newest = self.groups, self.sequence, self.newest
        for message in messages:
            key = message[2]
            group = groups.get(key)
            if group is None:
                if key not in self.slots:
                    self.unknown += 1
                    continue
                groups[key] = group = (len(groups), [])
            index, members = group
            members.append(message)
            sequence.append(index)
            time = message[1]
            if time < newest:
                self.late[index, message[7]] += 1
            else:
                newest = time
        self.newest = newest

    def batches(self, time_at: int, offset: int) -> list[Batch]:
        """
        Return the rows of every key that was met.
        """
        return [
            _batch(members, self.slots[key], time_at, offset)
            for key, (_, members) in self.groups.items()
        ]

    def late_by_key(self) -> list[tuple[int, int, int]]:
        """
        Return ``(key, cpu, count)`` in the order of batches, then CPUs.
        """
        keys = list(self.groups)
        return [(keys[index], cpu, count) for (index, cpu), count in sorted(self.late.items())]


def _batch(messages: Sequence[Message], slot: _Slot, time_at: int, offset: int) -> Batch:
    batch = Batch(_rows(messages, slot.fixed_size, time_at, offset))
    batch.key = slot.key
    batch.count = len(messages)
    batch.stride = slot.fixed_size
    batch.tails = _tails(messages, slot.fixed_size) if slot.ragged else None
    slot.received.update([message[7] for message in messages])
    return batch


def _rows(messages: Sequence[Message], fixed: int, time_at: int, offset: int) -> bytes | bytearray:
    rows = b"".join(
        [
            data[start : start + fixed]
            if length >= fixed
            else data[start : start + length].ljust(fixed, b"\0")
            for _, _, _, data, start, length, _, _, _ in messages
        ]
    )
    if not offset:
        return rows
    moved = bytearray(rows)
    pack_into = _TIME.pack_into
    at = time_at
    for message in messages:
        pack_into(moved, at, message[1] + offset & WORD)
        at += fixed
    return moved


def _tails(messages: Sequence[Message], fixed: int) -> Tails:
    tails = [
        data[start + fixed : start + length] for _, _, _, data, start, length, _, _, _ in messages
    ]
    offsets = [0]
    end = 0
    for tail in tails:
        end += len(tail)
        offsets.append(end)
    packed = Struct(f"={len(offsets)}I").pack(*offsets)
    return Tails(memoryview(packed).cast("I"), memoryview(b"".join(tails)))


def _indices(sequence: Sequence[int]) -> memoryview:
    return memoryview(Struct(f"={len(sequence)}H").pack(*sequence)).cast("H")


def _fitting(messages: Sequence[Message], budget: int) -> Sequence[Message]:
    """
    Return the messages that fit in a budget; the first always does.
    """
    taken = 0
    for index, message in enumerate(messages):
        taken += message[6]
        if taken > budget and index:
            return messages[:index]
    return messages


def _limit(until: int | None) -> int:
    if until is None:
        return WORD
    if not 0 <= until <= WORD:
        message = f"until is {until}, expected 64 bits"
        raise OverflowError(message)
    return until


def _room(budget: int | None) -> int:
    if budget is None:
        return DEFAULT_BUDGET
    if budget < 1:
        message = f"budget is {budget} bytes, expected at least 1"
        raise RingError(message)
    return min(budget, LARGEST_BUDGET)


class Drainer:
    """
    Takes messages out of many rings, as one batch per type of message.
    """

    def __init__(self, framing: Framing) -> None:
        self.framing = framing
        self._walkers: list[Walker] = []
        self._slots: dict[int, _Slot] = {}
        self._newest = 0
        self._unknown = 0

    def add_ring(self, cpu: int, ring: Ring) -> None:
        """
        Drain this ring too.
        """
        if not SHARED <= cpu <= _LARGEST_CPU:
            message = f"cpu {cpu}: expected -1 (shared) to {_LARGEST_CPU}"
            raise RingError(message)
        if any(walker.ring is ring for walker in self._walkers):
            message = f"ring of cpu {cpu}: was added already"
            raise RingError(message)
        self._walkers.append(open_walker(cpu, ring, self.framing))

    def remove_ring(self, cpu: int, ring: Ring | None = None) -> None:
        """
        Leave a ring and its memory alone.
        """
        for walker in self._walkers:
            if walker.cpu == cpu and (ring is None or walker.ring is ring):
                self._walkers.remove(walker)
                walker.close()
                return
        message = f"ring of cpu {cpu}: is not in this drainer"
        raise RingError(message)

    def register(self, key: int, fixed_size: int, ragged: bool = False) -> None:  # noqa: FBT001, FBT002
        """
        Collect messages of this key.
        """
        check_registration(key, fixed_size, self.framing, len(self._slots))
        if key in self._slots:
            message = f"key {key:#x}: is registered already"
            raise RingError(message)
        self._slots[key] = _Slot(key, fixed_size, bool(ragged))

    def _slot(self, key: int) -> _Slot:
        try:
            return self._slots[key]
        except KeyError:
            message = f"key {key:#x}: is not registered"
            raise RingError(message) from None

    def unregister(self, key: int) -> None:
        """
        Count messages of this key as unknown from now on.
        """
        del self._slots[self._slot(key).key]

    def received(self, key: int) -> dict[int, int]:
        """
        Return how many records were released per CPU since the key was registered.
        """
        return dict(sorted(self._slot(key).received.items()))

    def pending(self) -> int:
        """
        Return the bytes that wait in all rings.
        """
        return sum(walker.pending() for walker in self._walkers)

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
        """
        limit, room = _limit(until), _room(budget)
        collected = _Collected(self._slots, self._newest)
        more = (self._merged if merge else self._apart)(collected, limit, room)
        self._newest = collected.newest
        batches = collected.batches(self.framing.time_offset, time_offset)
        unknown, self._unknown = self._unknown + collected.unknown, 0
        return Drained(
            batches=cast("list[_drain.Batch]", batches),
            sequence=_indices(collected.sequence if merge else ()),
            lost=self._take_lost(),
            unknown=unknown,
            malformed=self._take("malformed"),
            skipped=self._take("skipped"),
            late=collected.late_by_key() if merge else [],
            newest=collected.newest,
            records=len(collected.sequence),
            more=more,
        )

    def _merged(self, collected: _Collected, until: int, budget: int) -> bool:
        """
        Release in order of time over all rings; ties go to the ring added first.
        """
        offered = [message for walker in self._walkers for message in walker.offer(until, budget)]
        offered.sort(key=_by_order)
        room = sum(walker.offered for walker in self._walkers)
        released = offered if room <= budget else _fitting(offered, budget)
        collected.collect(released)
        by_walker = Counter([id(message[8]) for message in released])
        for walker in self._walkers:
            walker.settle(by_walker[id(walker)])
        cut = any(walker.cut for walker in self._walkers) and bool(released)
        return cut or len(released) < len(offered)

    def _apart(self, collected: _Collected, until: int, budget: int) -> bool:
        """
        Release ring by ring; each gets its share of the budget.
        """
        share = budget // max(1, len(self._walkers))
        more = cut = False
        any_released = False
        for walker in self._walkers:
            offered = walker.offer(until, share)
            released = offered if walker.offered <= share else _fitting(offered, share)
            collected.collect(released)
            walker.settle(len(released))
            more |= len(released) < len(offered)
            cut |= walker.cut
            any_released |= bool(released)
        return more or (cut and any_released)

    def _take_lost(self) -> list[tuple[int, int]]:
        lost = [(walker.cpu, walker.lost) for walker in self._walkers if walker.lost]
        for walker in self._walkers:
            walker.lost = 0
        return lost

    def _take(self, what: str) -> int:
        total: int = sum(getattr(walker, what) for walker in self._walkers)
        for walker in self._walkers:
            setattr(walker, what, 0)
        return total

    def read(self, cpu: int, until: int | None = None) -> list[bytes]:
        """
        Take whole messages of one CPU's perf ring, in ring order up to the first newer one.
        """
        limit = _limit(until)
        messages: list[bytes] = []
        for walker in self._walkers:
            if walker.cpu == cpu:
                messages += self._read_ring(walker, limit)
        return messages

    def _read_ring(self, walker: Walker, until: int) -> list[bytes]:
        if not walker.in_step:
            message = (
                f"ring of cpu {walker.cpu}: is a BPF ring buffer, "
                "only a perf ring can be read in step"
            )
            raise RingError(message)
        offered = walker.offer(until, LARGEST_BUDGET)
        walker.settle(len(offered))
        for _, _, key, _, _, _, _, cpu, _ in offered:
            if key in self._slots:
                self._slots[key].received[cpu] += 1
            else:
                self._unknown += 1
        return [data[start : start + length] for _, _, _, data, start, length, _, _, _ in offered]
