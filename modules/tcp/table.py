# SPDX-License-Identifier: Apache-2.0
"""
The sockets that are open, and the last that were.

The handler offers its table to other modules' handlers as ``socket_table``:
``context.find("socket_table")`` gives a `SocketTable`, or None while the tcp module is
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
"""How many open sockets are kept at most: as many as ``tcp_open_sockets`` holds."""


@attrs.define(eq=False)
class Socket:
    """
    What is known of a socket.  For readers: only the tcp module changes it.

    The fields are those of its records.
    """

    socket_id: int
    pid: int | None
    start_time: int | None
    cgroup_id: int | None
    netns: int
    family: str
    local_address: str
    local_port: int
    remote_address: str | None
    remote_port: int | None
    role: str | None
    state: str
    existing: bool = False


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
        self._listeners: dict[tuple[int, int], dict[int, Socket]] = {}
        """By network namespace and port; several may share one (SO_REUSEPORT)."""
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

    def listener(self, netns: int, port: int) -> Socket | None:
        """
        Return a socket that listens on a port of a network namespace.
        """
        found = self._listeners.get((netns, port))
        return next(iter(found.values())) if found else None

    def add(self, socket: Socket) -> None:
        """
        Enter a socket that is open.
        """
        self._open[socket.socket_id] = socket
        if socket.role == "listen":
            key = socket.netns, socket.local_port
            self._listeners.setdefault(key, {})[socket.socket_id] = socket
        if len(self._open) > OPEN_COUNT:
            self._remove(next(iter(self._open.values())))
            self.forgotten += 1

    def set_port(self, socket: Socket, port: int) -> None:
        """
        Give a socket the port that the kernel has chosen for it.
        """
        self._remove(socket)
        socket.local_port = port
        self.add(socket)

    def end(self, socket: Socket) -> None:
        """
        Take a socket out, and remember that it has ended.
        """
        self._remove(socket)
        self._ended[socket.socket_id] = socket
        while len(self._ended) > ENDED_COUNT:
            self._ended.popitem(last=False)

    def _remove(self, socket: Socket) -> None:
        self._open.pop(socket.socket_id, None)
        key = socket.netns, socket.local_port
        sharing = self._listeners.get(key)
        if sharing is not None:
            sharing.pop(socket.socket_id, None)
            if not sharing:
                del self._listeners[key]
