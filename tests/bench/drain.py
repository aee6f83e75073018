# SPDX-License-Identifier: Apache-2.0
"""
Full rings of every CPU, drained by each consumer in turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench.figures import Figure, Missing, Target, ratios
from tests.bench.rounds import Contender, Laps, Race
from tests.bench.workshop import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.bench.effort import Effort
    from tests.bench.workshop import Workshop

__all__ = ["measure"]

#: name, slower, faster, bound on slower / faster.
COMPARISONS = (
    ("drain_merged_vs_c_decode", "ours_merged", "c_decode", Target(at_most=2.5)),
    ("drain_unmerged_vs_c_decode", "ours_unmerged", "c_decode", Target(at_most=1.0)),
    ("drain_merged_vs_go", "go_decode", "ours_merged", Target(at_least=4)),
    ("drain_merged_vs_bcc", "bcc_cast", "ours_merged", Target(at_least=70)),
    ("record_vs_bcc", "bcc_cast", "ours_records", Target(at_least=6)),
)


def contenders(workshop: Workshop) -> tuple[list[Contender], list[str]]:
    """
    Everybody who can run here, and why the others cannot.
    """
    ours = workshop.consume_ours()
    pure = {"KPROBE_MODULES_PURE": "1"}
    field = [
        Contender("c_decode", "c", [str(workshop.consume_c())], "decode"),
        Contender("c_count", "c", [str(workshop.consume_c())], "count", decodes=False),
        Contender("ours_merged", "ours", ours, "merged"),
        Contender("ours_unmerged", "ours", ours, "unmerged"),
        Contender("ours_records", "ours", ours, "records"),
        Contender("ours_pure_merged", "pure", ours, "merged", environment=pure),
    ]
    reasons = []
    try:
        field.append(Contender("go_decode", "go", [str(workshop.consume_go())], "decode"))
    except UnavailableError as error:
        reasons.append(f"go: {error}")
    try:
        field.append(Contender("bcc_cast", "bcc", workshop.consume_bcc(), "cast"))
    except UnavailableError as error:
        reasons.append(f"bcc: {error}")
    return field, reasons


def measure(workshop: Workshop, effort: Effort) -> list[Figure | Missing]:
    """
    Race for each ring size; ratios first, then everybody's nanoseconds per event.

    The figures without a suffix are warm, as when a busy ring is drained over
    and over, which is when nanoseconds count; those that end in ``_cold`` are of
    a first drain after other programs have run.
    """
    field, reasons = contenders(workshop)
    compared: list[Figure | Missing] = []
    times: list[Figure | Missing] = []
    for pages in effort.sizes:
        first = pages == effort.sizes[0]
        laps = _laps(workshop, field, pages, effort, effort.rounds if first else _fewer(effort))
        size = "" if first else f"_{pages}_pages"
        for state in ("warm", "cold"):
            series = {
                name: [getattr(lap, state) for lap in of_each] for name, of_each in laps.items()
            }
            suffix = size if state == "warm" else f"{size}_cold"
            note = f"{pages} pages, {state}"
            compared += _compare(series, suffix, note, "; ".join(reasons))
            times += [
                Figure(f"ns_{name}{suffix}", values, "ns", note=note)
                for name, values in series.items()
            ]
    return compared + times


def _fewer(effort: Effort) -> int:
    """
    Large rings take seconds to fill where each message wakes the reader.
    """
    return min(effort.rounds, max(5, effort.rounds // 2))


def _laps(
    workshop: Workshop, field: Sequence[Contender], pages: int, effort: Effort, rounds: int
) -> dict[str, list[Laps]]:
    laps: dict[str, list[Laps]] = {contender.name: [] for contender in field}
    with Race(workshop, field, pages, effort.messages) as race:
        # The first round pays for memory and imports, and is thrown away.
        race.round(0)
        for turn in range(1, rounds + 1):
            for name, lap in race.round(turn).items():
                laps[name].append(lap)
            effort.progress(f"{pages} pages: round {turn} of {rounds}")
    return laps


def _compare(
    series: dict[str, list[float]], suffix: str, note: str, reason: str
) -> Iterator[Figure | Missing]:
    for name, slower, faster, target in COMPARISONS:
        if slower in series and faster in series:
            values = ratios(series[slower], series[faster])
            yield Figure(name + suffix, values, "x", target, note)
        else:
            yield Missing(name + suffix, reason)
