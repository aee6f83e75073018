# SPDX-License-Identifier: Apache-2.0
"""
``kprobe-modules top``: what each module does and costs, per program and map, live.
"""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from importlib import import_module
from time import monotonic
from typing import TYPE_CHECKING, Any

import attrs

from kprobe_modules import config
from kprobe_modules.cli import OK
from kprobe_modules.commands import options, status
from kprobe_modules.commands.run import CHUNK, attach_modules
from kprobe_modules.commands.watching import Interrupts, interval_of, open_collector
from kprobe_modules.errors import (
    ConfigError,
    KprobeModulesError,
    NotSupportedError,
    PrivilegeError,
)
from kprobe_modules.registry import Registry

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from kprobe_modules.collector import Collector
    from kprobe_modules.records import Metrics

__all__ = ["Snapshot", "Table", "run", "tables"]


def run(parsed: argparse.Namespace) -> int:
    """
    Attach, and show the metrics again and again until it is time to stop.

    Raises:
        KprobeModulesError: rich is not installed, nothing can be attached.
    """
    screen = _screen()
    if parsed.verbose:
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    chosen = options.load(parsed)
    registry = Registry()
    names = config.select(chosen, registry.names())
    if not names:
        msg = "no module to attach: none is registered, or all are disabled"
        raise ConfigError(msg)
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())
        collector = stack.enter_context(open_collector(chosen, registry))
        outcome = attach_modules(collector, registry.exporters_first(names), chosen)
        if outcome != OK:
            return outcome
        note = _count_runs(collector, stack)
        show = stack.enter_context(screen)
        before = Snapshot(monotonic(), collector.metrics())
        deadline = None if parsed.timeout is None else before.at + parsed.timeout
        while not interrupts.requested and (deadline is None or monotonic() < deadline):
            until = monotonic() + parsed.delay
            _watch(collector, interrupts, until, interval_of(chosen))
            after = Snapshot(monotonic(), collector.metrics())
            show(tables(before, after), note)
            before = after
    return OK


def _count_runs(collector: Collector, stack: ExitStack) -> str:
    """
    Have runs of programs counted; return what to say if that may not be.
    """
    try:
        stack.enter_context(collector.count_runs())
    except (PrivilegeError, NotSupportedError) as error:
        return f"runs of programs are not counted: {error}"
    return ""


def _watch(collector: Collector, interrupts: Interrupts, until: float, interval: float) -> None:
    """
    Take records, which nobody wants, until it is time to look again.
    """
    while not interrupts.requested:
        for record in (records := collector.poll(CHUNK)):
            if isinstance(record, status.FRAMEWORK) and (line := status.about(record)):
                logging.getLogger(__name__).info("%s", line)
        left = until - monotonic()
        if left <= 0:
            return
        if len(records) < CHUNK:
            interrupts.wait(collector.fileno(), min(left, interval))


@attrs.frozen
class Snapshot:
    """
    All metrics of a moment.
    """

    at: float
    """Seconds of the monotonic clock."""
    metrics: Sequence[Metrics]


@attrs.frozen
class Table:
    """
    Rows of text, the first column to the left and all others to the right.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1
    """How many columns are names, and stand to the left."""


def tables(before: Snapshot, after: Snapshot) -> list[Table]:
    """
    Return what to show of the time between two snapshots: modules, programs, maps.

    A module that came in between is shown from its beginning.
    """
    seconds = max(after.at - before.at, 1e-9)
    earlier = {each.module: each for each in before.metrics}
    return [
        Table(
            "modules",
            ("module", "msg/s", "rec/s", "lost", "suppr", "errors", "bpf cpu", "py cpu", "memory"),
            tuple(_module(earlier.get(each.module), each, seconds) for each in after.metrics),
        ),
        Table(
            "programs",
            ("module", "program", "runs/s", "ns/run", "cpu", "missed", "insns", "memory"),
            tuple(
                _program(each.module, _of(earlier.get(each.module), program.name), program, seconds)
                for each in after.metrics
                for program in each.programs
            ),
            names=2,
        ),
        Table(
            "maps",
            ("module", "map", "entries", "room", "full", "memory"),
            tuple(_map(each.module, item) for each in after.metrics for item in each.maps),
            names=2,
        ),
    ]


def _of(metrics: Metrics | None, name: str) -> Any:  # noqa: ANN401 - a ProgramMetrics, or None
    programs = metrics.programs if metrics is not None else ()
    return next((each for each in programs if each.name == name), None)


def _module(before: Metrics | None, after: Metrics, seconds: float) -> tuple[str, ...]:
    def since(name: str) -> int:
        return int(getattr(after, name)) - (int(getattr(before, name)) if before else 0)

    return (
        after.module,
        _rate(since("emitted"), seconds),
        _rate(since("received"), seconds),
        str(after.lost),
        str(after.suppressed),
        str(after.errors),
        _share(since("run_time"), seconds),
        _share(since("handler_time"), seconds),
        _bytes(after.memory),
    )


def _program(module: str, before: Any, after: Any, seconds: float) -> tuple[str, ...]:  # noqa: ANN401
    runs = after.run_count - (before.run_count if before else 0)
    time = after.run_time - (before.run_time if before else 0)
    return (
        module,
        after.name,
        _rate(runs, seconds),
        f"{time / runs:.0f}" if runs else "-",
        _share(time, seconds),
        str(after.missed),
        str(after.instructions),
        _bytes(after.memory),
    )


def _map(module: str, item: Any) -> tuple[str, ...]:  # noqa: ANN401 - a MapMetrics
    known = item.entries is not None and item.max_entries
    return (
        module,
        item.name,
        str(item.entries) if known else "-",
        str(item.max_entries or "-"),
        f"{item.entries / item.max_entries:.0%}" if known else "-",
        _bytes(item.memory),
    )


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds:.0f}"


def _share(nanoseconds: int, seconds: float) -> str:
    """
    Return the part of one CPU, which may be more than all of it.
    """
    return f"{nanoseconds / 1e9 / seconds:.2%}"


def _bytes(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:  # noqa: PLR2004 - it is what KiB means
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def _screen() -> _Screen:
    """
    Return the screen, if there is what it needs.

    Raises:
        KprobeModulesError: rich is not installed.
    """
    try:
        return _Screen(
            import_module("rich.console"), import_module("rich.live"), import_module("rich.table")
        )
    except ImportError as error:
        msg = f"top needs the Python package rich ({error}): pip install 'kprobe_modules[cli]'"
        raise KprobeModulesError(msg) from error


class _Screen:
    """
    Shows tables: in place on a terminal, else one below the other.
    """

    def __init__(self, console: Any, live: Any, table: Any) -> None:  # noqa: ANN401 - modules
        self._group = console.Group
        self._console = console.Console()
        self._live = live.Live
        self._table = table.Table
        self._stack = ExitStack()

    def __enter__(self) -> _Show:
        if not self._console.is_terminal:
            return lambda found, note: self._console.print(self._rendered(found, note))
        live = self._stack.enter_context(
            self._live(console=self._console, screen=True, auto_refresh=False)
        )
        return lambda found, note: live.update(self._rendered(found, note), refresh=True)

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _rendered(self, found: Sequence[Table], note: str) -> object:
        made = []
        for table in found:
            shown = self._table(title=table.title, title_justify="left", box=None, padding=(0, 1))
            for place, name in enumerate(table.columns):
                shown.add_column(
                    name,
                    justify="left" if place < table.names else "right",
                    no_wrap=True,
                    style="bold" if not place else "",
                )
            for row in table.rows:
                shown.add_row(*row)
            made.append(shown)
        return self._group(*made, *([note] if note else []))


if TYPE_CHECKING:
    from collections.abc import Callable

    _Show = Callable[[Sequence[Table], str], None]
