# SPDX-License-Identifier: Apache-2.0
"""
Nanoseconds that a tail call to an empty slot costs, on the kernel that runs.

What callers of slots pay as long as nobody serves them.  The part ``udp`` has the same among its
kprobes, where there are any.
"""

from __future__ import annotations

from contextlib import closing
from time import perf_counter_ns
from typing import TYPE_CHECKING

from kprobe_modules.libbpf import BpfObject, find
from kprobe_modules.libbpf.program import test_run
from tests.bench.figures import Figure, Missing
from tests.bench.schedule import CONSUMER_CPU, scheduled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.effort import Effort
    from tests.bench.workshop import Workshop

__all__ = ["measure"]

PACKET = bytes(64)
RUNS = 200_000
REPEATS = 9
"""Of these the one counts that was disturbed least."""


def measure(workshop: Workshop, effort: Effort) -> list[Figure | Missing]:
    """
    Time both programs in turn.
    """
    data = workshop.slot_object().read_bytes()
    differences = []
    with closing(BpfObject.open(data, "slot", find())) as target, scheduled(CONSUMER_CPU):
        target.load()
        fds = [target.programs[name].fd for name in ("alone", "calling")]
        for _ in range(effort.rounds):
            alone, calling = _least(fds)
            differences.append(calling - alone)
    note = f"on {alone:.1f} ns, the last time, of a program that does nothing else"
    return [Figure("slot_empty_ns", differences, "ns", note=note)]


def _least(fds: Sequence[int]) -> list[float]:
    """
    Return nanoseconds per run of each program.
    """
    least = [float("inf")] * len(fds)
    for _ in range(REPEATS):
        for index, fd in enumerate(fds):
            before = perf_counter_ns()
            test_run(fd, packet=PACKET, repeat=RUNS)
            least[index] = min(least[index], (perf_counter_ns() - before) / RUNS)
    return least
