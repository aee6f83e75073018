# SPDX-License-Identifier: Apache-2.0
"""
The sockets that are open, and the last that were.

The handler offers its table to other modules' handlers as ``socket_table``:
``context.find("socket_table")`` gives a `SocketTable`, or None while the tcp module is
not attached.
"""

from __future__ import annotations

import attrs

from kprobe_modules.api import OpenSockets

__all__ = ["Socket", "SocketTable"]


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


class SocketTable(OpenSockets[Socket]):
    """
    Sockets by id: at most as many as ``tcp_open_sockets`` holds.
    """

    def __init__(self) -> None:
        super().__init__()
        self._listeners: dict[tuple[int, int], dict[int, Socket]] = {}
        """By network namespace and port; several may share one (SO_REUSEPORT)."""

    def listener(self, netns: int, port: int) -> Socket | None:
        """
        Return a socket that listens on a port of a network namespace.
        """
        found = self._listeners.get((netns, port))
        return next(iter(found.values())) if found else None

    def add(self, socket: Socket) -> None:
        """
        Enter a socket that is open; the one entered first goes when they are too many.
        """
        if socket.role == "listen":
            key = socket.netns, socket.local_port
            self._listeners.setdefault(key, {})[socket.socket_id] = socket
        super().add(socket)

    def set_port(self, socket: Socket, port: int) -> None:
        """
        Give a socket the port that the kernel has chosen for it.
        """
        self.remove(socket)
        socket.local_port = port
        self.add(socket)

    def remove(self, socket: Socket) -> None:
        """
        Take a socket out, without a trace.
        """
        super().remove(socket)
        key = socket.netns, socket.local_port
        sharing = self._listeners.get(key)
        if sharing is not None:
            sharing.pop(socket.socket_id, None)
            if not sharing:
                del self._listeners[key]
