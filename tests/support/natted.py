# SPDX-License-Identifier: Apache-2.0
"""
Addresses and sockets for tests of the nat module's handler.
"""

from __future__ import annotations

import socket

import attrs

__all__ = ["CLIENT", "SERVER", "One", "raw"]

CLIENT, SERVER = "192.0.2.1", "198.51.100.2"


def raw(address: str) -> bytes:
    """
    Return an IPv4 address as messages have it.
    """
    return socket.inet_aton(address).ljust(16, b"\0")


@attrs.define(eq=False)
class One:
    """
    A socket, as the tcp and udp modules offer them.
    """

    socket_id: int
    local_address: str
    local_port: int
    remote_address: str | None = None
    remote_port: int | None = None
    netns: int | None = 7
    pid: int | None = 99
