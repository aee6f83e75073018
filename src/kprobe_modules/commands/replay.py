# SPDX-License-Identifier: Apache-2.0
"""
``kprobe-modules replay``: print what a run printed, from what was captured of it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from kprobe_modules.capture import Replay
from kprobe_modules.cli import OK, started
from kprobe_modules.commands import status
from kprobe_modules.commands.run import make_printer
from kprobe_modules.errors import ConfigError
from kprobe_modules.registry import Registry

if TYPE_CHECKING:
    import argparse

    from kprobe_modules.capture.replay import CapturedModule

__all__ = ["run"]


def run(parsed: argparse.Namespace) -> int:
    """
    Replay until the capture ends, or there are enough records.
    """
    if parsed.verbose:
        import logging

        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    registry = Registry()
    wanted = _wanted(parsed.modules, registry)
    printer = make_printer(parsed, wanted or registry.names(), registry)
    replay = Replay(parsed.file, registry=registry, modules=wanted, announce=_announce)
    heading = replay.heading
    status.say(
        f"{parsed.file}: captured on Linux {heading.get('kernel')}, {heading.get('arch')}, "
        f"by kprobe_modules {heading.get('kprobe_modules')}"
    )
    if replay.missing:
        status.say(f"{parsed.file}: the first {replay.missing} files of the capture are gone")
    started()
    for records in replay.records():
        printer.print(records)
        if printer.full:
            break
    if parsed.stats and replay.totals is not None:
        printer.end(replay.totals)
    _conclude(replay, printer.written)
    return OK


def _wanted(given: list[str] | None, registry: Registry) -> tuple[str, ...] | None:
    if given is None:
        return None
    modules = ",".join(given)
    names = tuple(name.strip() for name in modules.split(",") if name.strip())
    known = registry.names()
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        msg = f"-m: expected modules out of {', '.join(known)}, found {modules!r}"
        raise ConfigError(msg)
    return names


def _announce(module: CapturedModule) -> None:
    live = ", ".join(f"{hook} {program}" for hook, program in module.live.items())
    status.say(f"{module.name} {module.version}: live: {live or 'no hook'}")


def _conclude(replay: Replay, written: int) -> None:
    """
    Say what is to be known of how well it went.
    """
    for cut in replay.cuts:
        status.say(f"{cut}; what stands before it was replayed")
    if replay.unanswered:
        status.say(f"handlers asked {replay.unanswered} times for what the capture does not have")
    for name, count in sorted(replay.faults.errors.items()):
        status.say(f"{name}: {count} errors")
    status.say(f"{written} records written")
