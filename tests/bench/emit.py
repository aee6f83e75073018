# SPDX-License-Identifier: Apache-2.0
"""
What writing one message costs in the kernel, by transport and way of waking.

The kernel times BPF_PROG_TEST_RUN itself.  ``none`` builds the message and drops
it; it is taken off the others before they are compared.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import attrs

from tests.bench.figures import Figure, Missing, ratios
from tests.bench.generator import Generator
from tests.bench.peers import Peer
from tests.bench.schedule import PRODUCER_CPU

if TYPE_CHECKING:
    from tests.bench.effort import Effort
    from tests.bench.workshop import Workshop

__all__ = ["measure"]

PAGES = 512
PAGE = 4096
RUNS = 5

BELOW_WAKEUP = 600
"""Messages that stay under ``km_ring_wakeup``, 64 KiB."""

NOTES = {
    "none": "built and dropped",
    "perf": "woken at half a ring, as the collector does",
    "perf_wake_each": "woken for each message, as libbpf's default",
    "ringbuf": "a reader that keeps up",
    "ringbuf_behind": "a reader that is behind by more than km_ring_wakeup",
}


@attrs.frozen
class Writer:
    """
    One way of writing *count* messages, and who empties the rings afterwards.
    """

    name: str
    generator: Generator
    instance: int
    count: int
    peer: Peer | None = None
    mode: str = "unmerged"

    def nanoseconds(self) -> float:
        """
        The median of a few runs, per message; the rings are empty before and after.
        """
        times = []
        for _ in range(RUNS):
            self.generator.reset(self.instance)
            times.append(self.generator.run(self.instance, PRODUCER_CPU, self.count))
            if self.peer is not None:
                self.peer.drain(self.mode, self.count)
        return statistics.median(times)


def measure(workshop: Workshop, effort: Effort) -> list[Figure | Missing]:
    """
    Nanoseconds per message, and what one transport costs next to the other.
    """
    ours, c = workshop.consume_ours(), [str(workshop.consume_c())]
    ringbuf_environment = {"TRANSPORT": "ringbuf"}
    with (
        Generator(workshop, 1, "none") as none,
        Generator(workshop, 2, "perf") as perf,
        Generator(workshop, 1, "ringbuf") as ringbuf,
        Peer(ours, perf.events[0], PAGES) as half,
        Peer(c, perf.events[1], PAGES) as each,
        Peer(ours, ringbuf.events[0], 2 * PAGES, environment=ringbuf_environment) as buffer,
    ):
        full = effort.messages or perf.capacity(PAGES * PAGE)
        few = min(full, BELOW_WAKEUP)
        writers = (
            Writer("none", none, 0, full),
            Writer("perf", perf, 0, full, half),
            Writer("perf_wake_each", perf, 1, few, each, "count"),
            Writer("ringbuf", ringbuf, 0, few, buffer),
            Writer("ringbuf_behind", ringbuf, 0, full, buffer),
        )
        times: dict[str, list[float]] = {writer.name: [] for writer in writers}
        for turn in range(effort.rounds):
            for writer in writers:
                times[writer.name].append(writer.nanoseconds())
            effort.progress(f"emit: round {turn + 1} of {effort.rounds}")
    figures: list[Figure | Missing] = [
        Figure(f"emit_{name}_ns", values, "ns", note=NOTES[name]) for name, values in times.items()
    ]
    alone = {
        name: [value - idle for value, idle in zip(times[name], times["none"], strict=True)]
        for name in ("perf", "ringbuf")
    }
    figures.append(Figure("emit_ringbuf_vs_perf", ratios(alone["ringbuf"], alone["perf"]), "x"))
    return figures
