# SPDX-License-Identifier: Apache-2.0
"""
The kernel's clock, told in nanoseconds since the epoch.

Programs stamp messages with ``bpf_ktime_get_ns``, which is CLOCK_MONOTONIC.  Both
clocks are slewed together, so the difference between them only changes when
somebody sets the time; small differences seen between two readings are the cost
of reading, and following them would make records run backwards.
"""

from __future__ import annotations

from time import monotonic_ns, time_ns

__all__ = ["Clock"]

STEP = 5_000_000
"""A change of the difference by more than this many ns is a step of the clock."""


def _measure() -> int:
    """
    Return realtime - monotonic, read as tightly as possible.
    """
    best: tuple[int, int] | None = None
    for _ in range(5):
        before = monotonic_ns()
        real = time_ns()
        after = monotonic_ns()
        reading = (after - before, real - (before + after) // 2)
        if best is None or reading < best:
            best = reading
    assert best is not None  # noqa: S101 - the loop ran
    return best[1]


class Clock:
    """
    Knows how far the epoch lies from the kernel's monotonic zero.
    """

    def __init__(self) -> None:
        self.offset = _measure()
        """Add this to CLOCK_MONOTONIC to get nanoseconds since the epoch."""

    def refresh(self) -> None:
        """
        Follow the clock if it was set since the last call.
        """
        if abs(time_ns() - monotonic_ns() - self.offset) <= STEP:
            return
        # Or this thread lost its CPU between the two readings: measured with more
        # care, nothing has changed, and a new offset would only cost the order.
        offset = _measure()
        if abs(offset - self.offset) > STEP:
            self.offset = offset

    def now(self) -> int:
        """
        Return the present on this clock, in nanoseconds since the epoch.
        """
        return monotonic_ns() + self.offset
