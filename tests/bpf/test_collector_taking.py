# SPDX-License-Identifier: Apache-2.0
"""
The ways to take records: pulling, iterating, asynchronously, in batches, all at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import resource
import select
import struct
import threading
from time import monotonic, thread_time
from typing import TYPE_CHECKING

import pytest

from kprobe_modules import Collector, Failure, RingOptions
from kprobe_modules.transport import PAGE
from tests.support import generator
from tests.support.generator import assert_closed, generate
from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from kprobe_modules import Record

TRANSPORTS = ["perf", "ringbuf"]


@contextlib.contextmanager
def collecting(**options: object) -> Iterator[Collector]:
    """
    Open a collector with the generator in it and nothing to take.
    """
    needs.root()
    with Collector(**options) as collector:  # type: ignore[arg-type]
        collector.attach(generator.MODULE)
        collector.flush()
        yield collector


def sequences(records: list[Record]) -> list[int]:
    return [each.sequence for each in records]  # type: ignore[attr-defined]


def test_poll_with_limits() -> None:
    with collecting() as collector:
        generate(collector, 1009)
        collector.resync("generator")  # it is all in the backlog now
        taken: list[Record] = []
        for limit in (0, 1, 2, 3, 5, 7, 503):
            part = collector.poll(limit)
            assert len(part) == limit
            taken += part
        taken += collector.poll()
        assert sequences(taken[:-1]) == list(range(1009))
        assert taken[-1].record == "steady"


def test_poll_without_time_returns_at_once() -> None:
    with collecting(interval=30) as collector:
        start = monotonic()
        for _ in range(29):
            assert collector.poll() == []
        assert monotonic() - start < 2


def test_poll_waits_for_the_first_record_only() -> None:
    with collecting(interval=0.02) as collector:
        start = monotonic()
        assert collector.poll(timeout=0.3) == []
        assert 0.3 <= monotonic() - start < 2
        timer = threading.Timer(0.2, generate, (collector, 5))
        timer.start()
        start = monotonic()
        records = collector.poll(timeout=30)
        assert monotonic() - start < 10
        assert records
        timer.join()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_watermark_ends_the_wait(transport: str) -> None:
    rings = RingOptions(transport=transport, pages=8, watermark=4096)
    with collecting(rings=rings, interval=60) as collector:
        for _ in range(5):
            timer = threading.Timer(0.1, generate, (collector, 101))
            timer.start()
            start = monotonic()
            assert collector.poll(timeout=60)
            assert monotonic() - start < 20
            timer.join()
            collector.flush()


def test_a_quarter_of_a_ring_is_the_default_watermark() -> None:
    with collecting(rings=RingOptions(pages=8), interval=60) as collector:
        generate(collector, 1, cpu=0)
        message = collector._intake.drainer.pending()
        collector.flush()
        poll = select.poll()
        poll.register(collector.fileno(), select.POLLIN)
        generate(collector, 9 * PAGE // 4 // message, cpu=0)
        assert poll.poll(5000)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_below_the_watermark_nothing_wakes(transport: str) -> None:
    rings = RingOptions(transport=transport, pages=8)
    with collecting(rings=rings, interval=60) as collector:
        generate(collector, 7)
        poll = select.poll()
        poll.register(collector.fileno(), select.POLLIN)
        assert poll.poll(200) == []
        assert len(collector.poll()) == 7


def becomes_quiet(collector: Collector, poll: select.poll) -> bool:
    """
    Serve the collector until its descriptor rests: a perf wake-up may come after its message.
    """
    deadline = monotonic() + 10
    while poll.poll(0):
        if monotonic() > deadline:
            return False
        collector.poll()
    return True


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_descriptor_is_quiet_once_served(transport: str) -> None:
    """
    Else a program that waits on it would spin.
    """
    rings = RingOptions(transport=transport, pages=8, watermark=2048)
    with collecting(rings=rings) as collector:
        poll = select.poll()
        poll.register(collector.fileno(), select.POLLIN)
        for _ in range(7):
            generate(collector, 101)
            assert poll.poll(5000)
            collector.flush()
            assert becomes_quiet(collector, poll)
            # What comes afterwards asks by itself, and is too little. (A perf ring wakes
            # at each multiple of its watermark, wherever the reader is.)
            generate(collector, 1)
            assert transport == "perf" or poll.poll(0) == []
            assert len(collector.flush()) == 1
            assert becomes_quiet(collector, poll)
        collector.resync("generator")
        assert poll.poll(5000)
        collector.poll()
        assert poll.poll(0) == []


def test_records_with_limits() -> None:
    with collecting() as collector:
        generate(collector, 101)
        assert sequences(list(collector.records(max_records=53))) == list(range(53))
        assert list(collector.records(max_records=0)) == []
        iterator = collector.records(timeout=0.2)
        assert sequences([next(iterator) for _ in range(7)]) == list(range(53, 60))
        iterator.close()
        # What an iteration did not take is for the next.
        start = monotonic()
        assert sequences(list(collector.records(timeout=0.2))) == list(range(60, 101))
        assert 0.2 <= monotonic() - start < 5


def test_records_end_under_load() -> None:
    stop = threading.Event()
    with collecting(rings=RingOptions(pages=8), interval=0.01) as collector:

        def load() -> None:
            while not stop.is_set():
                generate(collector, 31)
                stop.wait(0.001)

        writer = threading.Thread(target=load)
        writer.start()
        try:
            start = monotonic()
            count = sum(1 for _ in collector.records(timeout=0.5))
            assert 0.5 <= monotonic() - start < 10
            assert count > 31
        finally:
            stop.set()
            writer.join()


def test_several_threads_share_the_records() -> None:
    with collecting(interval=0.005) as collector:
        taken: list[list[Record]] = [[], [], []]

        def consume(mine: list[Record]) -> None:
            mine.extend(collector)

        threads = [threading.Thread(target=consume, args=(mine,)) for mine in taken]
        for thread in threads:
            thread.start()
        for _ in range(53):
            generate(collector, 101)
        deadline = monotonic() + 30
        while received(collector) < 53 * 101:
            assert monotonic() < deadline
        collector.close()
        for thread in threads:
            thread.join(10)
        assert sorted(each for mine in taken for each in sequences(mine)) == list(range(53 * 101))
        for mine in taken:
            assert sequences(mine) == sorted(sequences(mine))


def received(collector: Collector) -> int:
    count = collector.stats().modules["generator"]["received"]
    assert isinstance(count, int)
    return count


# -- asyncio ---------------------------------------------------------------------------


def run(main: Callable[[Collector], Coroutine[object, object, None]], **options: object) -> None:
    with collecting(**options) as collector:
        asyncio.run(main(collector))


async def gather(collector: Collector, **limits: float) -> list[Record]:
    return [record async for record in collector.arecords(**limits)]  # type: ignore[arg-type]


def test_async_iteration() -> None:
    async def main(collector: Collector) -> None:
        generate(collector, 101)
        assert sequences(await gather(collector, max_records=53)) == list(range(53))
        start = monotonic()
        assert sequences(await gather(collector, timeout=0.2)) == list(range(53, 101))
        assert 0.2 <= monotonic() - start < 5

    run(main)


def test_async_iteration_leaves_the_loop_alone() -> None:
    """
    Others run while it waits, and while records never end.
    """

    async def main(collector: Collector) -> None:
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0.01)
                beats += 1

        heart = asyncio.create_task(beat())
        before = thread_time()
        assert await gather(collector, timeout=1) == []
        assert beats > 30
        # Neither does it spin.
        assert thread_time() - before < 0.5
        stop = threading.Event()

        def load() -> None:
            while not stop.is_set():
                generate(collector, 101)

        writer = threading.Thread(target=load)
        writer.start()
        beats = 0
        count = 0
        async with contextlib.aclosing(collector.arecords(timeout=0.5)) as records:
            async for _ in records:
                count += 1
        stop.set()
        writer.join()
        assert count > 101
        assert beats >= 2
        heart.cancel()

    run(main, rings=RingOptions(pages=8))


def test_async_iteration_does_not_spin_after_an_attach() -> None:
    async def main(collector: Collector) -> None:
        collector.attach(generator.renamed("other"))
        before = thread_time()
        records = await gather(collector, timeout=1)
        assert [each.record for each in records] == ["steady"]
        assert thread_time() - before < 0.5

    run(main)


def test_two_async_iterations_share_the_records() -> None:
    async def main(collector: Collector) -> None:
        came: list[list[Record]] = [[], []]

        async def consume(mine: list[Record]) -> None:
            async for record in collector:
                mine.append(record)  # noqa: PERF401 - the length is looked at meanwhile

        tasks = [asyncio.create_task(consume(mine)) for mine in came]
        for _ in range(11):
            await asyncio.sleep(0.02)
            generate(collector, 31)
        deadline = monotonic() + 30
        while sum(map(len, came)) < 11 * 31:
            assert monotonic() < deadline
            await asyncio.sleep(0.02)
        collector.close()
        await asyncio.gather(*tasks)
        assert sorted(each for mine in came for each in sequences(mine)) == list(range(11 * 31))

    run(main, interval=0.01)


def test_async_iteration_ends_with_the_collector() -> None:
    async def main(collector: Collector) -> None:
        task = asyncio.create_task(gather(collector))
        await asyncio.sleep(0.05)
        collector.close()
        assert await asyncio.wait_for(task, 10) == []

    run(main)


def test_async_for_over_the_collector_itself() -> None:
    async def main(collector: Collector) -> None:
        generate(collector, 7)
        came: list[Record] = []
        async for record in collector:
            came.append(record)
            if len(came) == 5:
                break
        assert sequences(came + collector.flush()) == list(range(7))

    run(main)


# -- batches ---------------------------------------------------------------------------


def test_batches_are_columns() -> None:
    with collecting() as collector:
        generate(collector, 600)
        batches = [batch for part in collector.batches(timeout=0.2) for batch in part]
        assert {batch.message for batch in batches} == {f"size_{size}" for size in generator.SIZES}
        assert sum(map(len, batches)) == 600
        found = []
        for batch in batches:
            assert batch.module == "generator"
            assert memoryview(batch.rows).nbytes == len(batch) * batch.dtype["itemsize"]
            sequence, check, time = batch.columns("sequence", "check", "time")
            assert [one ^ other for one, other in zip(sequence, check, strict=True)] == [
                (1 << 64) - 1
            ] * len(batch)
            assert list(time) == sorted(time)
            found += sequence
        assert sorted(found) == list(range(600))
        # No handler has seen them, but they are accounted for.
        assert collector.poll() == []
        assert assert_closed(collector)["received"] == 600


def test_batches_describe_themselves() -> None:
    """
    The way ``numpy.dtype`` takes it; so that numpy is asked too, where it is installed.
    """
    numbers = {"<u8": "<Q", "<i8": "<q", "<u4": "<I", "<i4": "<i", "<u2": "<H", "|u1": "<B"}
    with collecting() as collector:
        generate(collector, 6 * 17)
        for part in collector.batches(timeout=0.2):
            for batch in part:
                described = batch.dtype
                rows = memoryview(batch.rows)
                for name in ("time", "sequence", "value"):
                    place = described["names"].index(name)
                    form = numbers[described["formats"][place]]
                    offset, size = described["offsets"][place], described["itemsize"]
                    column = [
                        struct.unpack_from(form, rows, row * size + offset)[0]
                        for row in range(len(batch))
                    ]
                    assert [column] == [list(each) for each in batch.columns(name)]
                    if importlib.util.find_spec("numpy"):
                        numpy = importlib.import_module("numpy")
                        table = numpy.frombuffer(batch.rows, dtype=numpy.dtype(described))
                        assert table[name].tolist() == column


def test_batches_of_ragged_messages() -> None:
    needs.root()
    with Collector() as collector:
        collector.attach(generator.MODULE, kind=7, tail_length=13)
        collector.flush()
        for _ in range(11):
            generator.emit_one(collector, 0)
        found: dict[int, bytes] = {}
        for part in collector.batches(timeout=0.2):
            for batch in part:
                found.update(zip(*batch.columns("sequence", "tail"), strict=True))
        assert found == {each: bytes([each]) * 13 for each in range(11)}


def test_batches_keep_house_too() -> None:
    """
    A loss is noticed although nobody polls.
    """
    with collecting(rings=RingOptions(pages=1)) as collector:
        generate(collector, 503)
        for _ in collector.batches(timeout=2.5):
            pass
        assert {each.record for each in collector.poll()} == {"lost", "steady"}


# -- all at once, and too much -----------------------------------------------------------


def test_flush_is_everything_until_now() -> None:
    with collecting(interval=30) as collector:
        for count in (1, 2, 3, 5, 7, 997):
            generate(collector, count)
            assert len(collector.flush()) == count


def test_the_backlog_is_bounded() -> None:
    """
    Attaching and scanning again and again, while nobody takes anything.
    """
    needs.root()
    with Collector(backlog=101) as collector:
        collector.attach(generator.MODULE)
        for _ in range(31):
            generate(collector, 53)
            collector.resync("generator")
            assert collector._delivery.waiting <= 101
        records = collector.flush()
        assert len(records) == 101 + 1
        # It stands where they are missing, before the oldest one that is left.
        assert isinstance(records[0], Failure)
        assert records[0].where == "backlog"
        discarded = collector.stats().modules["generator"]["discarded"]
        assert f"{discarded} records discarded" in records[0].error
        # All messages, one steady for each scan and the first: here or discarded.
        assert discarded + len(records) - 1 == 31 * 54 + 1


def test_idle_costs_next_to_nothing() -> None:
    with collecting(interval=0.1) as collector:
        before = resource.getrusage(resource.RUSAGE_SELF)
        start = monotonic()
        assert collector.poll(timeout=5) == []
        took = monotonic() - start
        after = resource.getrusage(resource.RUSAGE_SELF)
        used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        # Some 0.2 % on a machine of today; an emulated one is much slower, and spinning is 100.
        assert used / took < 0.1


def test_stats_are_kept_after_detach() -> None:
    with collecting() as collector:
        generate(collector, 23)
        collector.detach("generator")
        stats = collector.stats()
        assert stats.module == "collector"
        assert stats.modules["generator"]["received"] == 23
        assert assert_closed(collector)["emitted"] == 23
        collector.attach(generator.MODULE)
        assert collector.stats().modules["generator"]["emitted"] == 0
