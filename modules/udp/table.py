# SPDX-License-Identifier: Apache-2.0
"""
The UDP sockets that are open, and the last that were.

The handler offers its table to other modules' handlers as ``udp_socket_table``:
``context.find("udp_socket_table")`` gives a `SocketTable`, or None while the udp module is
not attached.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Socket", "SocketTable"]

ENDED_COUNT = 8192
"""How many sockets that have ended are remembered."""

OPEN_COUNT = 1 << 16
"""How many open sockets are kept at most: as many as ``udp_open_sockets`` holds."""


@attrs.define(eq=False)
class Socket:
    """
    What is known of a socket.  For readers: only the udp module changes it.

    The fields are those of its records; the addresses are those of its start.
    """

    socket_id: int
    pid: int | None
    start_time: int | None
    cgroup_id: int | None
    netns: int | None
    family: str
    local_address: str
    local_port: int
    remote_address: str | None
    remote_port: int | None
    existing: bool = False
    drops: int = 0
    """How many drops have been told."""


class SocketTable:
    """
    Sockets by id.

    Attributes:
        forgotten: open sockets that had to make room for others; what is heard of one of
            them starts it anew.
    """

    def __init__(self) -> None:
        self.forgotten = 0
        self._open: dict[int, Socket] = {}
        self._ended: OrderedDict[int, Socket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Socket]:
        """
        Iterate over a copy of those that are open.
        """
        return iter(list(self._open.values()))

    def get(self, socket_id: int) -> Socket | None:
        """
        Return the open socket with that id.
        """
        return self._open.get(socket_id)

    def ended(self, socket_id: int) -> Socket | None:
        """
        Return the socket with that id if it is one of the last that have ended.
        """
        return self._ended.get(socket_id)

    def add(self, socket: Socket) -> None:
        """
        Enter a socket that is open.
        """
        self._open[socket.socket_id] = socket
        if len(self._open) > OPEN_COUNT:
            del self._open[next(iter(self._open))]
            self.forgotten += 1

    def end(self, socket: Socket) -> None:
        """
        Take a socket out, and remember that it has ended.
        """
        self._open.pop(socket.socket_id, None)
        self._ended[socket.socket_id] = socket
        while len(self._ended) > ENDED_COUNT:
            self._ended.popitem(last=False)
