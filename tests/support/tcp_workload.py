# SPDX-License-Identifier: Apache-2.0
"""
A small workload of connections between two network namespaces, for captures: each record that
the tcp module has comes of it.
"""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING

from tests.support.namespaces import Namespace, joined, silenced
from tests.support.sockets import connected
from tests.support.tcp import LINGER_0, SYN, send_segment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kprobe_modules import Collector
    from kprobe_modules.capture.steps import Observation

__all__ = ["TcpWorkload", "tcp_workload"]

DEADLINE = 240.0
"""Seconds: emulated guests are slow."""

DISCARD = 9
"""A port at which nobody listens."""

INTERVAL_MS = 10
"""Of metrics, which are waited for."""

OPEN_SOCKET = struct.Struct("<44xI")
"""The network namespace in ``struct km_tcp_open_socket``."""


@contextmanager
def tcp_workload() -> Iterator[TcpWorkload]:
    """
    Make what is to be there before the module is.
    """
    with joined() as (client, server), server.listen() as listener:
        one, other = connected(client, listener)
        with one, other:
            one.sendall(b"a" * 101)
            other.sendall(b"b" * 211)
            yield TcpWorkload(client, server, listener, (one, other))


def receive_all(one: socket.socket) -> None:
    while one.recv(1 << 16):
        pass


class TcpWorkload:
    """
    What opens, talks, fails and closes, step by step.
    """

    def __init__(
        self,
        client: Namespace,
        server: Namespace,
        listener: socket.socket,
        found: tuple[socket.socket, socket.socket],
    ) -> None:
        self._client = client
        self._server = server
        self._listener = listener
        self._found = found
        self._spaces = {client.inode, server.inode}

    def run(self, collector: Collector) -> None:
        """
        Do everything.
        """
        collector.attach("tcp", metrics_interval_ms=INTERVAL_MS)
        self.talk(collector)
        for family in (socket.AF_INET, socket.AF_INET6):
            self.close(family)
        self.reset()
        self.refuse()
        self.lose_syn(collector)
        self.repeat_syn(collector)
        collector.resync("tcp")
        self.end()
        collector.flush()

    def talk(self, collector: Collector) -> None:
        """
        Send something over the connection that was found, and have it reported.
        """
        one, _ = self._found
        one.sendall(b"a" * 307)
        self._until(collector, "tcp_metrics", 3)

    def close(self, family: int) -> None:
        """
        Exchange something, and close in order.
        """
        with self._server.listen(family) as listener:
            one, other = connected(self._client, listener)
        with one, other:
            one.sendall(b"a" * 503)
            one.shutdown(socket.SHUT_WR)
            receive_all(other)
            other.sendall(b"b" * 701)
            other.close()
            receive_all(one)

    def reset(self) -> None:
        """
        Cut a connection off.
        """
        one, other = connected(self._client, self._listener)
        with one, other:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
            one.close()
            with suppress(ConnectionResetError):
                other.recv(1)

    def refuse(self) -> None:
        """
        Connect to a port at which nobody listens.
        """
        with self._client.open_socket() as one:
            assert one.connect_ex((self._server.ipv4, DISCARD)) == errno.ECONNREFUSED

    def lose_syn(self, collector: Collector) -> None:
        """
        Try to connect until a SYN was not answered.
        """
        with self._client.open_socket() as one, silenced(self._client, self._server):
            one.settimeout(0)
            assert one.connect_ex((self._server.ipv4, DISCARD)) == errno.EINPROGRESS
            self._until(collector, "tcp_syn_timeout", 1)

    def repeat_syn(self, collector: Collector) -> None:
        """
        Send a SYN twice, so that it is answered twice.
        """
        with silenced(self._server, self._client), self._client.inside():
            for _ in range(2):
                send_segment((self._client.ipv4, DISCARD), self._listener.getsockname(), SYN)
            self._until(collector, "tcp_synack_timeout", 1)

    def end(self) -> None:
        """
        Close what was there before, with something unread, which resets it.
        """
        one, other = self._found
        other.close()
        one.close()
        self._listener.close()

    def _until(self, collector: Collector, name: str, count: int) -> None:
        """
        Take records until there were so many of a kind about this workload.
        """
        deadline = monotonic() + DEADLINE
        while count > 0:
            assert monotonic() < deadline, f"there are {count} {name} too few"
            for record in collector.poll(timeout=0.2):
                mine = getattr(record, "netns", None) in self._spaces
                count -= mine and record.record == name

    # -- what of a capture is about it ------------------------------------------

    def row(self, fields: Mapping[str, object]) -> bool:
        """
        Tell whether a message is about it.
        """
        return fields["netns"] in self._spaces

    def observation(self, each: Observation) -> Observation:
        """
        Return an observation, all of which is about it: nobody else is in a guest.
        """
        if each.what.startswith("lookup tcp_open_sockets") and isinstance(each.seen, bytes):
            # A byte and a length come before the value.
            assert not each.seen or OPEN_SOCKET.unpack_from(each.seen, 5)[0] in self._spaces
        return each
