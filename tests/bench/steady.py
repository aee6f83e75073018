# SPDX-License-Identifier: Apache-2.0
"""
A generator on one CPU, our polling loop on another: does it keep up, at what cost?

The loop runs ahead of ordinary processes, so that a busy machine does not pass
for slow rings.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from kprobe_modules.transport import RingOptions
from tests.bench.figures import Figure, Missing, Target
from tests.bench.generator import Generator
from tests.bench.peers import Peer
from tests.bench.rounds import WrongContentsError
from tests.bench.schedule import CONSUMER_CPU, PRODUCER_CPU

if TYPE_CHECKING:
    from tests.bench.effort import Effort
    from tests.bench.workshop import Workshop

__all__ = ["measure"]

PAGES = RingOptions().pages
"""What the collector has by default: 2 MiB per CPU, of which those beyond the watermark hold
some 4 ms of a generator flat out."""

MORE_PAGES = 2048
"""8 MiB per CPU hold 15 ms of it: a hypervisor takes a processor away for 10 ms at a time."""

GRACE = 0.35
"""Seconds that the loop goes on after the generator has stopped, to empty the rings."""

PACED_PER_MS = 20


@attrs.frozen
class Stretch:
    """
    One run of the generator: how fast it was and what reading it cost.
    """

    per_second: float
    cpu_percent: float
    lost_percent: float
    stolen_ms: float
    """For how long a hypervisor kept the loop's processor for others."""


def _stretch(
    generator: Generator, ring: int, peer: Peer, seconds: float, per_ms: int = 0
) -> Stretch:
    """
    Run the generator on one CPU while the peer, on another, polls the rings of that number.

    CPU time is charged to the generator's seconds, not to the longer watch.
    """
    generator.reset(ring)
    stolen = _stolen_ms()
    generator.start_rate(ring, PRODUCER_CPU, int(seconds * 1000), per_ms)
    seen = json.loads(peer.ask(f"watch {seconds + GRACE}"))
    written, elapsed = generator.end_rate()
    stolen = _stolen_ms() - stolen
    counts = generator.counts(ring)
    if counts.emitted != written or seen["events"] + counts.lost != written:
        msg = f"wrote {written}, read {seen['events']}, the emit site lost {counts.lost}"
        raise WrongContentsError(msg)
    return Stretch(
        written / elapsed,
        100 * seen["cpu_seconds"] / elapsed,
        100 * counts.lost / written,
        stolen,
    )


def _stolen_ms() -> float:
    """
    Return the milliseconds that were stolen from the loop's processor so far (proc(5)).
    """
    name = f"cpu{CONSUMER_CPU} "
    with Path("/proc/stat").open(encoding="ascii") as stream:
        line = next(line for line in stream if line.startswith(name))
    return int(line.split()[8]) * 1000 / os.sysconf("SC_CLK_TCK")


def _one_event(generator: Generator, peer: Peer, times: int) -> tuple[list[float], list[float]]:
    """
    Microseconds of drains that find one event after a sleep, and of ones that find none.
    """
    found, empty = [], []
    for _ in range(times):
        generator.reset(0)
        generator.run(0, CONSUMER_CPU, 1)
        found.append(peer.drain("merged", 1).ns / 1000)
        empty.append(json.loads(peer.ask("empty 1"))["ns"] / 1000)
    return found, empty


def measure(workshop: Workshop, effort: Effort) -> list[Figure | Missing]:
    """
    Flat out, with the default rings and larger ones, at 20,000 events per second, and event by
    event.
    """
    names = ("steady_flat_out_cpu_percent", "steady_20k_cpu_percent", "drain_one_us")
    with_more = f"steady_flat_out_{MORE_PAGES}_pages"
    if PRODUCER_CPU == CONSUMER_CPU:
        return [Missing(name, "needs two CPUs") for name in names]
    flat: list[Stretch] = []
    larger: list[Stretch] = []
    paced: list[Stretch] = []
    with (
        Generator(workshop, 2) as generator,
        Peer(workshop.consume_ours(), generator.events[0], PAGES, undisturbed=True) as peer,
        Peer(workshop.consume_ours(), generator.events[1], MORE_PAGES, undisturbed=True) as more,
    ):
        for turn in range(effort.rounds):
            flat.append(_stretch(generator, 0, peer, effort.seconds))
            larger.append(_stretch(generator, 1, more, effort.seconds))
            paced.append(_stretch(generator, 0, peer, effort.seconds, PACED_PER_MS))
            effort.progress(f"steady: round {turn + 1} of {effort.rounds}")
        found, empty = _one_event(generator, peer, effort.drains)
    nothing = Target(at_most=0)
    return [
        Figure(names[0], [s.cpu_percent for s in flat], "%", Target(at_most=10)),
        Figure(names[1], [s.cpu_percent for s in paced], "%", Target(at_most=0.5)),
        Figure(names[2], found, "us", Target(at_most=10), "after the process slept"),
        Figure("drain_empty_us", empty, "us"),
        Figure(
            "steady_flat_out_lost_percent",
            [s.lost_percent for s in flat],
            "%",
            note="of default rings, which hold some 4 ms",
        ),
        Figure(f"{with_more}_lost_percent", [s.lost_percent for s in larger], "%", nothing),
        Figure(
            f"{with_more}_cpu_percent", [s.cpu_percent for s in larger], "%", Target(at_most=10)
        ),
        Figure("steady_20k_lost_percent", [s.lost_percent for s in paced], "%", nothing),
        Figure(
            "steady_flat_out_stolen_ms",
            [s.stolen_ms for s in (*flat, *larger)],
            "ms",
            note="by the hypervisor, from the loop's processor",
        ),
        Figure("steady_flat_out_per_second", [s.per_second for s in flat], "1/s"),
        Figure("steady_20k_per_second", [s.per_second for s in paced], "1/s"),
    ]
