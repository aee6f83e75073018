# SPDX-License-Identifier: Apache-2.0
"""
Callbacks, and what becomes of records on their way to one in a thread of its own.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from kprobe_modules import Lost, Record, Steady
from kprobe_modules.delivery import Delivery
from kprobe_modules.dispatch import Faults
from kprobe_modules.subscriptions import Subscription
from tests.support.libbpfs import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable


def subscribed(callback: Callable[[Record], object], **options: object) -> Subscription:
    wanted = {"module": None, "record": None, "capacity": None, "report": lambda _: None, **options}
    return Subscription(
        callback,
        faults=Faults(time.time_ns),
        forget=lambda _: None,
        **wanted,  # type: ignore[arg-type]
    )


def steady(number: int, module: str = "doors") -> Steady:
    return Steady(number, module, number)


@pytest.mark.parametrize(
    ("options", "wants"),
    [
        ({}, (True, True, True)),
        ({"module": "doors"}, (True, False, True)),
        ({"record": Steady}, (True, True, False)),
        ({"record": "lost"}, (False, False, True)),
        ({"record": Record}, (True, True, True)),
        ({"module": "doors", "record": Lost}, (False, False, True)),
    ],
)
def test_what_it_wants(options: dict[str, object], wants: tuple[bool, ...]) -> None:
    records = (steady(1), steady(2, "windows"), Lost(3, "doors", "opened", 0, 1))
    subscription = subscribed(print, **options)
    assert tuple(map(subscription.wants, records)) == wants


def test_revoked_modules_get_nothing_more() -> None:
    came: list[Record] = []
    revoked: set[str] = set()

    def callback(record: Record) -> None:
        came.append(record)
        revoked.add("doors")

    records = [steady(1), steady(2), steady(3, "windows"), steady(4)]
    subscription = subscribed(callback)
    assert subscription.deliver(records, revoked) == []
    assert came == [records[0], records[2]]
    assert subscription.delivered == 2


def test_a_thread_keeps_the_order() -> None:
    came: list[Record] = []
    with subscribed(came.append, capacity=5000) as subscription:
        records: list[Record] = [steady(number) for number in range(1009)]
        for start in range(0, 1009, 101):
            subscription.deliver(records[start : start + 101])
    # Closing lets it take what is queued.
    assert came == records
    assert subscription.delivered == 1009
    subscription.close()


def test_settling_waits_for_what_is_queued() -> None:
    came: list[Record] = []

    def slowly(record: Record) -> None:
        time.sleep(0.01)
        came.append(record)

    with subscribed(slowly, capacity=100) as subscription:
        subscription.deliver([steady(number) for number in range(13)])
        assert subscription.settle("doors", timeout=30) == 0
        assert len(came) == 13


def test_settling_drops_what_a_stalling_callback_leaves() -> None:
    release = threading.Event()
    came: list[Record] = []

    def callback(record: Record) -> None:
        came.append(record)
        assert release.wait(30)

    with subscribed(callback, capacity=100) as subscription:
        subscription.deliver([steady(1)])
        assert wait_until(lambda: came)
        subscription.deliver([steady(2), steady(3, "windows"), steady(4)])
        start = time.monotonic()
        settled: list[int] = []
        settler = threading.Thread(target=lambda: settled.append(subscription.settle("doors", 0.3)))
        settler.start()
        # What comes for a module of that name that was attached since is not dropped.
        time.sleep(0.1)
        subscription.deliver([steady(5)])
        settler.join(10)
        assert time.monotonic() - start >= 0.3
        assert settled == [2]
        assert subscription.dropped == 2
        release.set()
    assert [each.time for each in came] == [1, 3, 5]


def test_a_callback_settles_itself_without_waiting() -> None:
    dropped: list[int] = []

    def callback(_record: Record) -> None:
        start = time.monotonic()
        dropped.append(subscription.settle("doors", timeout=20))
        assert time.monotonic() - start < 10

    release = threading.Lock()
    release.acquire()
    subscription = subscribed(lambda record: release.acquire() and callback(record), capacity=10)
    subscription.deliver([steady(1), steady(2), steady(3)])
    release.release()
    assert wait_until(lambda: dropped)
    assert dropped == [2]
    assert subscription.errors == 0
    subscription.close()


def test_failures_of_a_thread_are_handed_on() -> None:
    reports: list[Record] = []

    def bad(_record: Record) -> None:
        msg = "no"
        raise LookupError(msg)

    with subscribed(bad, capacity=10, report=reports.extend) as subscription:
        subscription.deliver([steady(1), steady(2), steady(3)])
    assert subscription.errors == 3
    assert [each.error for each in reports] == ["LookupError: no"]  # type: ignore[attr-defined]


def test_closing_a_stalled_thread_does_not_wait_for_ever() -> None:
    release = threading.Event()
    subscription = subscribed(lambda _: release.wait(30), capacity=10)
    subscription.deliver([steady(1)])
    start = time.monotonic()
    subscription.close(timeout=0.2)
    assert time.monotonic() - start < 10
    release.set()


# -- the backlog -----------------------------------------------------------------------


def test_the_backlog_keeps_the_newest() -> None:
    delivery = Delivery(5, wake=lambda: None)
    delivery.queue([steady(number) for number in range(3)])
    delivery.queue([steady(number, "windows") for number in range(3, 11)])
    assert delivery.waiting == 5
    assert delivery.discarded == {"doors": 3, "windows": 3}
    taken = delivery.take()
    assert [each.record for each in taken] == ["failure"] * 2 + ["steady"] * 5
    assert [each.time for each in taken] == [6, 6, 6, 7, 8, 9, 10]
    assert delivery.take() == []


def test_taking_in_parts() -> None:
    delivery = Delivery(100, wake=lambda: None)
    records: list[Record] = [steady(number) for number in range(13)]
    delivery.queue(list(records))
    assert delivery.take(0) == []
    assert delivery.pop() == records[0]
    assert delivery.take(5) == records[1:6]
    assert delivery.take(100) == records[6:]
    assert delivery.pop() is None


def test_withdrawing_a_module() -> None:
    delivery = Delivery(100, wake=lambda: None)
    came: list[Record] = []
    delivery.subscriptions.append(subscribed(came.append))
    delivery.queue([steady(1), steady(2, "windows"), steady(3)])
    delivery.serve()
    last = delivery.withdraw("doors", [steady(4, "windows"), steady(5)])
    delivery.serve()
    assert [each.time for each in last] == [1, 3, 5]
    assert [each.time for each in delivery.take()] == [2, 4]
    assert [each.time for each in came] == [1, 2, 3, 4, 5]


def test_reports_of_threads_come_with_the_next_batch() -> None:
    woken: list[bool] = []
    delivery = Delivery(100, wake=lambda: woken.append(True))
    delivery.report([steady(1)])
    assert woken == [True]
    assert delivery.waiting == 0
    delivery.queue([])
    assert [each.time for each in delivery.take()] == [1]
