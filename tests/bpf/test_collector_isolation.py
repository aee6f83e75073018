# SPDX-License-Identifier: Apache-2.0
"""
What one module or consumer does wrong stays its own, is counted, and is reported.
"""
# ruff: noqa: ARG002 - a handler's parameters say what is decoded

from __future__ import annotations

import threading
import time as clock
from itertools import pairwise
from typing import TYPE_CHECKING

import attrs
import pytest

from kprobe_modules import Collector, Failure, Record, Steady
from tests.support import generator
from tests.support.generator import assert_closed, generate, take_until
from tests.support.libbpfs import wait_until
from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Iterable


def messages(records: Iterable[Record], name: str) -> list[Record]:
    return [
        each for each in records if each.module == name and not isinstance(each, Steady | Failure)
    ]


def failures(records: Iterable[Record]) -> list[Failure]:
    return [each for each in records if isinstance(each, Failure)]


class Raises(generator.GeneratorHandler):
    def on_size_40(self, time: int, cpu: int, sequence: int) -> Record:
        msg = f"no {sequence}"
        raise ValueError(msg)


class Stalls(generator.GeneratorHandler):
    def on_size_40(self, time: int, cpu: int, sequence: int) -> Record:
        clock.sleep(0.3)
        return super().on_size_40(time, cpu, sequence)


class ReturnsNonsense(generator.GeneratorHandler):
    def on_size_40(self, time: int, cpu: int, sequence: int) -> Record:
        return 40  # type: ignore[return-value]

    def on_size_56(self, time: int, cpu: int, sequence: int) -> Record:
        return [None]  # type: ignore[return-value]


def test_a_handler_that_raises_loses_that_message_only() -> None:
    needs.root()
    with Collector() as collector:
        collector.attach(attrs.evolve(generator.MODULE, handler=Raises))
        collector.attach(generator.renamed("bystander"))
        collector.flush()
        generate(collector, 601)
        generate(collector, 601, name="bystander")
        records = collector.flush()
        assert len(messages(records, "bystander")) == 601
        # A hundred of 601, the second of six, failed.
        assert len(messages(records, "generator")) == 601 - 100
        told = failures(records)
        assert [(each.module, each.where) for each in told] == [("generator", "on_size_40")]
        assert told[0].error == "ValueError: no 1"
        # It bears the time of telling, and stands where that belongs.
        assert all(one.time <= other.time for one, other in pairwise(records))
        stats = collector.stats().modules
        assert (stats["generator"]["errors"], stats["bystander"]["errors"]) == (100, 0)
        assert_closed(collector)


def test_failures_are_reported_once_a_second() -> None:
    needs.root()
    with Collector() as collector:
        collector.attach(attrs.evolve(generator.MODULE, handler=Raises))
        collector.flush()
        start = clock.monotonic()
        told: list[Failure] = []
        rounds = 0
        while clock.monotonic() - start < 2.5:
            generate(collector, 6)
            rounds += 1
            told += failures(collector.flush())
        took = clock.monotonic() - start
        assert 2 <= len(told) <= took + 1
        assert collector.stats().modules["generator"]["errors"] == rounds
        # The ones in between are not forgotten.
        assert all("more since the last report" in each.error for each in told[1:])


def test_a_handler_that_stalls_is_told_and_counted() -> None:
    needs.root()
    with Collector() as collector:
        collector.attach(attrs.evolve(generator.MODULE, handler=Stalls))
        collector.flush()
        generate(collector, 11)
        records = collector.flush()
        assert len(messages(records, "generator")) == 11
        told = failures(records)
        assert len(told) == 1
        assert told[0].where == "on_size_40"
        assert int(told[0].error.split()[1]) >= 300
        assert collector.stats().modules["generator"]["stalls"] == 2


def test_a_handler_that_returns_nonsense_is_told_so() -> None:
    needs.root()
    with Collector() as collector:
        collector.attach(attrs.evolve(generator.MODULE, handler=ReturnsNonsense))
        collector.flush()
        generate(collector, 12)
        records = collector.flush()
        assert len(messages(records, "generator")) == 8
        told = {each.where: each.error for each in failures(records)}
        assert told.keys() == {"on_size_40", "on_size_56"}
        assert "returned 40" in told["on_size_40"]
        assert "None among its records" in told["on_size_56"]


@attrs.define
class Odd(Record, module="generator"):
    """
    Refuses every seventh of its sequence.
    """

    sequence: int = attrs.field()
    check: int

    @sequence.validator
    def _refuse(self, _attribute: object, value: int) -> None:
        if value % 7 == 5:
            msg = f"{value} is no good"
            raise ValueError(msg)


class Direct(generator.Handler):
    direct = {"size_24": Odd}  # noqa: RUF012 - as in Handler

    def __init__(self, context: generator.Context) -> None:
        super().__init__(context)
        context.provide("generator", self)


class DirectAndHandled(Direct):
    def on_size_40(self, time: int, cpu: int, sequence: int) -> Record:
        return generator.Counted(time, cpu, sequence, 40)


@pytest.mark.parametrize(("handler", "others"), [(Direct, 0), (DirectAndHandled, 50)])
def test_a_record_class_that_refuses_values(handler: type[Direct], others: int) -> None:
    """
    The fast path goes on too: only the records that cannot be made are missing.
    """
    needs.root()
    with Collector() as collector:
        collector.attach(attrs.evolve(generator.MODULE, handler=handler))
        collector.attach(generator.renamed("bystander"))
        collector.flush()
        generate(collector, 300)
        generate(collector, 59, name="bystander")
        records = collector.flush()
        made = [each for each in records if isinstance(each, Odd)]
        assert [each.sequence for each in made] == [
            each for each in range(0, 300, 6) if each % 7 != 5
        ]
        assert all(each.check == each.sequence ^ (1 << 64) - 1 for each in made)
        assert sum(isinstance(each, generator.Counted) for each in records) == others + 49
        assert len(messages(records, "bystander")) == 59
        assert [each.where for each in failures(records)] == ["record Odd"]
        assert collector.stats().modules["generator"]["errors"] == 7


def test_a_direct_record_class_alone() -> None:
    """
    Without any other message between, and with the whole drain on the fast path.
    """
    needs.root()
    with Collector() as collector:
        collector.attach(attrs.evolve(generator.MODULE, handler=Direct), kind=1)
        collector.flush()
        for _ in range(29):
            generator.emit_one(collector, 0)
        records = collector.flush()
        assert [each.sequence for each in records if isinstance(each, Odd)] == [
            each for each in range(29) if each % 7 != 5
        ]
        assert collector.stats().modules["generator"]["errors"] == 4


class TicksAndFails(generator.GeneratorHandler):
    tick_interval = 0.01

    def tick(self, now: int) -> Iterable[Record]:
        msg = "tock"
        raise RuntimeError(msg)

    def steady(self, *, resync: bool) -> Iterable[Record]:
        msg = "unsteady"
        raise RuntimeError(msg)

    def detached(self) -> None:
        msg = "undone"
        raise RuntimeError(msg)


def test_other_methods_may_fail_too() -> None:
    needs.root()
    with Collector() as collector:
        collector.attach(attrs.evolve(generator.MODULE, handler=TicksAndFails))
        records = take_until(collector, lambda came: len(failures(came)) >= 2)
        assert {each.where for each in failures(records)} == {"steady", "tick"}
        assert sum(isinstance(each, Steady) for each in records) == 1
        generate(collector, 5)
        last = collector.detach("generator")
        assert len(messages(last, "generator")) == 5
        assert [each.error for each in failures(last) if each.where == "detached"] == [
            "RuntimeError: undone"
        ]
        assert collector.modules == ()


def test_resync_that_fails_is_told_and_tried_again() -> None:
    needs.root()

    with Collector() as collector:
        collector.attach(generator.MODULE)
        collector.flush()
        attached = collector._ensemble.attached["generator"]
        scan = attached.scan
        calls = []

        def broken(*arguments: object) -> None:
            calls.append(arguments)
            if len(calls) == 1:
                msg = "the kernel is busy"
                raise OSError(msg)
            scan(*arguments)  # type: ignore[arg-type]

        attached.scan = broken  # type: ignore[method-assign]
        attached.resync_wanted = True
        records = take_until(collector, lambda came: any(isinstance(each, Steady) for each in came))
        assert [(each.where, each.error) for each in failures(records)] == [
            ("resync", "OSError: the kernel is busy")
        ]
        assert len(calls) == 2


# -- subscriptions ------------------------------------------------------------


def test_callbacks_by_module_and_kind() -> None:
    needs.root()
    came: dict[str, list[Record]] = {name: [] for name in ("all", "beta", "small", "named", "both")}
    with Collector() as collector:
        collector.subscribe(came["all"].append)
        collector.subscribe(came["beta"].append, module="beta")
        collector.subscribe(came["small"].append, record=generator.Small)
        collector.subscribe(came["named"].append, record="small")
        collector.subscribe(came["both"].append, module="beta", record=generator.Small)
        for name in ("alpha", "beta"):
            collector.attach(generator.renamed(name))
            generate(collector, 12, name=name)
        polled = collector.flush()
        assert came["all"] == polled
        assert len(polled) == 2 * 13
        assert came["beta"] == [each for each in polled if each.module == "beta"]
        assert came["small"] == [each for each in polled if isinstance(each, generator.Small)]
        assert came["named"] == came["small"]
        assert len(came["small"]) == 4
        assert came["both"] == [each for each in came["small"] if each.module == "beta"]


def test_a_callback_that_raises() -> None:
    needs.root()
    came: list[Record] = []

    def bad(record: Record) -> None:
        msg = f"no {record.record}"
        raise LookupError(msg)

    with Collector() as collector:
        subscription = collector.subscribe(bad, record="small")
        collector.subscribe(came.append)
        collector.attach(generator.MODULE)
        generate(collector, 60)
        polled = collector.flush()
        assert len(messages(polled, "generator")) == 60
        assert subscription.errors == 10
        assert subscription.delivered == 0
        told = failures(came)
        assert len(told) == 1
        assert told[0].error == "LookupError: no small"
        assert told[0].where.startswith("subscription test_a_callback_that_raises")
        assert failures(polled) + failures(collector.flush()) == told
        # Steady, the messages, and the one report.
        assert len(came) == 1 + 60 + 1


def test_a_callback_that_stalls() -> None:
    needs.root()
    with Collector() as collector:
        collector.subscribe(lambda _: clock.sleep(0.3), record="tailed")
        collector.attach(generator.MODULE, kind=7)
        collector.flush()
        generator.emit_one(collector, 0)
        told = failures(collector.flush()) + failures(collector.flush())
        assert len(told) == 1
        assert told[0].where.startswith("subscription")
        assert collector.stats().modules["generator"]["stalls"] == 1


def test_a_threaded_callback_that_stalls_loses_its_own_records_only() -> None:
    needs.root()
    held_up = threading.Event()
    slow: list[Record] = []

    def callback(record: Record) -> None:
        assert held_up.wait(30)
        slow.append(record)

    with Collector() as collector:
        collector.attach(generator.MODULE)
        collector.flush()
        subscription = collector.subscribe(callback, threaded=True, capacity=17)
        generate(collector, 101)
        start = clock.monotonic()
        polled = collector.flush()
        assert clock.monotonic() - start < 5
        assert len(messages(polled, "generator")) == 101
        # The thread holds one or none; the queue holds 17.
        assert 101 - 18 <= subscription.dropped <= 101 - 17
        held_up.set()
        assert wait_until(lambda: subscription.delivered + subscription.dropped == 101)
        assert slow == polled[: subscription.delivered]


def test_a_threaded_callback_that_raises_is_reported() -> None:
    needs.root()

    def bad(_record: Record) -> None:
        msg = "in a thread"
        raise LookupError(msg)

    with Collector(interval=20) as collector:
        subscription = collector.subscribe(bad, threaded=True, record="small")
        collector.attach(generator.MODULE)
        generate(collector, 60)
        records = collector.flush()
        # The report of another thread ends the wait.
        records += take_until(collector, lambda came: failures([*records, *came]), seconds=10)
        assert [each.error for each in failures(records)] == ["LookupError: in a thread"]
        assert wait_until(lambda: subscription.errors == 10)


def test_a_closed_subscription_gets_nothing() -> None:
    needs.root()
    came: list[Record] = []
    with Collector() as collector:
        collector.attach(generator.MODULE)
        with collector.subscribe(came.append) as subscription:
            generate(collector, 5)
            collector.flush()
            count = len(came)
            assert count >= 5
        subscription.close()
        generate(collector, 5)
        collector.flush()
        assert len(came) == count


@pytest.mark.parametrize("threaded", [False, True])
def test_subscriptions_have_everything_when_detach_returns(threaded: bool) -> None:  # noqa: FBT001
    needs.root()
    came: list[Record] = []
    with Collector() as collector:
        collector.subscribe(came.append, threaded=threaded, module="generator")
        collector.attach(generator.MODULE)
        collector.attach(generator.renamed("bystander"))
        collector.flush()
        assert wait_until(lambda: came)
        del came[:]
        for count in (1, 53, 101):
            generate(collector, count)
            generate(collector, 7, name="bystander")
            last = collector.detach("generator")
            assert len(last) == count
            assert came == last
            del came[:]
            collector.attach(generator.MODULE)
            collector.flush()
            # The first record of the new life is not of interest here.
            assert wait_until(lambda: any(isinstance(each, Steady) for each in came))
            del came[:]


def test_a_stalled_thread_does_not_hold_up_detach_for_long() -> None:
    needs.root()
    forever = threading.Event()
    with Collector() as collector:
        subscription = collector.subscribe(lambda _: forever.wait(30), threaded=True)
        collector.attach(generator.MODULE)
        generate(collector, 31)
        start = clock.monotonic()
        assert len(messages(collector.detach("generator"), "generator")) == 31
        assert 0.9 < clock.monotonic() - start < 5
        assert subscription.dropped >= 31 - 1
        forever.set()


def test_a_callback_may_detach_and_attach() -> None:
    """
    Of what was on its way, nothing of that module comes any more.
    """
    needs.root()
    came: list[Record] = []
    returned: list[Record] = []
    with Collector() as collector:

        def callback(record: Record) -> None:
            came.append(record)
            if returned or len(messages(came, "generator")) != 7:
                return
            returned.extend(collector.detach("generator"))
            collector.attach(generator.MODULE, kind=7)
            generator.emit_one(collector, 0)

        other: list[Record] = []
        collector.attach(generator.MODULE)
        collector.flush()
        collector.subscribe(callback)
        collector.subscribe(other.append)
        generate(collector, 19)
        polled = collector.poll(timeout=1) + collector.flush()
        counted = messages(came, "generator")
        assert len(counted) == 8
        assert isinstance(counted[-1], generator.Tailed)
        assert len(messages(returned, "generator")) == 19
        # The second subscription comes after the detach: it has nothing of the first life.
        assert messages(other, "generator") == counted[-1:]
        assert messages(polled, "generator") == counted[-1:]
        assert sum(isinstance(each, Steady) for each in other) == 1
