# SPDX-License-Identifier: Apache-2.0
"""
Sockets of UDP that count for themselves what they send and read, by peer.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kprobe_modules.modules.udp.records import UdpTraffic

from tests.support.sockets import of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from tests.support.namespaces import Namespace

__all__ = [
    "GROUP",
    "UDP_GRO",
    "UDP_SEGMENT",
    "Counted",
    "Traffic",
    "drops_in_proc",
    "traffic_of",
]

UDP_SEGMENT, UDP_GRO = 103, 104
"""Options of ``include/uapi/linux/udp.h``."""
GROUP = "239.77.0.1"

Traffic = tuple[str, str | None, int | None]
"""Direction, and the other side's address and port."""


def _plain(address: str) -> str:
    return address.removeprefix("::ffff:")


class Counted:
    """
    A socket in a network namespace, which counts.

    Attributes:
        datagrams: how many, by direction and peer.
        bytes: their payload, in the same way.
        reads: how often something was read, and how many bytes came out.
    """

    def __init__(self, here: Namespace, family: int = socket.AF_INET, *, bind: bool = True) -> None:
        self.here = here
        self.family = family
        self.socket = here.open_socket(family, socket.SOCK_DGRAM)
        self.socket.settimeout(60)
        self.datagrams: Counter[Traffic] = Counter()
        self.bytes: Counter[Traffic] = Counter()
        self.reads = [0, 0]
        if bind:
            self.socket.bind((self.address, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()

    @property
    def address(self) -> str:
        """
        The namespace's own address of the socket's family.
        """
        return self.here.ipv4 if self.family == socket.AF_INET else self.here.ipv6

    @property
    def port(self) -> int:
        port: int = self.socket.getsockname()[1]
        return port

    def count(self, direction: str, peer: tuple[str, int], size: int, datagrams: int = 1) -> None:
        """
        Count what was sent or read by other means than these.
        """
        key = direction, _plain(peer[0]), peer[1]
        self.datagrams[key] += datagrams
        self.bytes[key] += size

    def send(self, size: int, to: tuple[str, int]) -> None:
        """
        Send so many bytes to somebody.
        """
        assert self.socket.sendto(bytes(size), to) == size
        self.count("sent", to, size)

    def read(self, room: int = 65535, *, size: int = -1, datagrams: int = 1) -> tuple[str, int]:
        """
        Read one, which has *size* bytes if they are more than there is room for; tell of whom.
        """
        data, peer = self.socket.recvfrom(room)
        self.count("received", peer[:2], len(data) if size < 0 else size, datagrams)
        self.reads[0] += 1
        self.reads[1] += len(data)
        return peer[:2]


def drops_in_proc(one: Counted) -> int:
    """
    Return what ``/proc/net/udp`` says that a socket has dropped.
    """
    name = "udp" if one.family == socket.AF_INET else "udp6"
    with one.here.inside():
        lines = Path("/proc/thread-self/net", name).read_text(encoding="ascii").splitlines()[1:]
    inode = str(os.fstat(one.socket.fileno()).st_ino)
    (found,) = (line.split() for line in lines if line.split()[9] == inode)
    return int(found[12])


def traffic_of(records: Sequence[Any]) -> tuple[Counter[Traffic], Counter[Traffic]]:
    """
    Add up what records say of datagrams and bytes, by direction and peer.
    """
    datagrams: Counter[Traffic] = Counter()
    payload: Counter[Traffic] = Counter()
    for item in of(records, UdpTraffic):
        key = item.direction, item.remote_address, item.remote_port
        datagrams[key] += item.datagrams
        payload[key] += item.bytes
    return datagrams, payload
