# SPDX-License-Identifier: Apache-2.0
"""
What a drainer promises about keys, budgets, memory and misuse.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import attrs
import pytest
from kprobe_modules.rings import SHARED, Framing, RingMemory

from kprobe_modules.errors import RingError
from tests.support.ring_images import BpfImage, PerfImage, message
from tests.unit.rings_reference import Item, Model, ModelRing, rows
from tests.unit.rings_twins import TWINS

KEY = 0x20001


def filled(size: int, count: int) -> PerfImage:
    """
    Return a ring with messages at times 1, 2 and so on.
    """
    image = PerfImage(size)
    for index in range(count):
        assert image.append(PerfImage.sample(message(index + 1, KEY, bytes(24))))
    return image


def drainer_over(twin: Any, *images: Any, size: int = 40) -> Any:
    """
    Return a drainer that knows one key.
    """
    drainer = twin.Drainer(Framing())
    drainer.register(KEY, size)
    for cpu, image in enumerate(images):
        drainer.add_ring(cpu, image)
    return drainer


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("cpus", [1, 2, 3, 7])
def test_long_rings_merge_exactly(twin: Any, cpus: int) -> None:
    """
    Thousands of records on several CPUs, of sizes on both sides of what one copy moves.
    """
    sizes = {1: 16, 2: 40, 3: 112, 4: 136}
    drainer = twin.Drainer(Framing())
    for key, fixed in sizes.items():
        drainer.register(key, fixed)
    images = [PerfImage(1 << 16, (1 << 16) - 1000 + 8 * cpu) for cpu in range(cpus)]
    models = [ModelRing(cpu) for cpu in range(cpus)]
    model = Model(models)
    model.keys = set(sizes)
    for index in range(2009):
        cpu, key = index * 7 % 11 % cpus, 1 + index * 5 % 13 % len(sizes)
        # Now and then a record is older than the one before it on its CPU.
        time = 1000 + index - (3 if index % 97 == 0 else 0)
        content = message(time, key, bytes(index & 255 for _ in range(sizes[key] - 16)))
        record = PerfImage.sample(content)
        if images[cpu].append(record):
            item = Item("message", len(record), time, key, content, cpu)
            models[cpu].items.append(item)
    for cpu, image in enumerate(images):
        drainer.add_ring(cpu, image)

    for budget in (10_000, None):
        drained = drainer.drain(time_offset=5, budget=budget)
        expected = model.drain(1 << 63, budget or 8 << 20, merge=True)

        keys = list(dict.fromkeys(item.key for item in expected.released))
        assert [batch.key for batch in drained.batches] == keys
        assert drained.sequence.tolist() == [keys.index(item.key) for item in expected.released]
        for batch in drained.batches:
            mine = [item for item in expected.released if item.key == batch.key]
            assert bytes(batch) == rows(mine, batch.stride, 5)
        assert sum(count for _, _, count in drained.late) == sum(expected.late.values())
        assert drained.more is expected.more
    assert drainer.pending() == 0


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("cpus", [1, 2, 3])
@pytest.mark.parametrize("merge", [True, False])
def test_until_is_the_last_time_released(twin: Any, cpus: int, *, merge: bool) -> None:
    """
    In the middle of a ring, to the nanosecond, and ties on several CPUs together.
    """
    images = [filled(4096, 30) for _ in range(cpus)]
    drainer = drainer_over(twin, *images)
    for until, records in ((0, 0), (7, 7), (7, 0), (8, 1), (29, 21), (1 << 64 - 1, 1)):
        drained = drainer.drain(until, merge=merge)
        assert drained.records == cpus * records
        assert drained.late == []
        assert not drained.more


@pytest.mark.parametrize("twin", TWINS)
def test_a_kept_batch_is_not_overwritten(twin: Any) -> None:
    """
    Memory comes back to the drainer only when nobody looks at it.
    """
    image = filled(4096, 20)
    drainer = drainer_over(twin, image)
    first = drainer.drain().batches[0]
    kept = memoryview(first)
    copy = bytes(kept)
    del first
    for index in range(50):
        image.append(PerfImage.sample(message(100 + index, KEY, b"\xff" * 24)))
        drainer.drain()

    assert bytes(kept) == copy
    assert kept.readonly
    assert (kept.format, kept.ndim, kept.nbytes) == ("B", 1, 20 * 40)


@pytest.mark.parametrize("twin", TWINS)
def test_batches_outlive_their_drainer(twin: Any) -> None:
    """
    Rows stay valid after the drainer and its rings are gone.
    """
    image = filled(4096, 3)
    drainer = drainer_over(twin, image)
    drained = drainer.drain()
    before = bytes(drained.batches[0])
    del drainer
    gc.collect()

    assert bytes(drained.batches[0]) == before
    assert drained.sequence.tolist() == [0, 0, 0]


@pytest.mark.parametrize("twin", TWINS)
def test_a_removed_ring_is_let_go(twin: Any) -> None:
    """
    Neither the ring nor its memory is referenced after removal.
    """

    class Owner:
        def __init__(self) -> None:
            self.image = filled(4096, 3)

        def memory(self) -> RingMemory:
            return self.image.memory()

    owner = Owner()
    seen = weakref.ref(owner)
    drainer = drainer_over(twin, owner)
    with pytest.raises(BufferError):
        owner.image.data.append(0)
    drainer.remove_ring(0)

    owner.image.data.append(0)
    del owner
    gc.collect()
    assert seen() is None
    assert drainer.pending() == 0
    assert drainer.drain().records == 0


@pytest.mark.parametrize("twin", TWINS)
def test_a_drainer_in_a_cycle_is_collected(twin: Any) -> None:
    """
    A ring that refers to its drainer does not keep both alive.
    """

    class Owner:
        drainer: Any

        def memory(self) -> RingMemory:
            return PerfImage(64).memory()

    owner = Owner()
    seen = weakref.ref(owner)
    owner.drainer = drainer_over(twin, owner)
    del owner
    gc.collect()

    assert seen() is None


@pytest.mark.parametrize("twin", TWINS)
def test_the_budget_divides_a_backlog(twin: Any) -> None:
    """
    ``more`` says to come again, and nothing is lost or repeated between.
    """
    image = filled(4096, 50)
    drainer = drainer_over(twin, image)
    sizes, more = [], True
    while more:
        drained = drainer.drain(budget=3 * 56)
        sizes.append(drained.records)
        more = drained.more

    assert sizes == [3] * 16 + [2]
    assert drainer.received(KEY) == {0: 50}


@pytest.mark.parametrize("twin", TWINS)
def test_unregistering_leaves_unknown_records(twin: Any) -> None:
    """
    What comes after is counted, not lost silently; registering again counts from zero.
    """
    image = filled(4096, 5)
    drainer = drainer_over(twin, image)
    drainer.drain(until=2)
    assert drainer.received(KEY) == {0: 2}
    drainer.unregister(KEY)
    drained = drainer.drain()

    assert (drained.records, drained.unknown) == (0, 3)
    with pytest.raises(RingError, match=r"key 0x20001: is not registered"):
        drainer.received(KEY)
    drainer.register(KEY, 16)
    assert drainer.received(KEY) == {}


@pytest.mark.parametrize("twin", TWINS)
def test_many_keys_are_told_apart(twin: Any) -> None:
    """
    Thousands of keys, registered and unregistered, however they hash.
    """
    drainer = twin.Drainer(Framing())
    keys = [module << 0 | number << 16 for module in range(60) for number in range(1, 40)]
    for key in keys:
        drainer.register(key, 16)
    for key in keys[::3]:
        drainer.unregister(key)
    image = PerfImage(1 << 17)
    for time, key in enumerate(keys):
        assert image.append(PerfImage.sample(message(time, key)))
    drainer.add_ring(4, image)
    drained = drainer.drain()

    left = [key for index, key in enumerate(keys) if index % 3]
    assert [batch.key for batch in drained.batches] == left
    assert drained.unknown == len(keys) - len(left)
    assert all(drainer.received(key) == {4: 1} for key in left)


@pytest.mark.parametrize("twin", TWINS)
def test_another_framing(twin: Any) -> None:
    """
    Fields in another order and place; the time is moved where it stands.
    """
    framing = Framing(time_offset=12, key_offset=0, length_offset=4, cpu_offset=6, header_size=20)
    drainer = twin.Drainer(framing)
    drainer.register(9, 24)
    head = bytes([9, 0, 0, 0, 24, 0, 3, 0]) + bytes(4)
    image = BpfImage(4096)
    for time in (30, 20):
        assert image.append(BpfImage.record(head + time.to_bytes(8, "little") + b"tail"))
    drainer.add_ring(SHARED, image)
    drained = drainer.drain(time_offset=-20)

    rows_found = bytes(drained.batches[0])
    assert rows_found == b"".join(head + time.to_bytes(8, "little") + b"tail" for time in (0, 10))
    assert drainer.received(9) == {3: 2}
    assert drained.newest == 30


@pytest.mark.parametrize("twin", TWINS)
def test_reading_in_step(twin: Any) -> None:
    """
    One CPU's messages, whole, up to a time; what was odd is told by the next drain.
    """
    image = PerfImage(4096, 4096 - 64)
    contents = [message(time, KEY if time < 4 else 7, bytes([time]) * time) for time in range(1, 6)]
    for content in contents:
        assert image.append(PerfImage.sample(content))
        assert image.append(PerfImage.lost(2))
    drainer = drainer_over(twin, PerfImage(64), image)

    assert drainer.read(1, 0) == []
    assert drainer.read(1, 2) == contents[:2]
    assert drainer.read(0) == drainer.read(2) == []
    assert drainer.read(1) == contents[2:]
    assert image.produced == image.consumed
    assert drainer.received(KEY) == {1: 3}
    drained = drainer.drain()
    assert (drained.lost, drained.unknown, drained.records) == ([(1, 10)], 2, 0)


@pytest.mark.parametrize("twin", TWINS)
def test_a_shared_ring_is_not_read_in_step(twin: Any) -> None:
    """
    It holds messages of other CPUs that must not be passed over.
    """
    drainer = twin.Drainer(Framing())
    drainer.add_ring(3, BpfImage(64))
    with pytest.raises(RingError, match=r"only a perf ring can be read in step"):
        drainer.read(3)


@pytest.mark.parametrize("twin", TWINS)
def test_misuse_is_refused(twin: Any) -> None:
    """
    Each refusal names the thing, and leaves the drainer as it was.
    """
    image = PerfImage(64)
    drainer = drainer_over(twin, image)
    refusals = [
        (lambda: drainer.register(KEY, 40), "is registered already"),
        (lambda: drainer.register(1, 15), r"fixed size is 15, expected 16"),
        (lambda: drainer.register(1, 65536), r"fixed size is 65536"),
        (lambda: drainer.register(1 << 32, 16), "expected 32 bits"),
        (lambda: drainer.register(-1, 16), "expected 32 bits"),
        (lambda: drainer.unregister(1), "is not registered"),
        (lambda: drainer.add_ring(5, image), "was added already"),
        (lambda: drainer.add_ring(-2, PerfImage(64)), "cpu -2"),
        (lambda: drainer.add_ring(1 << 16, PerfImage(64)), "cpu 65536"),
        (lambda: drainer.remove_ring(9), "is not in this drainer"),
        (lambda: drainer.remove_ring(0, PerfImage(64)), "is not in this drainer"),
        (lambda: drainer.drain(budget=0), "budget is 0 bytes"),
    ]
    for attempt, reason in refusals:
        with pytest.raises(RingError, match=reason):
            attempt()
    with pytest.raises(OverflowError):
        drainer.drain(-1)
    assert drainer.drain().records == 0


def test_memory_that_is_no_ring_is_refused() -> None:
    """
    The arithmetic needs a power of two and positions that can be written.
    """
    memory = PerfImage(64).memory()
    with pytest.raises(RingError, match="expected a power of two"):
        attrs.evolve(memory, data=memoryview(bytearray(96)))
    with pytest.raises(RingError, match="expected a power of two"):
        attrs.evolve(memory, data=memoryview(b""))
    with pytest.raises(RingError, match="kind is 'pipe'"):
        attrs.evolve(memory, kind="pipe")
    with pytest.raises(RingError, match="ours is read-only"):
        attrs.evolve(memory, consumed=memoryview(bytes(8)))
    with pytest.raises(RingError, match="not 8 bytes"):
        attrs.evolve(memory, produced=memoryview(bytes(4)))


def test_framing_must_fit_its_header() -> None:
    """
    A field outside the header, or two in one place, would read something else.
    """
    with pytest.raises(RingError, match="length_offset is 15, expected 0 to 14"):
        Framing(length_offset=15)
    with pytest.raises(RingError, match="where another field is"):
        Framing(key_offset=6)
    with pytest.raises(RingError, match="header_size is 129"):
        Framing(header_size=129)
