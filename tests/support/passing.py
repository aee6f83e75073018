# SPDX-License-Identifier: Apache-2.0
"""
Two modules that share a map and a tail call, and the workload that both see.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import attrs

from kprobe_modules.api import Handler, Hook, Manifest, Record

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["OTHERWISE", "PASSED", "PASSING", "SERVED", "Seen", "act", "numbers"]

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
    hooks=(Hook("pass", "TELEMETRY", ("pass_kprobe", "pass_fentry", "pass_raw")),),
    common_maps=("events", "tail_calls"),
    exports=("passed_events",),
    records=(Seen,),
    summary="sees events, and passes them on",
)

PASSED = Manifest(
    name="passed",
    package="tests.bpf.objects",
    handler=PassingHandler,
    hooks=(Hook("passed", "TELEMETRY", ("own_fentry", "own_kprobe", "own_raw")),),
    imports={"passed_events": "passing"},
    own_programs=("served_kprobe", "served_raw"),
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
