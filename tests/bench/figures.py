# SPDX-License-Identifier: Apache-2.0
"""
What a benchmark part returns: named figures with their spread and target.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Figure", "Missing", "Target", "ratios"]


@attrs.frozen
class Target:
    """
    A bound that the project set itself: *at_most* or *at_least*, never both.
    """

    at_most: float | None = None
    at_least: float | None = None

    def met(self, value: float) -> bool:
        """
        Whether *value* keeps the bound.
        """
        if self.at_most is not None:
            return value <= self.at_most
        return self.at_least is None or value >= self.at_least

    def __str__(self) -> str:
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return f">= {self.at_least:g}"


@attrs.frozen
class Figure:
    """
    One measured name: a value per round, all in *unit* (``x`` is a ratio).
    """

    name: str
    values: Sequence[float]
    unit: str
    target: Target | None = None
    note: str = ""

    @property
    def median(self) -> float:
        """
        The middle value, which is what the table and the JSON file state.
        """
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """
        Whether the median keeps the target; None without a target.
        """
        return None if self.target is None else self.target.met(self.median)


@attrs.frozen
class Missing:
    """
    A figure that could not be measured here, and what it would take.
    """

    name: str
    reason: str


def ratios(over: Iterable[float], under: Iterable[float]) -> tuple[float, ...]:
    """
    Round by round quotients of two series of the same length.
    """
    return tuple(a / b for a, b in zip(over, under, strict=True))
