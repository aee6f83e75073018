# SPDX-License-Identifier: Apache-2.0
"""
Datagrams over the loopback device with the udp module, the dns module and both, beside a peer; what
each of their programs cost, and what a slot for tail calls does.

No tool of Debian's bpfcc-tools, libbpf-tools or bpftrace counts datagrams.  gethostlatency has
probes in the C library, so that it sees names that are looked up by it, and is compared there; that
of libbpf-tools runs wherever there are uprobes, and bcc's wants headers of the kernel too.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from kprobe_modules.collector import Collector
from kprobe_modules.libbpf import ids
from tests.bench.figures import Figure, Missing, ratios
from tests.bench.watched import KPROBES, Loop, Peer, headers_lack, programs, runs, slowdowns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.bench.effort import Effort
    from tests.bench.workshop import Workshop

__all__ = ["measure"]

UPROBES = Path("/sys/bus/event_source/devices/uprobe/type")

REPEATS = 5
"""Loops of which the one counts that was disturbed least."""

OURS = {"_udp": ("udp",), "_dns": ("dns",), "_both": ("udp,dns",)}


@attrs.frozen
class Setting:
    """
    Modules with kprobes of the user's choice, and which of them see a datagram read.
    """

    modules: Sequence[str]
    chosen: Mapping[str, str]
    readers: Sequence[str]


_SENDER = {"udp.send": "send4_kprobe"}
_OWN_SLOT = {**_SENDER, "udp.receive": "receive_kprobe"}
_NO_SLOT = {**_SENDER, "udp.receive": "receive_alone_k", "dns.udp_received": "received_kprobe"}

#: A program's time is its own and that of what it has passed the packet to.
SETTINGS = {
    "alone": Setting(("udp",), _NO_SLOT, ("receive_alone_k",)),
    "empty": Setting(("udp",), _OWN_SLOT, ("receive_kprobe",)),
    "apart": Setting(("udp", "dns"), _NO_SLOT, ("receive_alone_k", "received_kprobe")),
    "taken": Setting(("udp", "dns"), _OWN_SLOT, ("receive_kprobe",)),
}


def measure(workshop: Workshop, effort: Effort) -> list[Figure | Missing]:
    """
    Slowdowns of datagrams, of queries and of looking up, the programs one by one, and slots.
    """
    command = [str(workshop.datagrams()), str(effort.loops)]
    resolve, exchange, ping_pong, flood = (
        Loop(name, [*command, name], effort.loops)
        for name in ("resolve", "exchange", "ping_pong", "flood")
    )
    lacks = "" if UPROBES.exists() else "needs uprobes"
    peers = (
        Peer("gethostlatency_libbpf", Path("/usr/sbin/gethostlatency"), "PID", lacks),
        Peer(
            "gethostlatency", Path("/usr/sbin/gethostlatency-bpfcc"), "PID", lacks or headers_lack()
        ),
    )
    return [
        *slowdowns(resolve, OURS, peers, effort),
        *slowdowns(exchange, OURS, (), effort),
        *slowdowns(ping_pong, OURS, (), effort),
        *slowdowns(flood, OURS, (), effort),
        *programs(exchange, ("udp", "dns"), effort),
        *slots(exchange, effort),
    ]


def slots(loop: Loop, effort: Effort) -> list[Figure | Missing]:
    """
    What a slot costs its caller while it is empty, and two modules that share it.
    """
    if not KPROBES.exists():
        return [Missing(name, "needs kprobes") for name in ("slot_empty", "slot_taken")]
    times: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for turn in range(effort.rounds):
        for name in random.Random(turn).sample(list(SETTINGS), len(SETTINGS)):  # noqa: S311 - no secret
            times[name].append(_reading_ns(loop, SETTINGS[name]))
        effort.progress(f"slots: round {turn + 1} of {effort.rounds}")
    return [
        Figure("slot_empty", ratios(times["empty"], times["alone"]), "x", note="of no slot"),
        Figure("slot_taken", ratios(times["taken"], times["apart"]), "x", note="of two kprobes"),
        *(
            Figure(f"reading_{name}_ns", values, "ns", note="programs, for each datagram read")
            for name, values in times.items()
        ),
    ]


def _reading_ns(loop: Loop, setting: Setting) -> float:
    """
    Nanoseconds that the programs which see it take for a datagram that is read.

    The least of some loops, as what disturbs one only adds to it: the first runs of a program
    find nothing in the caches, and an emulated machine has yet to translate it.
    """
    known = set(ids.program_ids())
    with Collector(setting.modules, chosen=setting.chosen) as collector:
        found = [runs(loop, collector, known) for _ in range(REPEATS)]
    return min(
        sum(took / times for took, times in (each[name] for name in setting.readers))
        for each in found
    )
