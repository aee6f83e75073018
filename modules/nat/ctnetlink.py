# SPDX-License-Identifier: Apache-2.0
"""
What the kernel says of its connections over netlink, in one network namespace.

The constants are those of ``linux/netfilter/nfnetlink.h``, ``nfnetlink_conntrack.h`` and
``nf_conntrack_common.h``.
"""

from __future__ import annotations

import errno
import socket
from struct import Struct
from typing import TYPE_CHECKING

from kprobe_modules.modules.nat.netlink import DUMP, READ, ask, attributes, messages, open_netlink

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ENTRY", "FOUND", "LOST", "NEW", "OVER", "dump", "open_events", "read_events", "show"]

FOUND, NEW, OVER, LOST = range(4)
"""What an entry tells: a connection is there, was made, or is gone; messages were lost."""

ENTRY = Struct("<BBBBHxxII16s16s16s16s4H")
"""What is kept of a message: what it tells, family, protocol, kind, zone, network namespace,
the kernel's id; original source and destination, translated source and destination; their
ports in the same order."""

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _SO_RCVBUFFORCE = 270, 33
_ADD_MEMBERSHIP = 1
_GROUP_NEW, _GROUP_DESTROY = 1, 3

_CT_NEW, _CT_GET, _CT_DELETE = 0x100, 0x101, 0x102
_GENERIC = 4
"""Bytes of ``struct nfgenmsg``, which begins with the family."""

_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _ID, _ZONE = 1, 2, 3, 12, 18
_TUPLE_IP, _TUPLE_PROTO, _TUPLE_ZONE = 1, 2, 3
_SOURCES, _DESTINATIONS = (1, 3), (2, 4)
_PROTO_NUM = 1
_SOURCE_PORTS = frozenset({2, 4, 7})
"""Source port, or the id of ICMP or ICMPv6."""
_DESTINATION_PORT = 3
_TYPES, _CODES = (5, 8), (6, 9)

_NAT_CLASH = 1 << 12
"""One of two that race, which the kernel keeps for a second beside the other."""

_BUFFER = 4 << 20

_WORD = Struct(">I")
_PORT = Struct(">H")

_Tuple = tuple[bytes, int, bytes, int, int, int]
"""Source with its port, destination with its port, protocol, and zone."""


def open_events() -> socket.socket:
    """
    Return a socket that hears of connections made and gone, in the thread's namespace.

    Raises:
        OSError: without ctnetlink, or CAP_NET_ADMIN.
    """
    opened = open_netlink(_NETLINK_NETFILTER)
    try:
        opened.setblocking(False)  # noqa: FBT003
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        opened.bind((0, 0))
        for group in (_GROUP_NEW, _GROUP_DESTROY):
            opened.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except BaseException:
        opened.close()
        raise
    return opened


def read_events(opened: socket.socket, netns: int, limit: int) -> Iterator[bytes]:
    """
    Iterate over entries of what a socket has heard of translated connections.

    Args:
        opened: by `open_events`.
        netns: inode number of its network namespace.
        limit: how many messages to read at most.
    """
    for _ in range(limit):
        try:
            raw = opened.recv(READ)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            yield ENTRY.pack(LOST, 0, 0, 0, 0, netns, 0, b"", b"", b"", b"", 0, 0, 0, 0)
            continue
        for kind, payload in messages(raw):
            if kind in (_CT_NEW, _CT_DELETE):
                yield from _entry(NEW if kind == _CT_NEW else OVER, netns, payload)


def dump(netns: int) -> Iterator[bytes]:
    """
    Iterate over entries of the translated connections that the thread's namespace has.

    Args:
        netns: inode number of that namespace.

    Raises:
        OSError: without ctnetlink, or CAP_NET_ADMIN.
    """
    for kind, payload in _everything():
        if kind == _CT_NEW:
            yield from _entry(FOUND, netns, payload)


def show() -> None:
    """
    Have the kernel write all connections of the thread's namespace, without a look at them.

    Raises:
        OSError: without ctnetlink, or CAP_NET_ADMIN.
    """
    for _ in _everything():
        pass


def _everything() -> Iterator[tuple[int, memoryview]]:
    return ask(_NETLINK_NETFILTER, _CT_GET, DUMP, bytes(_GENERIC))


def _entry(what: int, netns: int, payload: memoryview) -> Iterator[bytes]:
    """
    Yield the entry of a message, if that is about a translated connection.
    """
    found = dict(attributes(payload[_GENERIC:]))
    status = _WORD.unpack(found[_STATUS])[0] if _STATUS in found else None
    kind = 0 if status is None else status >> 4 & 3
    # A message that tells of an end may come without the status: then the tuples tell.
    if status is not None and (not kind or status & _NAT_CLASH):
        return
    source, source_port, destination, destination_port, protocol, zone = _tuple(found[_TUPLE_ORIG])
    behind, behind_port, before, before_port, _, _ = _tuple(found[_TUPLE_REPLY])
    if _ZONE in found:
        (zone,) = _PORT.unpack(found[_ZONE])
    yield ENTRY.pack(
        what,
        6 if payload[0] == socket.AF_INET6 else 4,
        protocol,
        kind,
        zone,
        netns,
        _WORD.unpack(found[_ID])[0] if _ID in found else 0,
        source,
        destination,
        before,
        behind,
        source_port,
        destination_port,
        before_port,
        behind_port,
    )


def _tuple(raw: memoryview) -> _Tuple:
    parts = dict(attributes(raw))
    source = destination = b""
    for kind, value in attributes(parts[_TUPLE_IP]):
        if kind in _SOURCES:
            source = bytes(value)
        elif kind in _DESTINATIONS:
            destination = bytes(value)
    source_port = destination_port = protocol = 0
    for kind, value in attributes(parts[_TUPLE_PROTO]):
        if kind == _PROTO_NUM:
            protocol = value[0]
        elif kind in _SOURCE_PORTS:
            (source_port,) = _PORT.unpack(value)
        elif kind == _DESTINATION_PORT:
            (destination_port,) = _PORT.unpack(value)
        elif kind in _TYPES:
            destination_port |= value[0] << 8
        elif kind in _CODES:
            destination_port |= value[0]
    zone = _PORT.unpack(parts[_TUPLE_ZONE])[0] if _TUPLE_ZONE in parts else 0
    return source, source_port, destination, destination_port, protocol, zone
