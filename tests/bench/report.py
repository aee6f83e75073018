# SPDX-License-Identifier: Apache-2.0
"""
The table for people, and the file of name → value for programs.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.figures import Figure, Missing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["heading", "table", "write"]

_VERDICT = {True: "ok", False: "MISSED", None: ""}


def heading() -> str:
    """
    The machine that the absolute figures belong to.
    """
    cpus = len(os.sched_getaffinity(0))
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(("model name", "CPU part")):
            model = line.partition(":")[2].strip()
            break
    load = os.getloadavg()[0]
    return (
        f"{cpus} CPUs, {model}, Linux {platform.release()}, "
        f"Python {platform.python_version()}, load {load:.2f} at the start"
    )


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def _row(figure: Figure | Missing) -> tuple[str, ...]:
    if isinstance(figure, Missing):
        return (figure.name, "-", "", "", "", "", figure.reason)
    spread = f"{_number(min(figure.values))} .. {_number(max(figure.values))}"
    target = str(figure.target) if figure.target else ""
    verdict = _VERDICT[figure.met]
    return (
        figure.name,
        _number(figure.median),
        figure.unit,
        spread,
        target,
        verdict,
        figure.note,
    )


def table(figures: Sequence[Figure | Missing]) -> str:
    """
    One line per figure: median, minimum and maximum of the rounds, target.
    """
    head = ("figure", "median", "", "min .. max", "target", "", "")
    rows = [head, *map(_row, figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column == 1 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def write(path: Path, figures: Iterable[Figure | Missing]) -> None:
    """
    Write medians as one flat JSON object, and all rounds beside it.

    What *path* already holds of other parts is kept, so that parts may be
    measured one at a time, or in a guest.
    """
    measured = [figure for figure in figures if isinstance(figure, Figure)]
    medians = {figure.name: round(figure.median, 4) for figure in measured}
    rounds = {figure.name: [round(value, 4) for value in figure.values] for figure in measured}
    path.parent.mkdir(parents=True, exist_ok=True)
    _merge(path, medians)
    _merge(path.with_name(f"{path.stem}-rounds.json"), rounds)


def _merge(path: Path, values: dict[str, float] | dict[str, list[float]]) -> None:
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    text = json.dumps({**known, **values}, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
