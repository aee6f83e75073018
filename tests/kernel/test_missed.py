# SPDX-License-Identifier: Apache-2.0
"""
Runs that the kernel leaves out are told of, without anybody having asked for statistics.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from kprobe_modules import Collector
from tests.support import nested
from tests.support.requirements import needs

if TYPE_CHECKING:
    from kprobe_modules.metrics import ProgramMetrics

KERNEL = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))
FORKS = 17


def programs(collector: Collector) -> dict[str, ProgramMetrics]:
    return {each.name: each for metrics in collector.metrics() for each in metrics.programs}


def test_runs_of_a_kprobe_that_the_kernel_leaves_out_are_counted() -> None:
    """
    The inner program never runs: its kprobe is hit inside of the outer one.

    The kernel counts that since 6.7.  It was hit as often as the outer program ran, as others
    fork too.
    """
    needs.root()
    needs.kprobes()
    with Collector() as collector:
        collector.attach(nested.MODULE)
        before = programs(collector)
        with collector.count_runs():
            for _ in range(FORKS):
                subprocess.run(["true"], check=True)
        after = programs(collector)
        outer, inner = after["outer_kprobe"], after["inner_kprobe"]
        assert outer.run_count >= FORKS
        assert (inner.run_count, outer.missed) == (0, 0)
        if KERNEL < (6, 7):
            assert inner.missed == 0
            return
        assert inner.missed - before["inner_kprobe"].missed >= outer.run_count
        collector.detach("nested")
        # What was counted at the link is not gone with it.
        assert collector.stats().modules["nested"]["missed"] >= inner.missed
