# SPDX-License-Identifier: Apache-2.0
"""
Finding in records what they say of one socket of the test.
"""

from __future__ import annotations

from collections import defaultdict
from time import monotonic
from typing import TYPE_CHECKING, Any

import attrs

from kprobe_modules import RingOptions
from tests.support.watch import DEADLINE

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from kprobe_modules import Collector, Record
    from tests.support.namespaces import Namespace

__all__ = ["ROOMY", "Name", "Watch", "by_socket", "connected", "name_of", "of"]

ROOMY = RingOptions(pages=1024)
"""Nothing is to be lost of ours while others on the machine have thousands of connections."""


def of(records: Sequence[Record], kind: type[Any]) -> list[Any]:
    """
    Return the records of one kind, in order.
    """
    return [record for record in records if isinstance(record, kind)]


def by_socket(records: Sequence[Record]) -> dict[int, list[Any]]:
    """
    Sort what was recorded of sockets by which, in order.
    """
    found: dict[int, list[Any]] = defaultdict(list)
    for record in records:
        identity = getattr(record, "socket_id", None)
        if identity is not None:
            found[identity].append(record)
    return found


@attrs.frozen
class Name:
    """
    What tells a socket of the test from any other; ports of the other side are 0 if it has none.
    """

    netns: int
    local_port: int
    remote_port: int


def name_of(namespace: Namespace, one: socket.socket, remote_port: int = 0) -> Name:
    """
    Return the name of a socket that is bound, and connected unless its peer's port is given.
    """
    if not remote_port:
        try:
            remote_port = one.getpeername()[1]
        except OSError:
            remote_port = 0
    return Name(namespace.inode, one.getsockname()[1], remote_port)


def connected(client: Namespace, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """
    Return both ends of a new connection.
    """
    one = client.open_socket(listener.family)
    one.connect(listener.getsockname())
    other, _ = listener.accept()
    return one, other


class Watch:
    """
    A collector, and all that it has recorded so far.
    """

    def __init__(self, collector: Collector) -> None:
        self.collector = collector
        self.records: list[Record] = collector.flush()

    def flush(self) -> None:
        """
        Take what has happened until now.
        """
        self.records += self.collector.flush()

    def until(self, done: Callable[[], object]) -> None:
        """
        Take records until *done*.
        """
        deadline = monotonic() + DEADLINE
        self.flush()
        while not done():
            assert monotonic() < deadline, f"not done after {DEADLINE} s"
            self.records += self.collector.poll(timeout=0.1)
        self.flush()

    def lives(self, name: Name) -> list[list[Any]]:
        """
        Return what was recorded of each socket that had a name, in order of their beginnings.
        """
        return [
            records
            for records in by_socket(self.records).values()
            if (records[0].netns, records[0].local_port, records[0].remote_port or 0)
            == (name.netns, name.local_port, name.remote_port)
        ]

    def life(self, name: Name) -> list[Any]:
        """
        Return what was recorded of the only socket that had a name.
        """
        found = self.lives(name)
        assert len(found) == 1, f"{name}: {found}"
        return found[0]

    def closed(self, *names: Name) -> None:
        """
        Take records until sockets have ended.
        """
        self.until(
            lambda: all(
                any(record.record == "tcp_closed" for record in self.life(name)) for name in names
            )
        )
