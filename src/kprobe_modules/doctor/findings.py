# SPDX-License-Identifier: Apache-2.0
"""
What the doctor says: one finding per check.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs

__all__ = ["Finding", "Status", "fail", "ok", "skip", "warn"]

Status: TypeAlias = Literal["ok", "warn", "fail", "skip"]


@attrs.frozen
class Finding:
    """
    The outcome of one check.

    Attributes:
        id: dotted name, stable between versions.
        status: ``ok``; ``warn``, something is missing that can be done without;
            ``fail``, something is missing that is needed; ``skip``, could not tell.
        found: what was seen.
        remedy: what to do about it; never empty when the status is ``fail``.
    """

    id: str
    status: Status
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.status:<4}  {self.id:<26}  {self.found}"
        return f"{text}; remedy: {self.remedy}" if self.remedy else text


def ok(name: str, found: str) -> Finding:
    """
    Report that a check passed.
    """
    return Finding(name, "ok", found)


def warn(name: str, found: str, remedy: str = "") -> Finding:
    """
    Report what can be done without.
    """
    return Finding(name, "warn", found, remedy)


def fail(name: str, found: str, remedy: str) -> Finding:
    """
    Report what is needed, and how to get it.
    """
    return Finding(name, "fail", found, remedy)


def skip(name: str, found: str) -> Finding:
    """
    Report that a check could not be made.
    """
    return Finding(name, "skip", found)
