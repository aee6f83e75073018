# SPDX-License-Identifier: Apache-2.0
"""
Waiting until programs that were running have finished.

Every tracing program runs inside an RCU read-side section, so one grace period
after its link was closed it cannot be running any more.
"""

from __future__ import annotations

import ctypes
import platform

__all__ = ["wait_for_programs"]

_MEMBARRIER = {"x86_64": 324, "aarch64": 283}
"""Number of membarrier(2), from each architecture's <asm/unistd.h>."""

_MEMBARRIER_CMD_GLOBAL = 1
"""``synchronize_rcu`` for everybody's asking, since 4.16 (as SHARED since 4.3)."""


def wait_for_programs() -> bool:
    """
    Wait for one RCU grace period: some ten milliseconds on an idle machine.

    Returns:
        False where the kernel refuses (nohz_full CPUs), and nothing was waited for.
    """
    number = _MEMBARRIER.get(platform.machine())
    if number is None:
        return False
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    arguments = (ctypes.c_long(number), ctypes.c_int(_MEMBARRIER_CMD_GLOBAL), ctypes.c_int(0))
    return bool(syscall(*arguments) == 0)
