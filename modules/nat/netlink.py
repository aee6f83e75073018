# SPDX-License-Identifier: Apache-2.0
"""
Netlink as far as it is the same for everybody: messages, attributes, dumps.

The constants are those of ``linux/netlink.h``.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DUMP", "READ", "ask", "attributes", "current_namespace", "messages", "open_netlink"]

READ = 1 << 17
"""Bytes that one message of the kernel never exceeds."""

DUMP = 0x300
"""The flag of a request for everything."""

_REQUEST = 1
_ERROR, _DONE = 2, 3
_TYPE_MASK = 0x3FFF

_HEADER = Struct("=IHHII")
_ATTRIBUTE = Struct("=HH")
_CODE = Struct("=i")


def current_namespace() -> int:
    """
    Return the inode number of the thread's network namespace.
    """
    return Path("/proc/thread-self/ns/net").stat().st_ino


def open_netlink(family: int) -> socket.socket:
    """
    Return a socket of a netlink family, such as ``NETLINK_ROUTE``.

    Raises:
        OSError: when the kernel does not have it.
    """
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)


def ask(family: int, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, memoryview]]:
    """
    Send a request and iterate over the types and payloads of what answers it.

    Raises:
        OSError: when the kernel refuses.
    """
    with open_netlink(family) as opened:
        opened.bind((0, 0))
        length = _HEADER.size + len(body)
        opened.send(_HEADER.pack(length, kind, _REQUEST | flags, 0, 0) + body)
        while True:
            for answer, payload in messages(opened.recv(READ)):
                if answer in (_DONE, _ERROR):
                    (code,) = _CODE.unpack_from(payload)
                    if code:
                        raise OSError(-code, f"netlink request {kind}: {os.strerror(-code)}")
                    return
                yield answer, payload


def messages(raw: bytes) -> Iterator[tuple[int, memoryview]]:
    """
    Iterate over the types and payloads of the messages of one datagram.
    """
    view, offset = memoryview(raw), 0
    while offset + _HEADER.size <= len(raw):
        length, kind, *_ = _HEADER.unpack_from(raw, offset)
        if length < _HEADER.size:
            return
        yield kind, view[offset + _HEADER.size : offset + length]
        offset += length + 3 & ~3


def attributes(raw: memoryview) -> Iterator[tuple[int, memoryview]]:
    """
    Iterate over the types and values of attributes that lie one behind the other.
    """
    offset = 0
    while offset + _ATTRIBUTE.size <= len(raw):
        length, kind = _ATTRIBUTE.unpack_from(raw, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, raw[offset + _ATTRIBUTE.size : offset + length]
        offset += length + 3 & ~3
