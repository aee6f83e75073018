# SPDX-License-Identifier: Apache-2.0
"""
Full rings of every CPU, drained by each consumer in turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench.figures import Figure, Missing, Target, ratios
from tests.bench.rounds import Contender, race
from tests.bench.workshop import UnavailableError

if TYPE_CHECKING:
    from tests.bench.effort import Effort
    from tests.bench.workshop import Workshop

__all__ = ["measure"]

#: Targets are stated for the first ring size; the names of the figures of the
#: others end in it.
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
    """
    field, reasons = contenders(workshop)
    figures: list[Figure | Missing] = []
    times: list[Figure | Missing] = []
    for pages in effort.sizes:
        suffix = "" if pages == effort.sizes[0] else f"_{pages}_pages"
        series = race(workshop, field, pages, effort)
        for name, slower, faster, target in COMPARISONS:
            if slower in series and faster in series:
                values = ratios(series[slower], series[faster])
                figures.append(Figure(name + suffix, values, "x", target, f"{pages} pages"))
            else:
                figures.append(Missing(name + suffix, "; ".join(reasons)))
        times += [
            Figure(f"ns_{name}{suffix}", values, "ns", note=f"per event, {pages} pages")
            for name, values in series.items()
        ]
    return figures + times
