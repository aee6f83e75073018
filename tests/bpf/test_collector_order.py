# SPDX-License-Identifier: Apache-2.0
"""
Records leave in the order of their time across CPUs, with either transport.
"""

from __future__ import annotations

import threading
from itertools import pairwise
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING

import pytest

from kprobe_modules import Collector, Late, RingOptions, as_dict
from tests.support import generator
from tests.support.generator import assert_closed, emit_one, generate
from tests.support.requirements import needs

if TYPE_CHECKING:
    from kprobe_modules import Record

TRANSPORTS = ["perf", "ringbuf"]


def load(collector: Collector, cpu: int, rounds: int) -> None:
    for _ in range(rounds):
        generate(collector, 37, cpu)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_two_cpus_are_merged(transport: str) -> None:
    needs.root()
    needs.cpus(2)
    with Collector(rings=RingOptions(transport=transport), interval=0.01) as collector:
        collector.attach(generator.MODULE)
        writers = [threading.Thread(target=load, args=(collector, cpu, 89)) for cpu in (0, 1)]
        records: list[Record] = []
        for writer in writers:
            writer.start()
        deadline = monotonic() + 60
        while any(writer.is_alive() for writer in writers):
            assert monotonic() < deadline
            records += collector.poll(timeout=0.01)
        for writer in writers:
            writer.join()
        records += collector.flush()
        totals = assert_closed(collector)
        assert totals["emitted"] == 2 * 89 * 37
        assert totals["lost"] == 0
        late = sum(each.count for each in records if isinstance(each, Late))
        assert totals["late"] == late
        if not late:
            assert all(one.time <= other.time for one, other in pairwise(records))
        # A virtual CPU may be taken away between a program's time stamp and its output.
        assert late <= 5
        for cpu in (0, 1):
            counted = (each for each in records if isinstance(each, generator.Counted))
            mine = [each.sequence for each in counted if each.cpu == cpu]
            assert mine == sorted(mine)
            assert len(mine) > 37


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_is_newer_than_the_fence_waits(transport: str) -> None:
    needs.root()
    needs.cpus(2)
    with Collector(rings=RingOptions(transport=transport)) as collector:
        collector.attach(generator.MODULE)
        collector.flush()
        intake = collector._intake
        for cpu in (0, 1):
            generate(collector, 7, cpu)
        between = monotonic_ns()
        for cpu in (1, 0):
            generate(collector, 11, cpu)
        intake.fence()
        assert intake.take(between).records == 14
        assert intake.horizon == between
        assert intake.take(between).records == 0
        assert intake.take(monotonic_ns()).records == 22
        assert not intake.more


def test_alternating_cpus_alternate(library: object) -> None:
    needs.root()
    needs.cpus(2)
    with Collector(library=library) as collector:  # type: ignore[arg-type]
        collector.attach(generator.MODULE, kind=2)
        for turn in range(101):
            assert emit_one(collector, turn % 2) == 0
        records = [each for each in collector.flush() if each.record == "counted"]
        assert [each.cpu for each in records] == [turn % 2 for turn in range(101)]  # type: ignore[attr-defined]


def without_time(record: Record) -> dict[str, object]:
    return {name: value for name, value in as_dict(record).items() if name != "time"}


def test_both_transports_give_the_same_records() -> None:
    needs.root()
    needs.cpus(2)
    seen = {}
    for transport in TRANSPORTS:
        records = []
        with Collector(rings=RingOptions(transport=transport)) as collector:
            for kind in range(1, 9):
                collector.attach(generator.MODULE, kind=kind, tail_length=17 + kind)
                for turn in range(11):
                    assert emit_one(collector, turn % 2) == 0
                records += collector.detach("generator")
        seen[transport] = [without_time(each) for each in records]
    assert seen["perf"] == seen["ringbuf"]
    assert {each["record"] for each in seen["perf"]} == {
        "steady",
        "small",
        "counted",
        "tailed",
        "bulk",
    }


def test_what_the_framework_says_is_in_order_too() -> None:
    needs.root()
    with Collector() as collector:
        records: list[Record] = []
        for _ in range(7):
            collector.attach(generator.MODULE)
            generate(collector, 11)
            collector.resync("generator")
            generate(collector, 13)
            records += collector.poll()
            records += collector.detach("generator")
        assert all(one.time <= other.time for one, other in pairwise(records))
        assert [each.record for each in records].count("steady") == 14


def test_time_is_since_the_epoch() -> None:
    needs.root()
    from time import time_ns

    with Collector() as collector:
        collector.attach(generator.MODULE)
        collector.flush()
        before = time_ns()
        generate(collector, 3)
        after = time_ns()
        for record in collector.flush():
            assert before - 5_000_000 <= record.time <= after + 5_000_000
