# SPDX-License-Identifier: Apache-2.0
"""
Datagrams of given sizes, for the example plug-in.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["LARGER", "SIZES", "send"]

SIZES = (10, 64, 65, 63, 5000, 100, 1201, 129, 4097, 9000, 0)

LARGER = [(10, 1), (65, 3), (5000, 5)]
"""Those of a class larger than any before, and how many there were until then."""


def send(family: socket.AddressFamily, sizes: Iterable[int] = SIZES) -> None:
    """
    Send datagrams of these sizes to a socket of our own.
    """
    with (
        socket.socket(family, socket.SOCK_DGRAM) as receiver,
        socket.socket(family, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        for size in sizes:
            sender.sendto(bytes(size), receiver.getsockname())
