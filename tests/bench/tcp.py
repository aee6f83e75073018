# SPDX-License-Identifier: Apache-2.0
"""
Connections over the loopback device, one after the other and one that carries much, with and
without a watcher, and what each BPF program of the tcp module cost.

tcplife of libbpf-tools attaches a tracepoint, as we do, and runs everywhere; its tcpconnect
attaches kprobes, so it is compared only on kernels that have them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.watched import KPROBES, Loop, Peer, programs, slowdowns

if TYPE_CHECKING:
    from tests.bench.effort import Effort
    from tests.bench.figures import Figure, Missing
    from tests.bench.workshop import Workshop

__all__ = ["measure"]

TCP = {"": ("tcp",)}


def measure(workshop: Workshop, effort: Effort) -> list[Figure | Missing]:
    """
    Slowdowns of connecting and of bulk, then the programs one by one.
    """
    command = [str(workshop.connect()), str(effort.loops)]
    connects = Loop("connect", command, effort.loops)
    bulk = Loop("bulk_mib", [*command, "bulk"], effort.loops)
    lacks = "" if KPROBES.exists() else "needs kprobes"
    peers = (
        Peer("tcplife_libbpf", Path("/usr/sbin/tcplife"), "PID"),
        Peer("tcpconnect_libbpf", Path("/usr/sbin/tcpconnect"), "PID", lacks),
    )
    return [
        *slowdowns(connects, TCP, peers, effort),
        *slowdowns(bulk, TCP, peers, effort),
        *programs(connects, ("tcp",), effort),
    ]
