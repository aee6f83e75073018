# SPDX-License-Identifier: Apache-2.0
"""
``python -m tests.bench``: run the parts, print the table, write the file.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import (
    dns,
    drain,
    emit,
    guest,
    overhead,
    report,
    slot,
    startup,
    steady,
    tcp,
    udp,
    workshop,
)
from tests.bench.effort import Effort
from tests.bench.figures import Missing
from tests.bench.rounds import WrongContentsError
from tests.bench.workshop import BUILD, UnavailableError, Workshop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.bench.figures import Figure

LEAST_ROUNDS = 5
"""Fewer give a median that one disturbance can move."""


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


#: In the order in which they run.
PARTS: dict[str, Callable[[Workshop, Effort], Sequence[Figure | Missing]]] = {
    "drain": drain.measure,
    "steady": steady.measure,
    "emit": emit.measure,
    "startup": lambda _, effort: startup.measure(effort),
    "overhead": overhead.measure,
    "tcp": tcp.measure,
    "udp": udp.measure,
    "dns": dns.measure,
    "slot": slot.measure,
    "guest": guest.measure,
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("part", nargs="*", help=f"{', '.join(PARTS)}; all of them by default")
    parser.add_argument("--rounds", type=int, default=15, help="of each comparison (15)")
    parser.add_argument("--loops", type=int, default=1000, help="turns of a loop each time (1000)")
    parser.add_argument("--starts", type=int, help="of each watcher of that loop (one per round)")
    parser.add_argument("--output", type=Path, default=BUILD.parent / "bench.json")
    parser.add_argument(
        "--scratch",
        type=Path,
        default=BUILD,
        help="folder for logs; a guest's checkout is read-only",
    )
    chosen = parser.parse_args()
    unknown = set(chosen.part) - PARTS.keys()
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if chosen.rounds < LEAST_ROUNDS:
        parser.error(f"at least {LEAST_ROUNDS} rounds")
    return chosen


def main() -> int:
    """
    Run what was asked for.  A part that cannot run says why and the rest goes on;
    the status is 1 if one failed.
    """
    chosen = _arguments()
    if os.geteuid() != 0:
        print("bench: needs root, to load BPF programs and open perf events", file=sys.stderr)
        return 1
    remaining = workshop.install()
    if remaining:
        print(f"bench: {remaining}", file=sys.stderr)
    chosen.scratch.mkdir(parents=True, exist_ok=True)
    print(report.heading())
    figures: list[Figure | Missing] = []
    status = 0
    effort = Effort(
        chosen.scratch,
        chosen.rounds,
        loops=chosen.loops,
        starts=chosen.starts or chosen.rounds,
        progress=_progress,
    )
    for name, measure in PARTS.items():
        if chosen.part and name not in chosen.part:
            continue
        try:
            found = measure(Workshop(), effort)
        except UnavailableError as error:
            found = [Missing(name, str(error))]
        except (OSError, RuntimeError, WrongContentsError) as error:
            found = [Missing(name, f"FAILED: {error}")]
            status = 1
        figures += found
        # After each part, so that an interrupted run leaves what it measured.
        report.write(chosen.output, found)
    _progress("")
    print(report.table(figures))
    return status


if __name__ == "__main__":
    sys.exit(main())
