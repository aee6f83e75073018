# SPDX-License-Identifier: Apache-2.0
"""
A small workload of datagrams between two network namespaces, for captures: each record that
the udp module has comes of it.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING

import attrs

from tests.support.datagrams import Counted, drops_in_proc
from tests.support.namespaces import Namespace, joined
from tests.support.watch import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kprobe_modules import Collector
    from kprobe_modules.capture.steps import Observation

__all__ = ["UdpWorkload", "udp_workload"]

INTERVAL_MS = 10
"""Of traffic, which is waited for."""

SOCKETS = 13
"""How many there are of it, in all."""

SOCKET_ID = struct.Struct("<Q")
"""What ``struct km_udp_open_socket`` begins with."""


@contextmanager
def udp_workload() -> Iterator[UdpWorkload]:
    """
    Make what is to be there before the module is.
    """
    with joined() as (client, server), Counted(client) as one, Counted(server) as other:
        one.socket.connect((other.address, other.port))
        greet(one, other)
        yield UdpWorkload(client, server, (one, other))


def place(one: Counted) -> tuple[str, int]:
    return one.address, one.port


def greet(one: Counted, other: Counted) -> None:
    """
    Send until something arrives: a device that has just come up loses what is sent first.
    """
    waiting = other.socket.gettimeout()
    other.socket.settimeout(0.1)
    while True:
        one.send(101, place(other))
        with suppress(TimeoutError):
            other.read()
            break
    other.socket.settimeout(waiting)


class UdpWorkload:
    """
    What gets ports, talks, drops and closes, step by step.
    """

    def __init__(
        self, client: Namespace, server: Namespace, found: tuple[Counted, Counted]
    ) -> None:
        self._client = client
        self._server = server
        self._found = found
        self._spaces = {client.inode, server.inode}
        self._sockets: set[object] = set()
        """Their ids."""
        self._told: Counter[str] = Counter()

    def run(self, collector: Collector) -> None:
        """
        Do everything.
        """
        collector.attach("udp", traffic_interval_ms=INTERVAL_MS)
        self.talk(collector)
        for family in (socket.AF_INET, socket.AF_INET6):
            self.connect(family)
        self.visit()
        self.map()
        self.drop(collector)
        collector.resync("udp")
        for each in self._found:
            each.socket.close()
        self._until(collector, "udp_closed", SOCKETS)
        assert self._told["udp_opened"] == SOCKETS, self._told

    def talk(self, collector: Collector) -> None:
        """
        Send something between sockets that were found, and have it reported.
        """
        one, other = self._found
        one.send(307, place(other))
        other.read()
        other.send(401, place(one))
        one.read()
        self._until(collector, "udp_traffic", 4)

    def connect(self, family: int) -> None:
        """
        Ask and answer between sockets that are connected.
        """
        with Counted(self._client, family, bind=False) as one, Counted(self._server, family) as two:
            one.socket.connect(place(two))
            one.send(503, place(two))
            two.socket.connect(two.read())
            two.send(0, place(one))
            one.read()

    def visit(self) -> None:
        """
        Send to two peers from a socket that is bound by what it sends, and cut one off.
        """
        with (
            Counted(self._client, bind=False) as one,
            Counted(self._server) as first,
            Counted(self._server) as second,
        ):
            one.send(601, place(first))
            one.send(607, place(second))
            one.send(613, place(second))
            first.read()
            second.read()
            second.read(room=13, size=613)

    def map(self) -> None:
        """
        Send over IPv4 from a socket of IPv6, and be answered.
        """
        with (
            Counted(self._client, socket.AF_INET6, bind=False) as one,
            Counted(self._server) as other,
        ):
            one.send(701, (f"::ffff:{other.address}", other.port))
            other.send(709, other.read())
            one.read()

    def drop(self, collector: Collector) -> None:
        """
        Send more than a socket has room for.
        """
        with Counted(self._client) as one, Counted(self._server) as other:
            # Where it is not met before it is used, what it has dropped until then is not told.
            one.send(719, place(other))
            other.read()
            other.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
            while drops_in_proc(other) < 3:
                one.send(1000, place(other))
            other.read()
            self._until(collector, "udp_dropped", 1)

    def _until(self, collector: Collector, name: str, count: int) -> None:
        """
        Take records until there were so many of a kind about this workload since it began.
        """
        deadline = monotonic() + DEADLINE
        while self._told[name] < count:
            assert monotonic() < deadline, f"of {count} {name} there are {self._told[name]}"
            for record in collector.poll(timeout=0.2):
                if getattr(record, "netns", None) in self._spaces:
                    self._told[record.record] += 1

    # -- what of a capture is about it ------------------------------------------

    def row(self, fields: Mapping[str, object]) -> bool:
        """
        Tell whether a message is about it; the first of a socket says where it is, the last
        may not.
        """
        if fields["netns"] in self._spaces:
            self._sockets.add(fields["socket_id"])
        return fields["socket_id"] in self._sockets

    def observation(self, each: Observation) -> Observation:
        """
        Return an observation, in which the table of sockets has no others.
        """
        if each.what.startswith("lookup udp_open_sockets") and isinstance(each.seen, bytes):
            # A byte and a length come before the value.
            is_kept = each.seen and SOCKET_ID.unpack_from(each.seen, 5)[0] in self._sockets
            return each if is_kept else attrs.evolve(each, seen=b"")
        return each
