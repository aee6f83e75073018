# SPDX-License-Identifier: Apache-2.0
"""
A small workload of DNS within one network namespace, for captures: each record that the dns
module has comes of it.
"""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack, contextmanager
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING

from tests.support.namespaces import Namespace, alone
from tests.support.watch import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kprobe_modules import Collector

__all__ = ["DnsWorkload", "dns_workload"]

PORT = 53
SECONDS = 60
"""How long a socket waits: longer than any that is emulated takes."""

TIMEOUT_MS = 3000
"""Of queries: longer than an answer takes where it is emulated."""

A, CNAME, TXT, AAAA = 1, 5, 16, 28
NOERROR, NXDOMAIN = 0, 3
RESPONSE, AUTHORITATIVE, TRUNCATED, RECURSION_DESIRED = 0x8000, 0x0400, 0x0200, 0x0100

HEADER = struct.Struct("!6H")
RECORD = struct.Struct("!HHHIH")
QUESTION_NAME = 0xC000 | HEADER.size
"""Where the name of the question is, instead of it."""


def wire_name(name: str) -> bytes:
    return b"".join(bytes((len(label),)) + label.encode() for label in name.split(".")) + b"\0"


def query(number: int, name: str, rdtype: int) -> bytes:
    """
    Return a query of class IN.
    """
    question = wire_name(name) + struct.pack("!HH", rdtype, 1)
    return HEADER.pack(number, RECURSION_DESIRED, 1, 0, 0, 0) + question


def answer(asked: bytes, *records: tuple[int, bytes], flags: int = 0) -> bytes:
    """
    Return a response, with records of the name that is asked for, each a type and its data.
    """
    head = HEADER.pack(
        int.from_bytes(asked[:2], "big"),
        RESPONSE | RECURSION_DESIRED | flags,
        1,
        len(records),
        0,
        0,
    )
    section = b"".join(
        RECORD.pack(QUESTION_NAME, rdtype, 1, 300, len(data)) + data for rdtype, data in records
    )
    return head + asked[HEADER.size :] + section


def take(source: socket.socket, size: int) -> bytes:
    """
    Read so many bytes of a connection.
    """
    data = b""
    while len(data) < size:
        piece = source.recv(size - len(data))
        assert piece, "the connection has ended"
        data += piece
    return data


@contextmanager
def dns_workload() -> Iterator[DnsWorkload]:
    """
    Make servers.
    """
    with alone() as here, ExitStack() as opened:
        servers = {}
        for family, address in ((socket.AF_INET, here.ipv4), (socket.AF_INET6, here.ipv6)):
            server = opened.enter_context(here.open_socket(family, socket.SOCK_DGRAM))
            server.settimeout(SECONDS)
            server.bind((address, PORT))
            servers[family] = server
        yield DnsWorkload(here, servers)


class DnsWorkload:
    """
    What asks, answers and fails to, step by step.
    """

    def __init__(self, here: Namespace, servers: Mapping[int, socket.socket]) -> None:
        self._here = here
        self._servers = servers
        self._numbers = count(4711)
        self._sockets: set[object] = set()
        """The module's numbers for them."""

    def run(self, collector: Collector) -> None:
        """
        Do everything.
        """
        collector.attach("dns", timeout_ms=TIMEOUT_MS)
        self.answer()
        self.retry()
        self.truncate()
        self.time_out(collector)
        self.leave(collector)
        collector.flush()

    def answer(self) -> None:
        """
        Ask over IPv4, IPv6 and IPv4 that is mapped; the last name does not exist.
        """
        alias = wire_name("host.example.test")
        address = socket.inet_aton("192.0.2.1")
        for family, server, rdtype, records, flags in (
            (socket.AF_INET, socket.AF_INET, A, [(A, address)], AUTHORITATIVE),
            (socket.AF_INET6, socket.AF_INET6, AAAA, [(CNAME, alias)], NOERROR),
            (socket.AF_INET6, socket.AF_INET, A, [], NXDOMAIN),
        ):
            with self._client(family) as client:
                asked = self._ask(client, self._servers[server], "www.Example.test", rdtype)
                self._reply(client, self._servers[server], answer(asked, *records, flags=flags))

    def retry(self) -> None:
        """
        Ask twice and be answered twice.
        """
        server = self._servers[socket.AF_INET]
        with self._client(socket.AF_INET) as client:
            asked = self._ask(client, server, "twice.test", A)
            self._ask(client, server, "twice.test", A, int.from_bytes(asked[:2], "big"))
            for last in (1, 2):
                given = answer(asked, (A, bytes((192, 0, 2, last))))
                self._reply(client, server, given)

    def truncate(self) -> None:
        """
        Be told to ask again over TCP, and be answered there in two pieces.
        """
        server = self._servers[socket.AF_INET]
        with self._client(socket.AF_INET) as client:
            asked = self._ask(client, server, "large.test", TXT)
            self._reply(client, server, answer(asked, flags=TRUNCATED))
        with self._here.open_socket() as listener, self._here.open_socket() as client:
            listener.bind((self._here.ipv4, PORT))
            listener.listen()
            client.connect(listener.getsockname())
            other, _ = listener.accept()
            with other:
                given = answer(asked, *[(TXT, b"\xff" + 255 * b"x")] * 3)
                for source, target, message in ((client, other, asked), (other, client, given)):
                    framed = len(message).to_bytes(2, "big") + message
                    half = len(framed) // 2
                    for piece in (framed[:half], framed[half:]):
                        source.sendall(piece)
                        assert take(target, len(piece)) == piece

    def time_out(self, collector: Collector) -> None:
        """
        Be answered when that has been given up.
        """
        server = self._servers[socket.AF_INET]
        with self._client(socket.AF_INET) as client:
            asked = self._ask(client, server, "late.test", A)
            self._until_timeouts(collector, 2)
            self._reply(client, server, answer(asked, (A, bytes(4))))

    def leave(self, collector: Collector) -> None:
        """
        Ask, and close both sockets.
        """
        server = self._servers[socket.AF_INET]
        with self._client(socket.AF_INET) as client:
            self._ask(client, server, "never.test", A)
        server.close()
        self._until_timeouts(collector, 2)

    def _client(self, family: int) -> socket.socket:
        client = self._here.open_socket(family, socket.SOCK_DGRAM)
        client.settimeout(SECONDS)
        return client

    def _ask(
        self, client: socket.socket, server: socket.socket, name: str, rdtype: int, number: int = 0
    ) -> bytes:
        """
        Send a query, and have the server take it; return it.
        """
        asked = query(number or next(self._numbers), name, rdtype)
        address = server.getsockname()[0]
        is_mapped = client.family != server.family
        client.sendto(asked, (f"::ffff:{address}" if is_mapped else address, PORT))
        told, self._asker = server.recvfrom(1 << 16)
        assert told == asked
        return asked

    def _reply(self, client: socket.socket, server: socket.socket, given: bytes) -> None:
        """
        Send a response to who has asked last, who takes it.
        """
        server.sendto(given, self._asker)
        assert client.recv(1 << 16) == given

    def _until_timeouts(self, collector: Collector, wanted: int) -> None:
        """
        Take records until so many queries more have timed out.
        """
        deadline = monotonic() + DEADLINE
        while wanted > 0:
            assert monotonic() < deadline, f"there are {wanted} dns_timeout too few"
            for record in collector.poll(timeout=0.2):
                mine = getattr(record, "netns", None) == self._here.inode
                wanted -= mine and record.record == "dns_timeout"

    # -- what of a capture is about it ------------------------------------------

    def row(self, fields: Mapping[str, object]) -> bool:
        """
        Tell whether a message is about it; the first of a socket says where it is.
        """
        if fields.get("netns") == self._here.inode:
            self._sockets.add(fields["socket_id"])
        return fields["socket_id"] in self._sockets
