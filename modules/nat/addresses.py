# SPDX-License-Identifier: Apache-2.0
"""
Which addresses a network namespace has itself.

A socket that is bound to all addresses of its namespace is an end of a connection only if
the address is one of these; else the packet is on its way to somewhere else.
"""

from __future__ import annotations

import socket
from struct import Struct
from typing import TYPE_CHECKING

from kprobe_modules.modules.nat.netlink import DUMP, ask, attributes, current_namespace

from kprobe_modules.api import network_namespaces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kprobe_modules.api import Context

__all__ = ["LASTING_NS", "REFRESH_NS", "OwnAddresses"]

REFRESH_NS = 1_000_000_000
"""How soon an address that is not among them is asked for again."""

LASTING_NS = 60_000_000_000
"""How soon one that is."""

_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_HEAD = 8
"""Bytes of ``struct ifaddrmsg``, which begins with the family."""

_ENTRY = Struct("<I16s")


class OwnAddresses:
    """
    The addresses of all network namespaces.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._known: set[tuple[int, bytes]] = set()
        self._read = -LASTING_NS

    def has(self, now: int, netns: int, address: bytes) -> bool:
        """
        Tell whether a namespace has an address.

        Args:
            now: nanoseconds since the epoch.
            netns: inode number of the namespace.
            address: 16 bytes in network order, of which IPv4 fills the first four.
        """
        if address[0] == 127 and not any(address[4:]):  # noqa: PLR2004 - 127.0.0.0/8
            return True
        old = LASTING_NS if (netns, address) in self._known else REFRESH_NS
        if now - self._read >= old:
            self._read = now
            raw = self._context.observe("addresses", lambda: b"".join(self._look()))
            self._known = set(_ENTRY.iter_unpack(raw))
        return (netns, address) in self._known

    def _look(self) -> list[bytes]:
        entries: list[bytes] = []
        for inside in network_namespaces(self._context.proc_root):
            with inside:
                netns = current_namespace()
                try:
                    entries += (_ENTRY.pack(netns, address) for address in _addresses())
                except OSError as error:
                    self._context.log.warning("network namespace %d: %s", netns, error)
        return entries


def _addresses() -> Iterator[bytes]:
    """
    Iterate over the addresses of the thread's namespace.
    """
    for kind, payload in ask(socket.NETLINK_ROUTE, _RTM_GETADDR, DUMP, bytes(_HEAD)):
        if kind == _RTM_NEWADDR:
            found = dict(attributes(payload[_HEAD:]))
            # Of a point-to-point link IFA_ADDRESS is the other end's.
            address = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))
            if address is not None:
                yield bytes(address)
