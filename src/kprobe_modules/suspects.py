# SPDX-License-Identifier: Apache-2.0
"""
What a scan after a loss has not found, and may be gone.

Its end may still be under way in the rings, so it is waited for a while before it is taken
for lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["CONFIRM_NS", "Suspects"]

CONFIRM_NS = 2_000_000_000
"""How long the end of what is gone may still be under way in the rings."""

Key = TypeVar("Key", bound="Hashable")


class Suspects(Generic[Key]):
    """
    Keys of entities that may be gone, each since when.
    """

    def __init__(self) -> None:
        self._since: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._since)

    def add(self, key: Key) -> None:
        """
        Suspect an entity, unless it is already.
        """
        self._since.setdefault(key, 0)

    def clear(self) -> None:
        """
        Suspect nobody any more.
        """
        self._since.clear()

    def due(self, now: int) -> list[Key]:
        """
        Return, once, those suspected for long enough; whose end has come meanwhile is among them.

        Args:
            now: nanoseconds since the epoch; the first call with it begins the wait.
        """
        due = []
        for key, since in list(self._since.items()):
            if not since:
                self._since[key] = now
            elif now - since >= CONFIRM_NS:
                del self._since[key]
                due.append(key)
        return due
