# SPDX-License-Identifier: Apache-2.0
"""
Which CPUs are online.
"""

from __future__ import annotations

from pathlib import Path

from kprobe_modules.errors import RingError

__all__ = ["ONLINE", "parse_cpus"]

#: Possible CPUs are not online CPUs; this file lists the latter.
ONLINE = Path("/sys/devices/system/cpu/online")


def parse_cpus(text: str) -> tuple[int, ...]:
    """
    Read a list of CPUs as the kernel writes it, ``0-3,8``.

    Raises:
        RingError: the text is not such a list.
    """
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        try:
            cpus.extend(range(int(first), int(last or first) + 1))
        except ValueError:
            message = f"list of CPUs: {text!r}, expected one like 0-3,8"
            raise RingError(message) from None
    return tuple(cpus)
