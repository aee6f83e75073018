# SPDX-License-Identifier: Apache-2.0
"""
Packets that are seen twice.

While hooks of this module take over from a tail call of another one's, or the other way round, a
packet may come by both routes.
"""

from __future__ import annotations

__all__ = ["KEPT_COUNT", "WINDOW_NS", "Packets"]

WINDOW_NS = 1_000_000_000
"""For so long a packet's number means this packet and no other."""

KEPT_COUNT = 4096
"""How many packets are remembered at least, unless their time is over."""

_BEGINNING = 12
"""How many bytes tell two packets apart that have the same number."""


class Packets:
    """
    The last packets, and by which route they came.
    """

    def __init__(self) -> None:
        self._since = 0
        self._newer: dict[tuple[int, int, int, bytes], tuple[int, int]] = {}
        self._older: dict[tuple[int, int, int, bytes], tuple[int, int]] = {}

    def repeated(
        self, time: int, packet: int, socket_id: int, direction: int, route: int, payload: bytes
    ) -> bool:
        """
        Tell whether a packet has come by another route before; remember it.
        """
        if time - self._since >= WINDOW_NS or len(self._newer) >= KEPT_COUNT:
            self._older, self._newer, self._since = self._newer, {}, time
        key = packet, socket_id, direction, payload[:_BEGINNING]
        before = self._newer.get(key) or self._older.get(key)
        if before is not None and before[0] != route and abs(time - before[1]) < WINDOW_NS:
            # Both routes have had it: what comes next with this number is another packet.
            self._newer.pop(key, None)
            self._older.pop(key, None)
            return True
        self._newer[key] = route, time
        return False
