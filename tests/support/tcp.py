# SPDX-License-Identifier: Apache-2.0
"""
TCP connections whose every end is known: addresses, bytes, who closed first, and why.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SYN", "End", "Workload", "connect", "ends_of", "exchange", "send_segment"]

LINGER_0 = struct.pack("ii", 1, 0)
"""``struct linger``: close(2) sends a reset."""
SYN, RST = 2, 4
"""The flags of a TCP header (RFC 9293)."""
RETRANSMITS = 2
"""Where ``struct tcp_info`` of <linux/tcp.h> has ``tcpi_retransmits``: so often a timer expired."""
TCP_DEFER_ACCEPT = 9
"""From <linux/tcp.h>."""


@attrs.define
class End:
    """
    One end of a connection, as its process saw it.
    """

    local: tuple[str, int]
    remote: tuple[str, int] | None
    family: str
    role: str
    sent: int = 0
    received: int = 0
    closed_first: str | None = None
    error: str | None = None
    established: bool = True
    resets: list[str] = attrs.Factory(list)
    """Directions of the resets that it saw."""


def _plain(address: tuple[str, int]) -> tuple[str, int]:
    """
    Return an address as records have it: IPv4 where an IPv6 socket maps it.
    """
    host, port = address[:2]
    return host.removeprefix("::ffff:"), port


def ends_of(client: socket.socket, server: socket.socket) -> tuple[End, End]:
    """
    Return both ends of a connection that is made.
    """
    near, far = _plain(client.getsockname()), _plain(client.getpeername())
    family = "ipv6" if ":" in near[0] else "ipv4"
    assert _plain(server.getpeername()) == near
    return End(near, far, family, "connect"), End(far, near, family, "accept")


def connect(listener: socket.socket, host: str = "") -> tuple[socket.socket, socket.socket]:
    """
    Connect to a listener and accept.
    """
    name = listener.getsockname()
    client = socket.create_connection((host or name[0], name[1]), timeout=60)
    server, _ = listener.accept()
    server.settimeout(60)
    return client, server


def _send(source: socket.socket, target: socket.socket, size: int) -> None:
    source.sendall(bytes(size))
    left = size
    while left:
        left -= len(target.recv(left))


def exchange(
    client: socket.socket, server: socket.socket, up: int, down: int, ends: tuple[End, End]
) -> None:
    """
    Send *up* bytes from the client and *down* from the server, all of which are read.
    """
    _send(client, server, up)
    _send(server, client, down)
    near, far = ends
    near.sent = far.received = near.sent + up
    near.received = far.sent = near.received + down


def _wait_for_end(reader: socket.socket) -> None:
    with suppress(ConnectionError):
        assert reader.recv(1) == b""


class Workload:
    """
    Opens and closes connections of every kind on the loopback interface.

    Attributes:
        ends: all ends, of connections that are over.
        silent: address of a listener that does not answer SYNs, and of who tried.
        deferred: address of a listener that wants data with the last ACK, and of who gave none.
        unanswered: address and port that refused, and of who tried.
    """

    def __init__(self) -> None:
        self.ends: list[End] = []
        self.silent: tuple[tuple[str, int], tuple[str, int]] | None = None
        self.deferred: tuple[tuple[str, int], tuple[str, int]] | None = None
        self.unanswered: tuple[tuple[str, int], tuple[str, int]] | None = None

    def run(self) -> None:
        """
        Do all of it, once.
        """
        with ExitStack() as stack:
            self._start_timeouts(stack)
            for number, listener in enumerate(self._listeners()):
                host = ("127.0.0.1", "::1", "127.0.0.1")[number]
                address = _plain(listener.getsockname())
                family = "ipv6" if ":" in address[0] else "ipv4"
                self._closes(listener, host)
                self._resets(listener, host)
                listener.close()
                self.ends.append(End(address, None, family, "listen", closed_first="local"))
                self._refused(host, address[1])
            self._finish_timeouts()

    def _listeners(self) -> Iterator[socket.socket]:
        yield socket.create_server(("127.0.0.1", 0))
        yield socket.create_server(("::1", 0), family=socket.AF_INET6)
        yield socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)

    def _closes(self, listener: socket.socket, host: str) -> None:
        for first, up, down in (("client", 1009, 100003), ("server", 65537, 0), ("client", 0, 0)):
            client, server = connect(listener, host)
            ends = near, far = ends_of(client, server)
            self.ends += ends
            exchange(client, server, up, down, ends)
            one, other = (client, server) if first == "client" else (server, client)
            one.shutdown(socket.SHUT_WR)
            _wait_for_end(other)
            other.close()
            _wait_for_end(one)
            one.close()
            near.closed_first, far.closed_first = (
                ("local", "remote") if first == "client" else ("remote", "local")
            )

    def _resets(self, listener: socket.socket, host: str) -> None:
        for by in ("client", "server"):
            client, server = connect(listener, host)
            ends = near, far = ends_of(client, server)
            self.ends += ends
            exchange(client, server, 211, 307, ends)
            one, other = (client, server) if by == "client" else (server, client)
            mine, theirs = (near, far) if by == "client" else (far, near)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
            one.close()
            _wait_for_end(other)
            other.close()
            mine.closed_first, theirs.closed_first = "local", "remote"
            mine.resets, theirs.resets = ["sent"], ["received"]
            theirs.error = "ECONNRESET"

    def _refused(self, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as client:
            client.bind((host, 0))
            near = _plain(client.getsockname())
            assert client.connect_ex((host, port)) == errno.ECONNREFUSED
        self.ends.append(
            End(
                near,
                (host, port),
                "ipv6" if ":" in host else "ipv4",
                "connect",
                closed_first="remote",
                error="ECONNREFUSED",
                established=False,
                resets=["received"],
            )
        )
        if family == socket.AF_INET:
            send_segment(near, (host, port), RST)
        self.unanswered = (host, port), near

    def _start_timeouts(self, stack: ExitStack) -> None:
        """
        Begin two handshakes that the other side does not complete.
        """
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        # One more than the backlog may wait; who comes then is not answered.
        stack.enter_context(socket.create_connection(full.getsockname()))
        self._waits = stack.enter_context(socket.socket())
        self._waits.settimeout(0)
        with suppress(BlockingIOError):
            self._waits.connect(full.getsockname())
        self.silent = full.getsockname(), self._waits.getsockname()
        defers = stack.enter_context(socket.socket())
        defers.setsockopt(socket.IPPROTO_TCP, TCP_DEFER_ACCEPT, 1)
        defers.bind(("127.0.0.1", 0))
        defers.listen()
        client = stack.enter_context(socket.create_connection(defers.getsockname()))
        self.deferred = defers.getsockname(), client.getsockname()
        self._accepts = defers

    def _finish_timeouts(self) -> None:
        """
        Wait until both have timed out once: the SYN-ACK that is sent again is answered.
        """
        assert select.select([self._accepts], [], [], 60)[0], "nothing came for the listener"
        self._accepts.accept()[0].close()
        deadline = time.monotonic() + 60
        while not self._waits.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[RETRANSMITS]:
            assert time.monotonic() < deadline, "the SYN was answered, or never sent again"
            time.sleep(0.05)


def send_segment(source: tuple[str, int], to: tuple[str, int], flags: int) -> None:
    """
    Send a segment without data over IPv4, as if there were a socket that does.
    """
    header = struct.pack(">HHIIBBHHH", source[1], to[1], 0, 0, 5 << 4, flags, 0, 0, 0)
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(to[0])
    pseudo = addresses + struct.pack(">BBH", 0, socket.IPPROTO_TCP, len(header)) + header
    total = sum(struct.unpack(f">{len(pseudo) // 2}H", pseudo))
    checksum = ~(total % 0xFFFF) & 0xFFFF
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.bind((source[0], 0))
        raw.sendto(header[:16] + struct.pack(">H", checksum) + header[18:], (to[0], 0))
