# SPDX-License-Identifier: Apache-2.0
"""
The slow, obvious drainer: one record at a time, from a list of what was written.

It never looks at ring memory, so it cannot share a mistake with what does.
"""

from __future__ import annotations

from collections import Counter

import attrs

__all__ = ["Item", "Model", "ModelRing", "Outcome"]


@attrs.define(eq=False)
class Item:
    """
    One record of a ring: a message, or something without one.
    """

    what: str
    """
    message, lost, skipped, malformed, nothing (a discarded record), busy, or damage
    """
    size: int = 0
    time: int = 0
    key: int = 0
    content: bytes = b""
    cpu: int = 0
    count: int = 1
    held: bool = False


@attrs.define
class Outcome:
    """
    What a drain is expected to give.
    """

    released: list[Item] = attrs.Factory(list)
    lost: list[tuple[int, int]] = attrs.Factory(list)
    counts: Counter[str] = attrs.Factory(Counter)
    late: Counter[tuple[int, int]] = attrs.Factory(Counter)
    more: bool = False


class ModelRing:
    """
    A ring as a list of items.
    """

    def __init__(self, cpu: int, *, indexed: bool = False) -> None:
        self.cpu = cpu
        self.indexed = indexed
        self.items: list[Item] = []
        self.held: list[Item] = []
        self.offered: list[Item] = []
        self.cut = False

    def head(self, outcome: Outcome) -> Item | None:
        """
        Return the next message, counting what stands before it.
        """
        if self.indexed:
            return self.offered[0] if self.offered else None
        while self.items and self.items[0].what != "message":
            self._count(self.items.pop(0), outcome)
        return self.items[0] if self.items else None

    def pop(self) -> Item:
        """
        Take the head.
        """
        if not self.indexed:
            return self.items.pop(0)
        item = self.offered.pop(0)
        (self.held if item.held else self.items).remove(item)
        return item

    def _count(self, item: Item, outcome: Outcome) -> None:
        outcome.counts["malformed" if item.what == "damage" else item.what] += item.count
        if item.what == "lost":
            outcome.lost.append((self.cpu, item.count))
        if item.what == "damage":
            self.items.clear()

    def begin(self, budget: int) -> None:
        """
        Index what the budget allows, in order of time.
        """
        self.cut = False
        if not self.indexed:
            return
        self.offered = list(self.held)
        self.before = list(self.items)
        self.walked: list[Item] = []
        for item in self.items:
            if item.what == "busy":
                break
            if item.what == "message":
                taken = sum(other.size for other in self.offered)
                if self.offered and taken + item.size > budget:
                    self.cut = True
                    break
                self.offered.append(item)
            self.walked.append(item)
            if item.what == "damage":
                break
        self.offered.sort(key=lambda item: item.time)

    def settle(self, outcome: Outcome) -> None:
        """
        Hold the messages that stand before a released one; count what leaves with them.
        """
        if not self.indexed:
            return
        gone = [item for item in self.before if item not in self.items]
        last = max((self.before.index(item) for item in gone), default=-1)
        stay = [item for item in self.walked if item.what == "message" and item in self.items]
        behind = [item for item in stay if self.before.index(item) > last]
        end = self.before.index(behind[0]) if behind else len(self.walked)
        for item in self.before[:end]:
            if item in gone:
                continue
            if item.what == "message":
                item.held = True
                self.held.append(item)
            if item in self.items:
                self.items.remove(item)
            if item.what != "message":
                self._count(item, outcome)


class Model:
    """
    A drainer over model rings.
    """

    def __init__(self, rings: list[ModelRing]) -> None:
        self.rings = rings
        self.newest = 0
        self.keys: set[int] = set()
        self.received: Counter[tuple[int, int]] = Counter()

    def drain(self, until: int, budget: int, *, merge: bool) -> Outcome:
        """
        Release one message after the other.
        """
        outcome = Outcome()
        share = budget if merge or not self.rings else budget // len(self.rings)
        for ring in self.rings:
            ring.begin(share)
        taken_at_all = 0
        for group in [self.rings] if merge else [[ring] for ring in self.rings]:
            taken_at_all += self._drain_group(group, until, share, outcome, merge=merge)
        for ring in self.rings:
            outcome.more |= ring.cut and taken_at_all > 0
            ring.settle(outcome)
        return outcome

    def _drain_group(
        self, rings: list[ModelRing], until: int, budget: int, outcome: Outcome, *, merge: bool
    ) -> int:
        taken = 0
        while True:
            heads = [(head, ring) for ring in rings if (head := ring.head(outcome))]
            if not heads:
                return taken
            head, ring = min(heads, key=lambda pair: pair[0].time)
            if head.time > until:
                return taken
            if taken and taken + head.size > budget:
                outcome.more = True
                return taken
            taken += head.size
            ring.pop()
            self._release(head, outcome, merge=merge)

    def _release(self, item: Item, outcome: Outcome, *, merge: bool) -> None:
        if item.key not in self.keys:
            outcome.counts["unknown"] += 1
            return
        outcome.released.append(item)
        self.received[item.key, item.cpu] += 1
        if merge and item.time < self.newest:
            outcome.late[item.key, item.cpu] += 1
        self.newest = max(self.newest, item.time)

    def read(self, cpu: int, until: int, outcome: Outcome) -> list[bytes]:
        """
        Release one ring's messages in its own order.
        """
        found = []
        for ring in self.rings:
            if ring.cpu != cpu:
                continue
            while (head := ring.head(outcome)) and head.time <= until:
                ring.pop()
                found.append(head.content)
                if head.key in self.keys:
                    self.received[head.key, cpu] += 1
                else:
                    outcome.counts["unknown"] += 1
        return found


def rows(released: list[Item], fixed: int, offset: int) -> bytes:
    """
    Return the rows that these messages become.
    """
    result = b""
    for item in released:
        time = (item.time + offset) & ((1 << 64) - 1)
        result += (time.to_bytes(8, "little") + item.content[8:])[:fixed].ljust(fixed, b"\0")
    return result
