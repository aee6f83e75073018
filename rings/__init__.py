# SPDX-License-Identifier: Apache-2.0
"""
Rings between the kernel and Python: perf rings per CPU, or one BPF ring buffer.

This room moves bytes and counts losses; it does not know what a message is
beyond its framing. ``Drainer`` and ``Batch`` are native where the compiled part
is installed, and pure Python where it is not or where
``KPROBE_MODULES_PURE=1`` asks for it; ``NATIVE`` tells which. Both behave the
same.
"""

from __future__ import annotations

if __name__ != "kprobe_modules.rings":
    _message = (
        f"import kprobe_modules.rings, not {__name__}: two names would make two of each class"
    )
    raise ImportError(_message)


from kprobe_modules.rings.bpf_ring import BpfRing, BpfRings
from kprobe_modules.rings.framing import SHARED, Drained, Framing, RingMemory, Tails
from kprobe_modules.rings.perf import PerfRing, PerfRings
from kprobe_modules.rings.twin import NATIVE, Batch, Drainer

__all__ = [
    "NATIVE",
    "SHARED",
    "Batch",
    "BpfRing",
    "BpfRings",
    "Drained",
    "Drainer",
    "Framing",
    "PerfRing",
    "PerfRings",
    "RingMemory",
    "Tails",
]
