# SPDX-License-Identifier: Apache-2.0
"""
Loss is data: ``emitted = received + lost`` closes exactly, whatever is done to the rings.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from kprobe_modules import Collector, Lost, RingOptions, Steady
from tests.support import generator
from tests.support.generator import assert_closed, generate, take_until
from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kprobe_modules import Record

MEAN_SIZE = 90
"""Bytes of the mean message of ``generate`` in a ring, and less: what to overload with."""


def lost_of(records: Iterable[Record]) -> Counter[tuple[str, str, int]]:
    lost: Counter[tuple[str, str, int]] = Counter()
    for record in records:
        if isinstance(record, Lost):
            assert record.count > 0
            lost[record.module, record.message, record.cpu] += record.count
    return lost


def assert_counted(collector: Collector, records: list[Record], name: str = "generator") -> int:
    """
    Check counters, records and what the records say of losses against each other.
    """
    totals = assert_closed(collector, name)
    came = [each for each in records if each.module == name and hasattr(each, "sequence")]
    assert len(came) == totals["received"]
    lost = lost_of(each for each in records if each.module == name)
    by_message: Counter[str] = Counter()
    for (_, message, _), count in lost.items():
        by_message[message] += count
    counted = {message: each["lost"] for message, each in totals["messages"].items()}
    assert by_message == Counter(counted)
    return totals["lost"]


@pytest.mark.parametrize("transport", ["perf", "ringbuf"])
@pytest.mark.parametrize("pages", [1, 2, 8])
def test_twenty_times_overloaded(transport: str, pages: int) -> None:
    needs.root()
    needs.cpus(2)
    rings = RingOptions(transport=transport, pages=pages)
    # Prime, and more than twenty rings full (the ring buffer stands for both CPUs' rings).
    flood = {1: 1823, 2: 3643, 8: 14591}[pages]
    assert flood * MEAN_SIZE > 20 * pages * 4096 * 2
    with Collector(rings=rings) as collector:
        collector.attach(generator.MODULE)
        records: list[Record] = []
        for cpu in (0, 1):
            generate(collector, flood, cpu)
        records += collector.flush()
        # What fits afterwards goes round the ring's end many times.
        for small in (7, 11, 13, 17, 19, 23, 29) * 7:
            generate(collector, small, small % 2)
            records += collector.flush()
        # And once more while nobody looks.
        generate(collector, flood, 1)
        records += collector.flush()
        lost = assert_counted(collector, records)
        emitted = collector.stats().modules["generator"]["emitted"]
        assert emitted == 3 * flood + 7 * (7 + 11 + 13 + 17 + 19 + 23 + 29)
        assert lost > 2 * flood * 9 // 10
        # The overload is over: nothing is lost any more, and nothing is left behind.
        generate(collector, 5, 0)
        assert [each.record for each in collector.flush()].count("lost") == 0
        assert collector.detach("generator") == []


def test_losses_are_told_per_cpu_and_message() -> None:
    needs.root()
    needs.cpus(2)
    with Collector(rings=RingOptions(pages=1)) as collector:
        collector.attach(generator.MODULE)
        generate(collector, 997, cpu=1)
        lost = lost_of(collector.flush())
        assert {cpu for _, _, cpu in lost} == {1}
        assert {message for _, message, _ in lost} == {f"size_{size}" for size in generator.SIZES}
        received = collector.stats().modules["generator"]["received"]
        assert sum(lost.values()) == 997 - received


def test_a_consumer_that_stops_and_comes_back() -> None:
    needs.root()
    with Collector(rings=RingOptions(pages=4)) as collector:
        collector.attach(generator.MODULE)
        records: list[Record] = []
        for _ in range(3):
            for _ in range(31):
                generate(collector, 101)  # nobody polls
            records += collector.poll()
            generate(collector, 53)  # somebody does
            records += take_until(collector, lambda came: len(came) >= 53)
        records += collector.flush()
        assert collector.stats().modules["generator"]["emitted"] == 3 * (31 * 101 + 53)
        assert assert_counted(collector, records) > 0


def test_what_was_lost_at_the_end_is_told_by_detach() -> None:
    needs.root()
    with Collector(rings=RingOptions(pages=1)) as collector:
        collector.attach(generator.MODULE)
        collector.poll()
        generate(collector, 887)
        last = collector.detach("generator")
        assert assert_counted(collector, last) > 0
        assert collector.poll(timeout=0.05) == []


@pytest.mark.parametrize("transport", ["perf", "ringbuf"])
def test_who_lost_something_is_scanned_again_and_nobody_else(transport: str) -> None:
    needs.root()
    with Collector(rings=RingOptions(transport=transport, pages=2)) as collector:
        collector.attach(generator.MODULE)
        collector.attach(generator.renamed("bystander"))
        first = collector.flush()
        assert [each.module for each in first if isinstance(each, Steady)] == [
            "generator",
            "bystander",
        ]
        generate(collector, 5, name="bystander")
        assert len(collector.flush()) == 5
        generate(collector, 1009)
        records = take_until(collector, lambda came: any(isinstance(each, Steady) for each in came))
        records += collector.flush()
        again = [each for each in records if isinstance(each, Steady)]
        assert [(each.module, each.resync) for each in again] == [("generator", True)]
        assert {each.module for each in records if isinstance(each, Lost)} == {"generator"}
        assert assert_closed(collector, "bystander")["lost"] == 0
        # Nothing more is lost, so that nothing more is scanned.
        assert take_nothing(collector) == []


def take_nothing(collector: Collector) -> list[Record]:
    """
    Let more than one round of housekeeping pass.
    """
    records = []
    for _ in range(15):
        records += collector.poll(timeout=0.1)
    return records


def test_a_message_that_found_no_room_to_be_built_is_lost(library: object) -> None:
    needs.root()
    from kprobe_modules.libbpf import test_run

    with Collector(library=library) as collector:  # type: ignore[arg-type]
        collector.attach(generator.MODULE)
        handler = collector.find("generator")
        assert isinstance(handler, generator.GeneratorHandler)
        assert test_run(handler.context.program_fd("exhaust_scratch"), cpu=0) == 4
        lost = lost_of(collector.flush())
        assert lost == {("generator", "ragged", 0): 1}
        assert_closed(collector)


def test_an_older_module_is_not_charged_again(library: object) -> None:
    needs.root()
    with Collector(rings=RingOptions(pages=1), library=library) as collector:  # type: ignore[arg-type]
        collector.attach(generator.MODULE)
        generate(collector, 503)
        first = collector.detach("generator")
        assert sum(lost_of(first).values()) > 0
        collector.attach(generator.MODULE)
        generate(collector, 3)
        again = collector.flush()
        assert sum(lost_of(again).values()) == 0
        assert collector.stats().modules["generator"]["emitted"] == 3
