# SPDX-License-Identifier: Apache-2.0
"""
What writing one message costs in the kernel, by transport and way of waking.

The kernel times BPF_PROG_TEST_RUN itself.  ``none`` builds the message and drops
it; it is taken off the others before they are compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench.figures import Figure, Missing, ratios
from tests.bench.generator import Generator
from tests.bench.peers import Peer

if TYPE_CHECKING:
    from tests.bench.effort import Effort
    from tests.bench.workshop import Workshop

__all__ = ["measure"]

PAGES = 512
PAGE = 4096


def measure(workshop: Workshop, effort: Effort) -> list[Figure | Missing]:
    """
    Nanoseconds per message, rings empty before and not full after each round.
    """
    ours, c = workshop.consume_ours(), [str(workshop.consume_c())]
    times: dict[str, list[float]] = {"none": [], "perf": [], "perf_wake_each": [], "ringbuf": []}
    with (
        Generator(workshop, 1, "none") as none,
        Generator(workshop, 2, "perf") as perf,
        Generator(workshop, 1, "ringbuf") as ringbuf,
        Peer(ours, perf.events[0], PAGES) as half,
        Peer(c, perf.events[1], PAGES) as each,
        Peer(ours, ringbuf.events[0], 2 * PAGES, environment={"TRANSPORT": "ringbuf"}) as buffer,
    ):
        count = effort.messages or perf.capacity(PAGES * PAGE)
        for turn in range(effort.rounds + 1):
            for name, generator, instance, peer in (
                ("none", none, 0, None),
                ("perf", perf, 0, half),
                ("perf_wake_each", perf, 1, each),
                ("ringbuf", ringbuf, 0, buffer),
            ):
                generator.reset(instance)
                took = generator.run(instance, 1, count)
                if peer is not None:
                    peer.drain("count" if peer is each else "unmerged", count)
                if turn:
                    times[name].append(took)
            effort.progress(f"emit: round {turn} of {effort.rounds}")
    figures: list[Figure | Missing] = [
        Figure(f"emit_{name}_ns", values, "ns", note="per message")
        for name, values in times.items()
    ]
    perf_alone = [a - b for a, b in zip(times["perf"], times["none"], strict=True)]
    ringbuf_alone = [a - b for a, b in zip(times["ringbuf"], times["none"], strict=True)]
    figures.append(Figure("emit_ringbuf_vs_perf", ratios(ringbuf_alone, perf_alone), "x"))
    return figures
