# SPDX-License-Identifier: Apache-2.0
"""
Both drainers against the slow reference, on ring memory that hypothesis writes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kprobe_modules.rings import SHARED, Framing

from tests.support.ring_images import BpfImage, PerfImage, message
from tests.unit.rings_reference import Item, Model, ModelRing, Outcome, rows
from tests.unit.rings_twins import TWINS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kprobe_modules.rings import Drained, Drainer

WORD = (1 << 64) - 1

#: Key to fixed size and raggedness: smaller, equal to and larger than what one copy moves.
REGISTERED = {
    0: (16, False),
    0x10001: (24, True),
    0x10002: (40, False),
    0x20001: (128, False),
    0x20002: (129, False),
    0xFFFFFFFF: (200, True),
}
KEYS = [*REGISTERED, 0x10003]

SIZES = st.sampled_from([64, 128, 512, 4096])
STARTS = st.sampled_from([0, -8, -64, 1 << 20])

bodies = st.builds(
    lambda size, seed: bytes((seed + index) & 255 for index in range(size)),
    st.one_of(st.integers(0, 30), st.integers(0, 300)),
    st.integers(0, 255),
)
messages = st.tuples(
    st.just("message"), st.integers(-4, 6), st.sampled_from(KEYS), bodies, st.integers(0, 3)
)
oddities = st.tuples(
    st.sampled_from(["lost", "skipped", "malformed", "nothing", "busy", "damage"]),
    st.integers(0, 5),
    st.sampled_from(KEYS),
    bodies,
    st.integers(0, 3),
)
#: Mostly messages, or there would be little to merge.
items = st.one_of(messages, messages, messages, oddities)
writes = st.tuples(st.just("write"), st.integers(0, 3), st.lists(items, min_size=1, max_size=12))
commits = st.tuples(st.just("commit"), st.booleans())
drains = st.tuples(
    st.just("drain"),
    st.one_of(st.none(), st.integers(-20, 5)),
    st.booleans(),
    st.sampled_from([0, 1_700_000_000_000_000_000, -5, 1 << 63]),
    st.one_of(st.none(), st.integers(1, 3000)),
)
scripts = st.lists(st.one_of(writes, writes, commits, drains), min_size=1, max_size=14)


class PerfWriter:
    """
    Writes the same records to a perf ring and to its model.
    """

    def __init__(self, cpu: int, size: int, start: int) -> None:
        self.image = PerfImage(size, start & WORD)
        self.model = ModelRing(cpu)
        self.cpu = cpu

    def write(self, what: str, time: int, key: int, body: bytes, cpu: int) -> None:
        """
        Append one record, unless the ring is full or has no such record.
        """
        record, item = self._record(what, time, key, body, cpu)
        if record and len(record) < 1 << 16 and self.image.append(record):
            item.size = len(record)
            self.model.items.append(item)

    def _record(
        self, what: str, time: int, key: int, body: bytes, variant: int
    ) -> tuple[bytes, Item]:
        content = message(time, key, body, cpu=99)
        item = Item(what, time=time, key=key, content=content, cpu=self.cpu)
        sample = PerfImage.sample(content, garbage=bytes([variant + 1]))
        if what == "message":
            return sample, item
        if what == "lost":
            item.count = len(body) + 1
            return PerfImage.lost(item.count), item
        if what == "skipped":
            # Also a lost record that is too short to say how many.
            kind = [1, 5, 13, 2][variant]
            return PerfImage.record(kind, b"" if kind == 2 else sample[8:]), item
        if what == "malformed":
            return self._malformed(content, time, key, body, variant), item
        if what == "damage":
            size = [0, 4, len(sample) + 1, 65528][variant]
            return PerfImage.record(9, sample[8:], size=size), item
        return b"", item

    @staticmethod
    def _malformed(content: bytes, time: int, key: int, body: bytes, variant: int) -> bytes:
        if variant == 0:
            return PerfImage.sample(message(time, key, body, length=len(body) + 16 + 8))
        if variant == 1:
            return PerfImage.sample(content, raw=len(content) + 16)
        if variant == 2:
            return PerfImage.sample(message(time, key, body, length=15))
        return PerfImage.record(9, b"\x07" * (8 * (len(body) & 1)))


class BpfWriter:
    """
    Writes the same records to a BPF ring buffer and to its model.
    """

    def __init__(self, cpu: int, size: int, start: int) -> None:
        self.image = BpfImage(size, start & WORD)
        self.model = ModelRing(cpu, indexed=True)
        self.cpu = cpu
        self.reserved: list[tuple[int, Item]] = []

    def write(self, what: str, time: int, key: int, body: bytes, cpu: int) -> None:
        """
        Append one record, unless the ring is full or has no such record.
        """
        content = message(time, key, body, cpu=cpu)
        writer = cpu if self.cpu == SHARED else self.cpu
        item = Item(what, time=time, key=key, content=content, cpu=writer)
        record = BpfImage.record(content)
        if what == "nothing":
            record = BpfImage.record(content, 1 << 30)
        elif what == "busy":
            position = self.image.reserve(content)
            if position is None:
                return
            self.reserved.append((position, item))
            record = b""
        elif what == "malformed":
            wrong = message(time, key, body, cpu=cpu, length=len(content) + 1)
            record = BpfImage.record([wrong, content[:15], b""][cpu % 3])
        elif what == "damage":
            record = BpfImage.record(b"", 1 << 20)
        elif what != "message":
            return
        if record and not self.image.append(record):
            return
        item.size = len(BpfImage.record(content)) if what == "busy" else len(record)
        self.model.items.append(item)

    def commit(self, *, keep: bool) -> None:
        """
        Let the first writer that is not done yet finish.
        """
        while self.reserved:
            position, item = self.reserved.pop(0)
            if item in self.model.items:
                item.what = "message" if keep else "nothing"
                self.image.commit(position, 0 if keep else 1 << 30)
                return


Writer = PerfWriter | BpfWriter


def check_batches(drained: Drained, released: list[Item], offset: int) -> None:
    """
    Compare rows, tails, order of batches.
    """
    keys = list(dict.fromkeys(item.key for item in released))
    assert [batch.key for batch in drained.batches] == keys
    for batch in drained.batches:
        fixed, ragged = REGISTERED[batch.key]
        mine = [item for item in released if item.key == batch.key]
        assert (batch.count, batch.stride) == (len(mine), fixed)
        assert bytes(memoryview(batch)) == rows(mine, fixed, offset)
        if not ragged:
            assert batch.tails is None
            continue
        assert batch.tails is not None
        tails = [bytes(batch.tails.tail(row)) for row in range(batch.count)]
        assert tails == [item.content[fixed:] for item in mine]
        assert len(batch.tails.offsets) == batch.count + 1
        assert batch.tails.blob.nbytes == sum(map(len, tails))


def check(drained: Drained, expected: Outcome, model: Model, offset: int, *, merge: bool) -> None:
    """
    Compare everything that a drain says.
    """
    check_batches(drained, expected.released, offset)
    keys = [batch.key for batch in drained.batches]
    order = [keys.index(item.key) for item in expected.released] if merge else []
    assert drained.sequence.format == "H"
    assert drained.sequence.tolist() == order
    by_cpu: Counter[int] = Counter()
    for cpu, count in expected.lost:
        by_cpu[cpu] += count
    assert drained.lost == sorted(by_cpu.items())
    counts = {name: expected.counts[name] for name in ("unknown", "malformed", "skipped")}
    assert {name: getattr(drained, name) for name in counts} == counts
    late = [(key, cpu, count) for (key, cpu), count in expected.late.items()]
    assert drained.late == sorted(late, key=lambda entry: (keys.index(entry[0]), entry[1]))
    assert drained.newest == model.newest
    assert drained.records == len(expected.released)
    assert drained.more is expected.more


def check_rings(drainer: Drainer, writers: list[Writer], model: Model) -> None:
    """
    Compare what is left in the rings, and what was counted in all.
    """
    for writer in writers:
        waiting = (writer.image.produced - writer.image.consumed) & WORD
        assert waiting == sum(item.size for item in writer.model.items)
    held = sum(item.size for writer in writers for item in writer.model.held)
    left = sum(item.size for writer in writers for item in writer.model.items)
    assert drainer.pending() == held + left
    for key in REGISTERED:
        received = {cpu: n for (of, cpu), n in model.received.items() if of == key}
        assert drainer.received(key) == received


def play(twin: Any, writers: list[Writer], script: list[tuple[Any, ...]]) -> None:
    """
    Run a script against a drainer and against the reference.
    """
    drainer = twin.Drainer(Framing())
    for key, (fixed, ragged) in REGISTERED.items():
        drainer.register(key, fixed, ragged)
    for writer in writers:
        drainer.add_ring(writer.cpu, writer.image)
    model = Model([writer.model for writer in writers])
    model.keys = set(REGISTERED)
    clock: Iterator[int] = itertools.count(10)
    now = 10
    for step, *arguments in [*script, ("drain", None, True, 0, None)]:
        if step == "write":
            ring, records = arguments
            for what, delta, key, body, cpu in records:
                now = next(clock)
                writers[ring % len(writers)].write(what, max(0, now + delta), key, body, cpu)
        elif step == "commit":
            for writer in writers:
                if isinstance(writer, BpfWriter):
                    writer.commit(keep=arguments[0])
        else:
            delta, merge, offset, budget = arguments
            until = None if delta is None else max(0, now + delta)
            drained = drainer.drain(until, merge=merge, time_offset=offset, budget=budget)
            limit = WORD if until is None else until
            expected = model.drain(limit, budget or 8 << 20, merge=merge)
            check(drained, expected, model, offset, merge=merge)
            check_rings(drainer, writers, model)


played = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("twin", TWINS)
@given(st.lists(st.tuples(SIZES, STARTS), min_size=1, max_size=4), scripts)
@played
def test_perf_rings_drain_as_the_reference_does(
    twin: Any, rings: list[tuple[int, int]], script: list[tuple[Any, ...]]
) -> None:
    """
    One to four CPUs: wraps, cuts by time and budget, lost records, every kind of damage.
    """
    writers = [PerfWriter(cpu, size, start) for cpu, (size, start) in enumerate(rings)]
    play(twin, list(writers), script)


@pytest.mark.parametrize("twin", TWINS)
@given(SIZES, STARTS, scripts)
@played
def test_a_shared_bpf_ring_drains_as_the_reference_does(
    twin: Any, size: int, start: int, script: list[tuple[Any, ...]]
) -> None:
    """
    Records slightly out of order, writers that are not done, discarded ones.
    """
    play(twin, [BpfWriter(SHARED, size, start)], script)


@pytest.mark.parametrize("twin", TWINS)
@given(SIZES, STARTS, scripts)
@played
def test_both_kinds_of_ring_drain_together(
    twin: Any, size: int, start: int, script: list[tuple[Any, ...]]
) -> None:
    """
    A perf ring and two BPF ring buffers in one drainer.
    """
    writers: list[Writer] = [
        BpfWriter(0, size, start),
        PerfWriter(1, size, start),
        BpfWriter(2, 512, 0),
    ]
    play(twin, writers, script)


@pytest.mark.parametrize("twin", TWINS)
@given(st.binary(max_size=600), st.integers(0, 80), st.sampled_from([-8, 0]), st.booleans())
@settings(max_examples=300)
def test_noise_is_counted_and_left_behind(
    twin: Any, noise: bytes, words: int, start: int, merge: Any
) -> None:
    """
    Any bytes at all, between any positions: no crash, no hang, and the ring works again after.
    """
    for image in (PerfImage(512, start & WORD), BpfImage(512, start & WORD)):
        drainer = twin.Drainer(Framing())
        drainer.register(5, 16)
        image.put(image.produced, noise)
        image.produced += words * 8
        drainer.add_ring(0, image)
        drainer.drain(merge=merge)
        busy = isinstance(image, BpfImage) and image.consumed != image.produced
        if not busy:
            record = message(1 << 62, 5)
            assert image.append(
                image.sample(record) if isinstance(image, PerfImage) else image.record(record)
            )
            assert drainer.drain(merge=merge).batches[0].count == 1
