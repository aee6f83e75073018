# SPDX-License-Identifier: Apache-2.0
"""
What a run says about itself, on standard error.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from kprobe_modules.records import (
    Failure,
    Late,
    Log,
    Lost,
    Metrics,
    StackTrace,
    Stats,
    Steady,
    Suppressed,
)
from kprobe_modules.sinks.values import readable

if TYPE_CHECKING:
    from kprobe_modules.attached import ModuleStatus
    from kprobe_modules.records import Record

__all__ = ["FRAMEWORK", "about", "attached", "say", "totals"]

FRAMEWORK: tuple[type[Record], ...] = (
    Steady,
    Lost,
    Late,
    Log,
    StackTrace,
    Suppressed,
    Failure,
    Metrics,
    Stats,
)
"""Records that are about the run and not about the host."""


def say(text: str) -> None:
    """
    Print one line on standard error, if anybody listens there.
    """
    with suppress(OSError, ValueError):  # closed; the data may still be wanted
        print(readable(text), file=sys.stderr, flush=True)


def attached(status: ModuleStatus) -> str:
    """
    Return the line for a module that was attached: what is live, what is missing.
    """
    live = [
        f"{choice.hook.name} {choice.alternative.name} ({choice.where})"
        for choice in status.choices
        if choice.alternative is not None
    ]
    parts = [f"{status.name} {status.version}: live: {', '.join(live) or 'no hook'}"]
    absent = [
        choice.hook.name
        for choice in status.choices
        if choice.alternative is None and not choice.waiting
    ]
    if absent:
        parts.append(f"without: {', '.join(absent)}")
    if status.waiting:
        parts.append(f"waiting for a kernel module: {', '.join(status.waiting)}")
    if status.missing:
        parts.append(f"cannot fill: {', '.join(status.missing)}")
    return "; ".join(parts)


def about(record: Record) -> str | None:  # noqa: PLR0911 - one per kind of record
    """
    Return the line for a record of the framework; None for any other.
    """
    if isinstance(record, Lost):
        return f"{record.module}: lost {record.count} {record.message} on CPU {record.cpu}"
    if isinstance(record, Late):
        return f"{record.module}: {record.count} {record.message} late on CPU {record.cpu}"
    if isinstance(record, Log):
        said = ", ".join(f"{name}={value}" for name, value in record.arguments.items())
        where = f"{record.file}:{record.line} on CPU {record.cpu}"
        return f"{record.module}: {record.code}{f' ({said})' if said else ''} at {where}"
    if isinstance(record, StackTrace):
        stacks = [" < ".join(map(str, each)) for each in (record.kernel, record.user) if each]
        stacks += [record.error] if record.error else []
        whom = f"{record.comm}[{record.tid}]"
        return f"{record.module}: stack of {record.message} in {whom}: {' | '.join(stacks)}"
    if isinstance(record, Suppressed):
        return f"{record.module}: {record.count} logs too many on CPU {record.cpu}"
    if isinstance(record, Failure):
        return f"{record.module}: {record.where} failed: {record.error}"
    if isinstance(record, Steady):
        again = " again" if record.resync else ""
        return f"{record.module}: steady{again}, {record.found} found"
    return None


def totals(stats: Stats, written: int) -> list[str]:
    """
    Return the lines that end a run.
    """
    lines = [
        f"{name}: " + ", ".join(f"{counts[what]} {what}" for what in _COUNTS if what in counts)
        for name, counts in sorted(stats.modules.items())
    ]
    return [*lines, f"{written} records written"]


_COUNTS = ("emitted", "received", "lost", "missed", "suppressed", "errors")
