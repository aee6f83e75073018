# SPDX-License-Identifier: Apache-2.0
"""
What tests leave out where the processor is emulated.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["fewer"]


def fewer(count: int, emulated: int) -> int:
    """
    Return how many to make: less where the processor is emulated, and all takes minutes.
    """
    return emulated if "QEMU TCG" in Path("/proc/cpuinfo").read_text("ascii") else count
