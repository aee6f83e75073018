# SPDX-License-Identifier: Apache-2.0
"""
The UDP sockets that are open, and the last that were.

The handler offers its table to other modules' handlers as ``udp_socket_table``:
``context.find("udp_socket_table")`` gives a `SocketTable`, or None while the udp module is
not attached.
"""

from __future__ import annotations

import attrs

from kprobe_modules.api import OpenSockets

__all__ = ["Socket", "SocketTable"]


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


class SocketTable(OpenSockets[Socket]):
    """
    Sockets by id: at most as many as ``udp_open_sockets`` holds.
    """
