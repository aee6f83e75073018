# SPDX-License-Identifier: Apache-2.0
"""
The data channel: read in step with control messages, bounded, open while it is wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import pytest

from kprobe_modules import Collector, RingOptions, channel
from kprobe_modules.libbpf import map as bpf_map
from tests.support import generator, hooked
from tests.support.generator import assert_closed, emit_one
from tests.support.libbpfs import descriptors
from tests.support.requirements import needs

if TYPE_CHECKING:
    from kprobe_modules import Record

BULK = 8


class NeverAsks(generator.GeneratorHandler):
    def on_size_24(  # type: ignore[override]
        self, time: int, sequence: int, check: int, value: int
    ) -> Record:
        return self.small(time, sequence, check, value)


def payload(sequence: int, length: int) -> bytes:
    return bytes([sequence & 0xFF]) * length


@pytest.mark.parametrize("transport", ["perf", "ringbuf"])
def test_payload_comes_with_the_message_that_announces_it(transport: str) -> None:
    needs.root()
    needs.cpus(2)
    with Collector(rings=RingOptions(transport=transport)) as collector:
        collector.attach(generator.MODULE, kind=BULK, tail_length=777)
        collector.attach(generator.renamed("other"), kind=BULK, tail_length=31)
        collector.flush()
        for turn in range(101):
            for name in ("generator", "other"):
                assert emit_one(collector, turn % 2, name) == 0
        records = collector.flush()
        for name, length in (("generator", 777), ("other", 31)):
            mine = [each for each in records if each.module == name]
            assert len(mine) == 101
            assert {each.record for each in mine} == {"bulk"}
            for each in mine:
                assert each.payloads == (payload(each.sequence, length),)  # type: ignore[attr-defined]
            totals = assert_closed(collector, name)
            assert totals["messages"]["bulk"] == {"emitted": 101, "received": 101, "lost": 0}
            assert totals["unclaimed"] == 0


def test_lost_payload_is_counted_and_its_message_not_sent() -> None:
    needs.root()
    with Collector(rings=RingOptions(data_pages=1)) as collector:
        collector.attach(generator.MODULE, kind=BULK, tail_length=1000)
        collector.flush()
        results = [emit_one(collector, 0) for _ in range(29)]
        lost = sum(result != 0 for result in results)
        assert lost > 20
        records = collector.flush()
        assert len([each for each in records if isinstance(each, generator.Bulk)]) == 29 - lost
        assert [(each.message, each.count) for each in records if each.record == "lost"] == [  # type: ignore[attr-defined]
            ("bulk", lost)
        ]
        assert_closed(collector)


def test_payload_that_nobody_asks_for_is_bounded_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs.root()
    monkeypatch.setattr(channel, "KEEP_BYTES", 10_000)
    with Collector(rings=RingOptions(data_pages=4)) as collector:
        collector.attach(attrs.evolve(generator.MODULE, handler=NeverAsks), kind=BULK)
        collector.attach(generator.renamed("other"), kind=BULK)
        collector.flush()
        for turn in range(997):
            assert emit_one(collector, 0) == 0
            if turn % 53 == 0:
                # The other one, on the same CPU, has its payload none the less.
                assert emit_one(collector, 0, "other") == 0
            records = collector.poll()
            others = [each for each in records if each.module == "other"]
            assert all(isinstance(each, generator.Bulk) for each in others)
        collector.flush()
        totals = assert_closed(collector)
        assert totals["messages"]["bulk"] == {"emitted": 997, "received": 997, "lost": 0}
        opened = collector._intake.channel
        assert opened is not None
        kept = sum(queue.bytes for queue in opened._queues.values())
        assert kept <= 10_000
        chunks = sum(len(queue.chunks) for queue in opened._queues.values())
        assert chunks + totals["unclaimed"] == 997
        assert totals["unclaimed"] > 800
        assert assert_closed(collector, "other")["unclaimed"] == 0


def test_payload_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    needs.root()
    monkeypatch.setattr(channel, "KEEP_NS", 10_000_000)
    with Collector() as collector:
        collector.attach(attrs.evolve(generator.MODULE, handler=NeverAsks), kind=BULK)
        for _ in range(13):
            emit_one(collector, 0)
        generator.take_until(
            collector, lambda _: collector.stats().modules["generator"]["unclaimed"] == 13
        )
        opened = collector._intake.channel
        assert opened is not None
        assert not any(queue.chunks for queue in opened._queues.values())


def channel_ids(collector: Collector) -> list[bytes]:
    return list(bpf_map.keys(collector._intake.common.fd("data_channel")))


def test_open_from_the_first_module_to_the_last() -> None:
    needs.root()
    with Collector() as collector:
        closed = descriptors()
        collector.attach(hooked.MODULE, quiet=True)
        assert collector._intake.channel is None
        collector.detach("hooked")
        assert descriptors() == closed
        collector.attach(generator.MODULE)
        opened = collector._intake.channel
        assert opened is not None
        collector.attach(generator.renamed("other"))
        assert collector._intake.channel is opened
        collector.detach("generator")
        assert collector._intake.channel is opened
        collector.attach(hooked.MODULE, quiet=True)
        collector.detach("other")
        assert collector._intake.channel is None
        collector.detach("hooked")
        assert descriptors() == closed
        # And again, with everything in working order.
        collector.attach(generator.MODULE, kind=BULK)
        collector.flush()
        assert emit_one(collector, 0) == 0
        assert [each.record for each in collector.flush()] == ["bulk"]


def test_nothing_of_a_detached_module_is_kept() -> None:
    needs.root()
    with Collector() as collector:
        collector.attach(generator.renamed("other"))
        for _ in range(5):
            collector.attach(attrs.evolve(generator.MODULE, handler=NeverAsks), kind=BULK)
            for _ in range(7):
                emit_one(collector, 0)
            collector.detach("generator")
            assert collector.stats().modules["generator"]["messages"]["bulk"]["received"] == 7
        opened = collector._intake.channel
        assert opened is not None
        assert opened._queues == {}
        assert opened.received == {}
        assert opened.unclaimed == {}
