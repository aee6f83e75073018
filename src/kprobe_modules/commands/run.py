# SPDX-License-Identifier: Apache-2.0
"""
``kprobe-modules run``: attach, print records until it is time to stop, say totals.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial
from time import monotonic
from typing import IO, TYPE_CHECKING

import attrs

from kprobe_modules import config
from kprobe_modules.cli import FAILURE, OK, started, status_of
from kprobe_modules.commands import matching, options, status
from kprobe_modules.commands.watching import Interrupts, interval_of, open_collector
from kprobe_modules.errors import CaptureError, ConfigError, KprobeModulesError, RegistryError
from kprobe_modules.headstart import Headstart
from kprobe_modules.records import field_names
from kprobe_modules.registry import Registry
from kprobe_modules.sinks import discard
from kprobe_modules.sinks.jsonl import JsonLines, PrettyJson

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from kprobe_modules.capture import Capture
    from kprobe_modules.collector import Collector
    from kprobe_modules.commands.matching import Condition
    from kprobe_modules.config import Options
    from kprobe_modules.records import Record
    from kprobe_modules.sinks import Output

__all__ = ["CHUNK", "Printer", "attach_modules", "make_printer", "run"]

#: Records taken before they are written, so that memory stays bounded.
CHUNK = 4096


def run(parsed: argparse.Namespace) -> int:
    """
    Run until a signal, the timeout, or enough records.
    """
    if parsed.verbose:
        import logging

        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    chosen = options.load(parsed)
    registry = Registry()
    names = config.select(chosen, registry.names())
    if not names:
        msg = "no module to attach: none is registered, or all are disabled"
        raise ConfigError(msg)
    with ExitStack() as stack:
        ordered = partial(registry.exporters_first, names)
        headstart = stack.enter_context(
            Headstart(partial(registry.load, each) for each in ordered())
        )
        printer = make_printer(parsed, names, registry)
        interrupts = stack.enter_context(Interrupts())
        capture = _capture(parsed, stack)
        collector = stack.enter_context(
            open_collector(
                chosen, registry, metrics=parsed.metrics, journal=capture, headstart=headstart
            )
        )
        outcome = attach_modules(collector, ordered(), chosen)
        if outcome != OK:
            return outcome
        started()
        _watch(collector, printer, interrupts, parsed.timeout, interval_of(chosen), capture)
        printer.print(collector.flush())
        stats = collector.stats()
    if parsed.stats:
        printer.end(stats)
    for line in status.totals(stats, printer.written):
        status.say(line)
    if capture is not None:
        _conclude(parsed.capture, capture)
    return OK


def _watch(
    collector: Collector,
    printer: Printer,
    interrupts: Interrupts,
    timeout: float | None,
    interval: float,
    capture: Capture | None,
) -> None:
    """
    Print records until it is time to stop.
    """
    deadline = None if timeout is None else monotonic() + timeout
    output = None if printer.sink is discard else sys.stdout.fileno()
    while not (interrupts.requested or printer.full):
        records = collector.poll(CHUNK)
        printer.print(records)
        left = interval
        if deadline is not None:
            left = min(left, deadline - monotonic())
            if left <= 0:
                return
        if capture is not None and capture.error is not None:
            return
        if len(records) < CHUNK and not printer.full:
            interrupts.wait(collector.fileno(), left, output)


def _conclude(path: str, capture: Capture) -> None:
    """
    Say what became of a capture.

    Raises:
        CaptureError: it could not be written.
    """
    if capture.error is not None:
        msg = f"{path}: the capture is incomplete: {capture.error.strerror}"
        raise CaptureError(msg)
    status.say(f"{path}: {capture.written} bytes written")


def _capture(parsed: argparse.Namespace, stack: ExitStack) -> Capture | None:
    """
    Open the capture that is wanted, to be closed after the collector.
    """
    if parsed.capture is None:
        return None
    from kprobe_modules.capture import Capture

    return stack.enter_context(
        Capture(parsed.capture, max_size=parsed.max_size, rotate=parsed.rotate)
    )


def attach_modules(collector: Collector, names: Iterable[str], chosen: Options) -> int:
    """
    Attach each module; one that fails is reported and the others go on.

    Returns:
        OK if at least one is attached, else the exit status.
    """
    worst = OK
    for name in names:
        try:
            attached = collector.attach(name, **chosen.tunables.get(name, {}))
        except Exception as error:
            import logging

            logging.getLogger(__name__).debug("%s", name, exc_info=True)
            ours = isinstance(error, KprobeModulesError)
            text = str(error) if ours else f"{type(error).__name__}: {error}"
            status.say(f"kprobe-modules: {name} is not attached: {text}")
            worst = max(worst, status_of(error))
        else:
            status.say(status.attached(attached))
    return OK if collector.modules else worst or FAILURE


@attrs.define(eq=False, repr=False)
class Printer:
    """
    Chooses records, hands them to a sink, and knows when it has enough.

    Attributes:
        sink: where chosen records go.
        conditions: all of which a record must meet; records of the framework are
            exempt.
        people: whether a person reads the output.  Records of the framework then
            go to standard error only.
        limit: how many records to write at most.
        written: how many were written.
    """

    sink: Output
    conditions: Sequence[Condition] = ()
    people: bool = False
    limit: int | None = None
    written: int = 0

    @property
    def full(self) -> bool:
        """
        Whether the limit is reached.
        """
        return self.limit is not None and self.written >= self.limit

    def print(self, records: Iterable[Record]) -> None:
        """
        Write a batch and flush it.

        Raises:
            BrokenPipeError: the reader is gone.
        """
        before = self.written
        for record in records:
            if isinstance(record, status.FRAMEWORK):
                line = status.about(record)
                if line is not None:
                    status.say(line)
                if self.people:
                    continue
            elif not all(condition(record) for condition in self.conditions):
                continue
            if self.full:
                continue  # what is said on standard error is still said
            self.sink(record)
            self.written += 1
        if self.written != before:
            self.sink.flush()

    def end(self, stats: Record) -> None:
        """
        Write the totals; they do not count against the limit.
        """
        sink = JsonLines(sys.stdout.buffer) if self.sink is discard else self.sink
        sink(stats)
        sink.flush()


def _record_kinds(names: Iterable[str], registry: Registry) -> tuple[type[Record], ...]:
    """
    Return the record classes that the modules may produce.

    A module that cannot be imported is passed over: attaching it will say why.
    """
    kinds: list[type[Record]] = []
    for name in names:
        try:
            kinds += registry.load(name).records
        except RegistryError:
            continue
    return tuple(kinds)


def make_printer(parsed: argparse.Namespace, names: Iterable[str], registry: Registry) -> Printer:
    """
    Make what prints records as the options want it, on standard output.

    Args:
        parsed: the options.
        names: the modules whose records may come.
        registry: where they are found.

    Raises:
        ConfigError: an option makes no sense.
    """
    return _printer(parsed, _record_kinds(names, registry), sys.stdout.buffer)


def _printer(
    parsed: argparse.Namespace, kinds: Sequence[type[Record]], stream: IO[bytes]
) -> Printer:
    output = parsed.output or ("json" if parsed.json else parsed.default_output)
    if parsed.json and output != "json":
        msg = f"-j: expected no -o, or -o json, found -o {output}"
        raise ConfigError(msg)
    fields = None
    if parsed.fields is not None:
        fields = tuple(part.strip() for part in parsed.fields.split(",") if part.strip())
        _check_fields("--fields", fields, kinds)
    conditions = _conditions(parsed)
    _check_fields("--filter", [condition.field for condition in conditions], kinds)
    sink: Output = discard
    if output == "json":
        sink = JsonLines(stream, fields=fields)
    elif output == "jsonpretty":
        sink = PrettyJson(stream, fields=fields)
    elif output == "columns":
        from kprobe_modules.sinks.columns import Columns, Style

        sink = Columns(
            stream,
            Style(
                when="seconds" if parsed.timestamp else "time" if parsed.time else "clock",
                uid=parsed.print_uid,
                wide=parsed.wide,
                fields=fields,
            ),
            expected=kinds,
        )
    return Printer(sink, conditions, output == "columns", parsed.max_records)


def _conditions(parsed: argparse.Namespace) -> list[Condition]:
    conditions = [matching.parse(expression) for expression in parsed.filter]
    if parsed.pid is not None:
        conditions.append(matching.one_of("pid", options.numbers("-p/--pid", parsed.pid)))
    if parsed.uid is not None:
        conditions.append(matching.one_of("uid", options.numbers("-u/--uid", parsed.uid)))
    if parsed.comm is not None:
        conditions.append(matching.pattern("comm", parsed.comm))
    return conditions


def _check_fields(flag: str, fields: Iterable[str], kinds: Sequence[type[Record]]) -> None:
    """
    Refuse a field that no record has: it would silently match nothing.
    """
    known = {"time", "module", "record"}.union(
        *(field_names(kind) for kind in (*kinds, *status.FRAMEWORK))
    )
    for field in fields:
        if field not in known:
            msg = f"{flag}: no record has a field {field!r}; there are {', '.join(sorted(known))}"
            raise ConfigError(msg)
