# SPDX-License-Identifier: Apache-2.0
"""
What every record has, and the records of the framework itself.

A record is what users get: a slotted attrs value whose first field is ``time``,
in nanoseconds since the epoch.  By convention nobody changes one.  They are not
frozen, because creating a frozen attrs value costs about twice as much and there
is one per event.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, cast

import attrs

from kprobe_modules.byfields import ByFields

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "Failure",
    "Late",
    "Log",
    "Lost",
    "Metrics",
    "Record",
    "StackTrace",
    "Stats",
    "Steady",
    "Suppressed",
    "as_dict",
    "field_names",
]

_WORD_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@attrs.define(eq=False, repr=False)
class Record(ByFields):
    """
    Base of all records.

    Subclass it with the name of the module the record comes from::

        @attrs.define
        class DoorOpened(Record, module="doors"):
            pid: int

    The class attribute ``record`` is the class name in snake case
    (``door_opened``), and ``module`` the name given.
    """

    record: ClassVar[str] = "record"

    __hash__ = None  # type: ignore[assignment]  # as of any value that may be changed

    time: int
    """When it happened, in nanoseconds since the epoch."""

    if TYPE_CHECKING:

        @property
        def module(self) -> str:
            """The name of the module that the record comes from."""

    def __init_subclass__(cls, *, module: str | None = None) -> None:
        cls.record = _WORD_BOUNDARY.sub("_", cls.__name__).lower()
        # attrs makes the slotted class anew, without the keyword: what the
        # first pass set is in the namespace it copies.
        if module is not None:
            type.__setattr__(cls, "module", module)


@attrs.define(eq=False, repr=False)
class Steady(Record):
    """
    A module has finished discovering what existed before it was attached.
    """

    module: str
    found: int
    """How many entities the scan reported."""
    resync: bool = False
    """Whether this scan repeated an earlier one, after a loss or on request."""


@attrs.define(eq=False, repr=False)
class Lost(Record):
    """
    Messages that a program could not put into a ring, since the last such record.
    """

    module: str
    message: str
    cpu: int
    count: int


@attrs.define(eq=False, repr=False)
class Late(Record):
    """
    Messages that were released after a newer one had been, since the last such record.
    """

    module: str
    message: str
    cpu: int
    count: int


@attrs.define(eq=False, repr=False)
class Log(Record):
    """
    A program of a module says that something is not as it should be.
    """

    module: str
    code: str
    """Of the framework (bpf/km/diagnostic.h) or of the module."""
    file: str
    """Of the module's source."""
    line: int
    """Where the call that logs ends."""
    cpu: int
    arguments: Mapping[str, int | bool | str]
    """By the names that the code declares; an enumerator stands for its number."""


@attrs.define(eq=False, repr=False)
class StackTrace(Record):
    """
    Where the kernel and the process were when a program wrote a message, or a log.
    """

    module: str
    message: str
    """Name of the message; ``bpf_log`` for a log."""
    message_time: int
    """Its time; with the CPU, what tells it from others."""
    cpu: int
    pid: int
    """The process on whose behalf the program ran, or whom it interrupted."""
    tid: int
    comm: str
    kernel: tuple[Any, ...]
    """`kprobe_modules.stacks.Frame`, innermost first; empty if it was not asked for."""
    user: tuple[Any, ...]
    """The same of the process, as far as its code keeps frame pointers."""
    error: str | None
    """Why a stack that was asked for is not there: a kernel thread has no user stack."""


@attrs.define(eq=False, repr=False)
class Suppressed(Record):
    """
    Logs that a CPU did not write, since the last such record, as there were too many.
    """

    module: str
    cpu: int
    count: int


@attrs.define(eq=False, repr=False)
class Failure(Record):
    """
    A handler or consumer raised or stalled; the others went on.
    """

    module: str
    where: str
    """What failed: a handler's method, or ``subscription`` and its callback."""
    error: str


@attrs.define(eq=False, repr=False)
class Metrics(Record):
    """
    What a module does and costs: totals since it was attached.
    """

    module: str
    """``collector`` stands for what all share: the common maps."""
    emitted: int
    received: int
    lost: int
    missed: int
    """Runs of its programs that the kernel left out, as far as it counts them."""
    suppressed: int
    late: int
    errors: int
    stalls: int
    handler_time: int
    """Nanoseconds spent on making records of the module's messages."""
    run_count: int
    """Runs of its programs, while statistics of programs were on."""
    run_time: int
    """Nanoseconds of these runs."""
    memory: int
    """Bytes of its programs and own maps in the kernel."""
    programs: tuple[Any, ...]
    """`kprobe_modules.metrics.ProgramMetrics` of each that is loaded."""
    maps: tuple[Any, ...]
    """`kprobe_modules.metrics.MapMetrics` of each of its own."""


@attrs.define(eq=False, repr=False)
class Stats(Record):
    """
    Totals per module since it was attached.
    """

    module: str
    modules: Mapping[str, Mapping[str, Any]]
    """Module name to ``emitted``, ``received``, ``lost``, ``errors`` and finer counts."""


def _field_names(record_class: type[Record]) -> tuple[str, ...]:
    return tuple(field.name for field in attrs.fields(record_class))


field_names = cast("Callable[[type[Record]], tuple[str, ...]]", cache(_field_names))
"""Return the names of a record class's fields, ``time`` first."""


def as_dict(record: Record) -> dict[str, Any]:
    """
    Return ``time``, ``module``, ``record``, then the record's other fields.

    This is the object that a line of JSON holds; its names are a contract.
    """
    result: dict[str, Any] = {
        "time": record.time,
        "module": record.module,
        "record": record.record,
    }
    for name in field_names(type(record)):
        result[name] = getattr(record, name)
    return result
