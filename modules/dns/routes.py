# SPDX-License-Identifier: Apache-2.0
"""
Packets that are seen twice.

While hooks of this module take over from a tail call of another one's, or the other way round, a
packet may come by both routes: by one after the other, with nothing of that packet in between.
"""

from __future__ import annotations

__all__ = ["KEPT_COUNT", "WINDOW_NS", "Packets"]

WINDOW_NS = 1_000_000_000
"""For so long a packet's number means this packet and no other."""

KEPT_COUNT = 4096
"""How many packets are remembered at least, unless their time is over."""

_Seen = tuple[tuple[int, int, int], int, int]
"""What a packet is about, by which route it came, and when."""


class Packets:
    """
    The last packets, and by which route they came.

    The number of a packet comes from its address, which is soon the next one's.  So whatever else
    is seen of it tells that it is another packet: a socket that asks again and again has its
    packets at the same few addresses, and of some hundred queries a second two will have the same
    id.
    """

    def __init__(self) -> None:
        self._since = 0
        self._newer: dict[int, _Seen] = {}
        self._older: dict[int, _Seen] = {}

    def repeated(
        self, time: int, packet: int, socket_id: int, direction: int, route: int, payload: bytes
    ) -> bool:
        """
        Tell whether a packet has come by another route before; remember it.
        """
        if time - self._since >= WINDOW_NS or len(self._newer) >= KEPT_COUNT:
            self._older, self._newer, self._since = self._newer, {}, time
        # Not the payload itself, which has up to 4 KiB.
        content = socket_id, direction, hash(payload)
        before = self._newer.get(packet) or self._older.get(packet)
        if (
            before is not None
            and before[0] == content
            and before[1] != route
            and abs(time - before[2]) < WINDOW_NS
        ):
            # Both routes have had it: what comes next with this number is another packet.
            self._newer.pop(packet, None)
            self._older.pop(packet, None)
            return True
        self._newer[packet] = content, route, time
        return False
