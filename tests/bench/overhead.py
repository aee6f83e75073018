# SPDX-License-Identifier: Apache-2.0
"""
A fork+exec loop with and without a watcher, and what each BPF program of ours cost.

bcc's execsnoop attaches kprobes, so it is compared only on kernels that have
them; that of libbpf-tools uses tracepoints and runs everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.watched import Loop, Peer, bcc_lacks, programs, slowdowns

if TYPE_CHECKING:
    from tests.bench.effort import Effort
    from tests.bench.figures import Figure, Missing
    from tests.bench.workshop import Workshop

__all__ = ["measure"]


def measure(workshop: Workshop, effort: Effort) -> list[Figure | Missing]:
    """
    Slowdowns, then the programs one by one.
    """
    loop = Loop("fork_exec", [str(workshop.churn()), str(effort.loops)], effort.loops)
    peers = (
        Peer("execsnoop", Path("/usr/sbin/execsnoop-bpfcc"), "PCOMM", bcc_lacks()),
        Peer("execsnoop_libbpf", Path("/usr/sbin/execsnoop"), "PCOMM"),
    )
    return [
        *slowdowns(loop, {"": ("processes",)}, peers, effort),
        *programs(loop, ("processes",), effort),
    ]
