# SPDX-License-Identifier: Apache-2.0
"""
The tcp module with sockets that do nothing for long: their age makes no difference.

The kernel has one timer that looks at such a socket, keepalive.  Time is counted in its expiries,
and for other sockets in intervals of metrics, of which some hundreds pass meanwhile.
``KPROBE_MODULES_TEST_IDLE=600`` waits for so many seconds besides, if ``PYTEST_ADDOPTS`` has a
``--timeout`` that lets it.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import attrs
from kprobe_modules.modules.tcp.records import TcpClosed, TcpMetrics, TcpOpened, TcpReset

from kprobe_modules import Collector
from tests.support.namespaces import Namespace, joined
from tests.support.requirements import needs
from tests.support.sockets import ROOMY, Name, Watch, connected, name_of, of

if TYPE_CHECKING:
    from collections.abc import Sequence

IDLE = float(os.environ.get("KPROBE_MODULES_TEST_IDLE", "0"))
INTERVAL_MS = 1
EXPIRIES = 3
"""Of the keepalive timer, one a second."""


@attrs.frozen
class Pair:
    """
    Both ends of a connection, which have sent so many bytes.
    """

    one: socket.socket
    other: socket.socket
    names: tuple[Name, Name]
    sent: tuple[int, int]

    def exchange(self, watch: Watch) -> None:
        """
        Send a byte each way and close, the client first.
        """
        self.one.sendall(b"a")
        self.other.sendall(b"b")
        self.one.shutdown(socket.SHUT_WR)
        drain(self.other)
        self.other.close()
        drain(self.one)
        self.one.close()
        watch.closed(*self.names)


def drain(one: socket.socket) -> None:
    while one.recv(1 << 16):
        pass


class Place:
    """
    Two namespaces, and connections between them that are left alone.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.client, self.server = stack.enter_context(joined())
        self._listeners = [
            stack.enter_context(self.server.listen(family))
            for family in (socket.AF_INET, socket.AF_INET6)
        ]
        nobody = stack.enter_context(self.server.listen())
        self.pairs: list[Pair] = []
        waiting = stack.enter_context(self.client.open_socket())
        waiting.connect(nobody.getsockname())
        waiting.sendall(b"w" * 73)
        self.waiting = Name(self.server.inode, waiting.getpeername()[1], waiting.getsockname()[1])
        """Connected, but nobody has accepted it."""

    @property
    def namespaces(self) -> tuple[Namespace, Namespace]:
        return self.client, self.server

    def connect(self) -> list[Pair]:
        """
        Make a connection of each family, and send something each way.
        """
        return [self._pair(listener) for listener in self._listeners]

    def _pair(self, listener: socket.socket) -> Pair:
        one, other = connected(self.client, listener)
        sent = 101 * (len(self.pairs) + 1), 211 * (len(self.pairs) + 1)
        for each, to, size in ((one, other, sent[0]), (other, one, sent[1])):
            self._stack.enter_context(each).sendall(b"x" * size)
            # It stays in the queue.
            to.recv(size, socket.MSG_WAITALL | socket.MSG_PEEK)
        pair = Pair(one, other, (name_of(self.client, one), name_of(self.server, other)), sent)
        self.pairs.append(pair)
        return pair


def probe(one: socket.socket) -> None:
    """
    Let the kernel ask every second whether the other side is there.
    """
    one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)


def told_of(watch: Watch, since: int, namespaces: Sequence[Namespace]) -> list[Any]:
    inodes = {each.inode for each in namespaces}
    return [item for item in watch.records[since:] if getattr(item, "netns", 0) in inodes]


def idle(watch: Watch, client: Namespace) -> int:
    """
    Let time pass; return how many records there were when everything had been told.
    """
    end = time.monotonic() + IDLE
    before = client.counters()["TcpExt.TCPKeepAlive"]

    def expired(count: int) -> bool:
        return client.counters()["TcpExt.TCPKeepAlive"] - before >= count

    watch.until(lambda: expired(1))
    since = len(watch.records)
    while time.monotonic() < end:
        watch.records += watch.collector.poll(timeout=1)
    watch.until(lambda: expired(1 + EXPIRIES))
    return since


def test_age_makes_no_difference() -> None:
    needs.root()
    needs.command("ip")
    with ExitStack() as stack:
        place = Place(stack)
        early = place.connect()
        collector = stack.enter_context(Collector(rings=ROOMY))
        collector.attach("tcp", metrics_interval_ms=INTERVAL_MS)
        watch = Watch(collector)
        late = place.connect()
        probed = place.connect()[0]
        probe(probed.one)
        since = idle(watch, place.client)
        told = told_of(watch, since, place.namespaces)
        second = Watch(stack.enter_context(Collector(["tcp"], rings=ROOMY)))
        for pair in place.pairs:
            check_found(second, pair)
            pair.exchange(watch)
        second.closed(*(name for pair in place.pairs for name in pair.names))

    check_silence(told, probed)
    (opened, metrics) = second.life(place.waiting)[:2]
    assert (opened.existing, opened.role, opened.pid) == (True, "accept", None)
    assert metrics.bytes_received == 73
    for pair in place.pairs:
        check_end(watch, pair)
        check_end(second, pair)
    for pair in late:
        for name in pair.names:
            assert watch.life(name)[-1].duration > max(IDLE, EXPIRIES) * 1e9
    for pair in early:
        assert watch.life(pair.names[0])[-1].duration is None


def check_silence(told: Sequence[Any], probed: Pair) -> None:
    """
    Who is asked for a sign of life is active; of all others nothing was told.
    """
    assert {type(item) for item in told} == {TcpMetrics}
    for name, sent in zip(probed.names, probed.sent, strict=True):
        mine = [item for item in told if item.local_port == name.local_port]
        assert len({item.segments_received for item in mine}) > 1
        assert {item.bytes_sent for item in mine} == {sent}
    ports = {name.local_port for name in probed.names}
    assert {(item.local_port, item.remote_port) for item in told} == {
        (near.local_port, near.remote_port) for near in probed.names
    }
    assert len(ports) == len(probed.names)


def check_found(watch: Watch, pair: Pair) -> None:
    """
    A collector that comes late finds what one would have found at once.
    """
    for name, sent, received in zip(pair.names, pair.sent, reversed(pair.sent), strict=True):
        opened, metrics = watch.life(name)[:2]
        assert isinstance(opened, TcpOpened)
        assert isinstance(metrics, TcpMetrics)
        assert (opened.existing, opened.state, opened.pid) == (True, "ESTABLISHED", os.getpid())
        assert (metrics.bytes_sent, metrics.bytes_received) == (sent, received)
        assert metrics.receive_queue == received


def check_end(watch: Watch, pair: Pair) -> None:
    for name, sent, received in zip(pair.names, pair.sent, reversed(pair.sent), strict=True):
        records = watch.life(name)
        (closed,) = of(records, TcpClosed)
        assert (closed.bytes_sent, closed.bytes_received) == (sent + 1, received + 1)
        assert closed.closed_first == ("local" if name == pair.names[0] else "remote")
        assert not of(records, TcpReset)
