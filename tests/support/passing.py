# SPDX-License-Identifier: Apache-2.0
"""
Two modules that share a map and a tail call, and the workload that both see.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from time import sleep
from typing import TYPE_CHECKING

import attrs

from kprobe_modules import Collector, RingOptions
from kprobe_modules.api import Alternative, Handler, Hook, Manifest, Record
from tests.support.generator import assert_closed, take_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = [
    "OTHERWISE",
    "PASSED",
    "PASSING",
    "SERVED",
    "SLOT_KINDS",
    "Seen",
    "act",
    "numbers",
    "prove_under_traffic",
    "traffic",
]

SERVED = 4
"""Of `Seen.how`: through the slot; as in ``passing.h``."""

_OPTION = 0x6B6D


@attrs.define
class Seen(Record, module="passing"):
    """
    An event, and the program that saw it.
    """

    number: int
    known: int
    how: int


@attrs.define
class SeenToo(Seen, module="passed"):
    """
    The same, of the other module.
    """


class PassingHandler(Handler):
    """
    Records each event once, whichever ways it came.

    Attributes:
        repeated: events that came again.
    """

    def __init__(self, context: object) -> None:
        super().__init__(context)  # type: ignore[arg-type]
        self.repeated = 0
        self._known: set[int] = set()
        self._record = Seen if self.context.name == "passing" else SeenToo
        self.context.provide(self.context.name, self)

    def on_seen(self, time: int, number: int, known: int, how: int) -> Record | None:
        if number in self._known:
            self.repeated += 1
            return None
        self._known.add(number)
        return self._record(time, number, known, how)


PASSING = Manifest(
    name="passing",
    package="tests.bpf.objects",
    handler=PassingHandler,
    hooks=(
        Hook(
            "pass",
            "TELEMETRY",
            (
                Alternative("pass_kprobe", calls=("passed",)),
                "pass_fentry",
                Alternative("pass_raw", calls=("passed",)),
            ),
        ),
    ),
    common_maps=("events", "tail_calls"),
    exports=("passed_events",),
    records=(Seen,),
    summary="sees events, and passes them on",
)

PASSED = Manifest(
    name="passed",
    package="tests.bpf.objects",
    handler=PassingHandler,
    hooks=(
        Hook(
            "passed",
            "TELEMETRY",
            (
                Alternative("served_kprobe", slot="passed"),
                Alternative("served_raw", slot="passed"),
                "own_fentry",
                "own_kprobe",
                "own_raw",
            ),
        ),
    ),
    imports={"passed_events": "passing"},
    records=(SeenToo,),
    summary="is passed events, or sees them itself",
)

OTHERWISE = Manifest(
    name="otherwise",
    package="tests.bpf.objects",
    handler=Handler,
    hooks=(),
    imports={"passed_events": "passing"},
    own_programs=("touch",),
    summary="declares the map of another module otherwise",
)

SLOT_KINDS = ("kprobe", "kretprobe", "raw_tp")
"""In the place of `kprobe_modules.hooks.SLOT_KINDS`: where a kernel has no kprobes, raw
tracepoints do the same, as long as nobody else uses the collector's ``tail_calls``."""

_prctl = ctypes.CDLL(None).prctl


def act(given: Iterable[int]) -> None:
    """
    Make the events of these numbers.
    """
    for number in given:
        _prctl(_OPTION, ctypes.c_ulong(number), 0, 0, 0)


def numbers(records: Iterable[Record], module: str) -> list[int]:
    """
    Return the numbers of the events that a module recorded.
    """
    return [each.number for each in records if isinstance(each, Seen) and each.module == module]


@contextlib.contextmanager
def traffic(pause: float) -> Iterator[Callable[[], int]]:
    """
    Make events 1, 2, 3 … in a thread while the body runs; gives how many there were.

    *pause* is in seconds, between one and the next.
    """
    made = 0
    ended = threading.Event()

    def run() -> None:
        nonlocal made
        while not ended.is_set():
            act([made + 1])
            made += 1
            if pause:
                sleep(pause)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield lambda: made
    finally:
        ended.set()
        thread.join()


def prove_under_traffic(turns: int, pause: float = 0) -> None:
    """
    Let either module come and go under traffic, and compare with the count of events.

    In the module that stays no event is missed and none recorded twice; in the other
    one so from the first that it saw to the last.
    """
    tunables = {"watched": os.getpid()}
    for stays, comes in ((PASSED, PASSING), (PASSING, PASSED)):
        with Collector(rings=RingOptions(pages=1024)) as collector:
            collector.attach(stays, **tunables)
            records = collector.flush()
            with traffic(pause) as made:
                for _ in range(turns):
                    collector.attach(comes, **tunables)
                    seen = made()
                    came = take_until(collector, lambda _, seen=seen: made() > seen + 5)
                    last = collector.detach(comes.name)
                    stay = numbers([*came, *last], comes.name)
                    assert stay == list(range(stay[0], stay[-1] + 1))
                    assert stay[-1] > seen
                    records += came
            records += collector.flush()
            assert numbers(records, stays.name) == list(range(1, made() + 1))
            totals = assert_closed(collector, stays.name)
            assert totals["lost"] == 0
            handler = collector.find(stays.name)
            assert isinstance(handler, PassingHandler)
            assert totals["received"] == made() + handler.repeated
