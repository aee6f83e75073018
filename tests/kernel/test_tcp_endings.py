# SPDX-License-Identifier: Apache-2.0
"""
The tcp module with connections that do not go as they should, or that were there before it.

What was sent is lost on the way between two network namespaces when a test wants it to be, without
either side noticing.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from kprobe_modules.modules.tcp.records import (
    TcpClosed,
    TcpEstablished,
    TcpMetrics,
    TcpOpened,
    TcpReset,
    TcpStateChanged,
    TcpSynackTimeout,
    TcpSynTimeout,
)

from kprobe_modules import Collector
from tests.support.connections import End, connections_command, read_ends
from tests.support.emulation import fewer
from tests.support.namespaces import Namespace, joined, silenced
from tests.support.requirements import needs
from tests.support.sockets import ROOMY, Name, Watch, by_socket, connected, name_of, of
from tests.support.tcp import SYN, send_segment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TICK = 10_000_000
"""Nanoseconds per tick of /proc/PID/stat: USER_HZ is 100 everywhere."""

FAMILIES = (socket.AF_INET, socket.AF_INET6)
DISCARD = 9
"""A port at which nobody listens."""


@attrs.frozen
class Scene:
    """
    Two namespaces, and the module attached.
    """

    client: Namespace
    server: Namespace
    watch: Watch


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    needs.root()
    needs.command("ip")
    with joined() as (client, server), Collector(rings=ROOMY) as collector:
        collector.attach("tcp", metrics_interval_ms=10)
        yield Scene(client, server, Watch(collector))


def states(records: Sequence[Any]) -> list[str]:
    """
    Return the states that a socket was in, checking that no change is missing.
    """
    changes = of(records, TcpStateChanged)
    (opened,) = of(records, TcpOpened)
    found = [opened.state, *(item.new_state for item in changes)]
    assert [item.old_state for item in changes] == found[:-1]
    return found


def ending(records: Sequence[Any]) -> tuple[str, str | None, str | None]:
    """
    Return how a socket ended: last state, who closed first, error.
    """
    (closed,) = of(records, TcpClosed)
    return closed.state, closed.closed_first, closed.error


def traffic(records: Sequence[Any]) -> tuple[int | None, int | None]:
    (closed,) = of(records, TcpClosed)
    return closed.bytes_sent, closed.bytes_received


def counted(namespace: Namespace, name: str, watch: Watch) -> int:
    """
    Return a counter that did not change while records of what it counts were taken.
    """
    while True:
        before = namespace.counters()[name]
        watch.flush()
        if namespace.counters()[name] == before:
            return before


def own_ticks() -> int:
    stat = Path("/proc/self/stat").read_text(encoding="ascii")
    return int(stat.rpartition(")")[2].split()[19])


@pytest.mark.parametrize("family", FAMILIES)
def test_nobody_answers(scene: Scene, family: int) -> None:
    before = scene.client.counters()["TcpExt.TCPSynRetrans"]
    target = scene.server.ipv4 if family == socket.AF_INET else scene.server.ipv6
    with scene.client.open_socket(family) as one, silenced(scene.client, scene.server):
        one.bind((scene.client.ipv4 if family == socket.AF_INET else scene.client.ipv6, 0))
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
        name = name_of(scene.client, one, DISCARD)
        one.settimeout(0)
        assert one.connect_ex((target, DISCARD)) == errno.EINPROGRESS
        scene.watch.until(lambda: any(scene.watch.lives(name)))
        scene.watch.closed(name)
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ETIMEDOUT
    records = scene.watch.life(name)
    again = scene.client.counters()["TcpExt.TCPSynRetrans"] - before
    timeouts = of(records, TcpSynTimeout)

    assert again > 0
    assert [item.retransmits for item in timeouts] == list(range(1, again + 1))
    assert states(records) == ["SYN_SENT", "CLOSE"]
    assert ending(records) == ("SYN_SENT", None, "ETIMEDOUT")
    assert traffic(records) == (0, 0)
    assert records[-1].retransmits == again
    assert {(item.pid, item.role, item.remote_address) for item in records} == {
        (os.getpid(), "connect", target)
    }
    assert {item.start_time // TICK for item in records} == {own_ticks()}
    assert not of(records, TcpEstablished)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_synack_gets_lost(scene: Scene, family: int) -> None:
    client, server, watch = scene.client, scene.server, scene.watch
    before = server.counters()["TcpExt.TCPSynRetrans"]
    with server.listen(family) as listener, client.open_socket(family) as one:
        listening = name_of(server, listener)
        with silenced(server, client):
            one.settimeout(0)
            assert one.connect_ex(listener.getsockname()) == errno.EINPROGRESS
            # Not the SYNs that are sent again: each would be answered, and at about the time
            # at which the timer expires.
            with silenced(client, server):
                watch.until(lambda: any(each.state == "SYN-RECV" for each in server.sockets()))
                port = one.getsockname()[1]
                watch.until(lambda: timeouts_of(watch, server, port))
                again = counted(server, "TcpExt.TCPSynRetrans", watch) - before
                timeouts = timeouts_of(watch, server, port)
        one.settimeout(None)
        other, _ = listener.accept()
        names = name_of(client, one), name_of(server, other)
        other.close()
        assert one.recv(1) == b""
    watch.closed(listening, *names)
    (listened,) = of(watch.life(listening), TcpOpened)
    (opened,) = of(watch.life(names[1]), TcpOpened)
    (established,) = of(watch.life(names[1]), TcpEstablished)

    assert [item.retransmits for item in timeouts] == list(range(1, again + 1))
    assert {(item.socket_id, item.pid, item.role) for item in timeouts} == {
        (listened.socket_id, os.getpid(), "listen")
    }
    assert {item.local_port for item in timeouts} == {listening.local_port}
    assert (opened.role, opened.listener_id) == ("accept", listened.socket_id)
    assert established.handshake is None, "its SYN-ACK was sent twice"
    assert states(watch.life(names[0]))[:2] == ["SYN_SENT", "ESTABLISHED"]


def test_a_syn_comes_twice(scene: Scene) -> None:
    """
    It is answered twice, without any timer; the kernel counts that as well.
    """
    client, server, watch = scene.client, scene.server, scene.watch
    before = server.counters()
    with server.listen() as listener, silenced(server, client):
        with client.inside():
            for _ in range(2):
                send_segment((client.ipv4, DISCARD), listener.getsockname(), SYN)
        watch.until(lambda: timeouts_of(watch, server, DISCARD))
        listening = name_of(server, listener)
    again, expired = (
        counted(server, f"TcpExt.{name}", watch) - before[f"TcpExt.{name}"]
        for name in ("TCPSynRetrans", "TCPTimeouts")
    )
    timeouts = timeouts_of(watch, server, DISCARD)

    assert again == expired + 1
    assert [item.retransmits for item in timeouts] == list(range(1, again + 1))
    assert {item.socket_id for item in timeouts} == {watch.life(listening)[0].socket_id}


def timeouts_of(watch: Watch, server: Namespace, remote_port: int) -> list[Any]:
    return [
        item
        for item in of(watch.records, TcpSynackTimeout)
        if (item.netns, item.remote_port) == (server.inode, remote_port)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_both_close_at_once(scene: Scene, family: int) -> None:
    client, server = scene.client, scene.server
    with server.listen(family) as listener:
        one, other = connected(client, listener)
    names = name_of(client, one), name_of(server, other)
    with one, other:
        one.sendall(b"a" * 1013)
        other.sendall(b"b" * 2027)
        receive(one, 2027)
        receive(other, 1013)
        with silenced(client, server), silenced(server, client):
            one.shutdown(socket.SHUT_WR)
            other.shutdown(socket.SHUT_WR)
    scene.watch.closed(*names)
    lives = [scene.watch.life(name) for name in names]

    assert [traffic(records) for records in lives] == [(1013, 2027), (2027, 1013)]
    assert [ending(records)[1:] for records in lives] == [("local", None)] * 2
    paths = [states(records) for records in lives]
    assert any("CLOSING" in path for path in paths), paths
    for path in paths:
        assert path[path.index("ESTABLISHED") + 1] == "FIN_WAIT1"


def receive(one: socket.socket, count: int) -> None:
    while count:
        got = len(one.recv(count))
        assert got
        count -= got


def test_the_other_side_vanishes(scene: Scene) -> None:
    """
    What was written counts as sent, what was acknowledged as acknowledged.
    """
    client, server, watch = scene.client, scene.server, scene.watch
    before = client.counters()["Tcp.RetransSegs"]
    with server.listen() as listener:
        one, other = connected(client, listener)
    names = name_of(client, one), name_of(server, other)
    with one, other:
        one.sendall(b"a" * 503)
        receive(other, 503)
        other.sendall(b"b" * 11)
        receive(one, 11)
        with silenced(client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 600)
            one.sendall(b"a" * 701)
            with pytest.raises(TimeoutError):
                one.recv(1)
            watch.closed(names[0])
        again = client.counters()["Tcp.RetransSegs"] - before
    # To its FIN nobody answers but with a reset.
    watch.closed(names[1])
    lives = [watch.life(name) for name in names]

    assert ending(lives[0]) == ("ESTABLISHED", None, "ETIMEDOUT")
    assert traffic(lives[0]) == (503 + 701, 11)
    (closed,) = of(lives[0], TcpClosed)
    assert closed.bytes_acked == 503
    assert closed.retransmits == again > 0
    assert traffic(lives[1]) == (11, 503)
    assert ending(lives[1])[:2] == ("FIN_WAIT1", "local")
    assert [item.direction for item in of(lives[1], TcpReset)] == ["received"]


def test_nobody_accepts(scene: Scene) -> None:
    """
    A connection that waits when its listener closes is told with whoever listened.
    """
    client, server, watch = scene.client, scene.server, scene.watch
    with client.open_socket() as one:
        with server.listen() as listener:
            one.connect(listener.getsockname())
            one.sendall(b"a" * 997)
            watch.until(lambda: any(each.receive_queue == 997 for each in server.sockets()))
            mine, its = (
                name_of(client, one),
                Name(server.inode, listener.getsockname()[1], one.getsockname()[1]),
            )
        with pytest.raises(ConnectionResetError):
            one.recv(1)
    watch.closed(mine, its)
    records = watch.life(its)

    assert len(of(records, TcpOpened)) == len(of(records, TcpEstablished)) == 1
    assert [item.direction for item in of(records, TcpReset)] == ["sent"]
    assert traffic(records) == (0, 997)
    assert ending(records)[1] == "local"
    assert {(item.pid, item.role) for item in records} == {(os.getpid(), "accept")}
    assert traffic(watch.life(mine)) == (997, 0)
    assert ending(watch.life(mine)) == ("ESTABLISHED", "remote", "ECONNRESET")


def test_a_listeners_queue_overflows(scene: Scene) -> None:
    client, server, watch = scene.client, scene.server, scene.watch
    before = client.counters()["TcpExt.TCPSynRetrans"]
    # Or a client may be connected whom the server has forgotten.
    server.set("net/ipv4/tcp_syncookies", 0)
    with ExitStack() as stack:
        listener = stack.enter_context(server.listen(backlog=1))
        listening = name_of(server, listener)
        ones = [stack.enter_context(client.open_socket()) for _ in range(5)]
        for one in ones:
            one.settimeout(0)
            assert one.connect_ex(listener.getsockname()) == errno.EINPROGRESS
            time.sleep(0.02)  # longer than the interval of metrics
        # Two of them wait; of the others no SYN is taken.
        watch.until(lambda: client.counters()["TcpExt.TCPSynRetrans"] - before >= 3)
        assert server.counters()["TcpExt.ListenOverflows"] > 0
        names = []
        for index in range(5):
            other, _ = listener.accept()
            stack.enter_context(other)
            other.sendall(b"b" * (index + 1))
            names.append(name_of(server, other))
        again = client.counters()["TcpExt.TCPSynRetrans"] - before
    mine = [Name(client.inode, name.remote_port, name.local_port) for name in names]
    watch.closed(listening, *names, *mine)
    timeouts = [of(watch.life(name), TcpSynTimeout) for name in mine]

    assert sum(map(len, timeouts)) == again
    assert Counter(map(bool, timeouts)) == {False: 2, True: 3}
    for index, (name, own) in enumerate(zip(names, mine, strict=True)):
        assert traffic(watch.life(name)) == (index + 1, 0)
        assert traffic(watch.life(own)) == (0, index + 1)
        assert len(of(watch.life(own), TcpEstablished)) == 1
    queues = {
        (item.accept_queue, item.accept_queue_limit)
        for item in of(watch.life(listening), TcpMetrics)
    }
    # Of the tracepoint alone, a child does not know its listener.
    live = watch.collector.status("tcp").live["accept"]
    assert (2, 1) in queues or live.startswith("tp_btf/")


def test_a_socket_is_connected_again(scene: Scene) -> None:
    """
    Each try is a connection of its own.
    """
    client, server, watch = scene.client, scene.server, scene.watch
    with server.listen() as listener, client.open_socket() as one:
        one.bind((client.ipv4, 0))
        refused = name_of(client, one, DISCARD)
        with pytest.raises(ConnectionRefusedError):
            one.connect((server.ipv4, DISCARD))
        one.connect(listener.getsockname())
        name = name_of(client, one)
        one.sendall(b"a" * 101)
    watch.closed(refused, name)
    lives = watch.life(refused), watch.life(name)

    assert ending(lives[0]) == ("SYN_SENT", "remote", "ECONNREFUSED")
    assert traffic(lives[0]) == (0, 0)
    assert traffic(lives[1])[0] == 101
    assert lives[0][0].socket_id != lives[1][0].socket_id


def test_nothing_was_lost(scene: Scene) -> None:
    """
    Nothing of all the above; what follows has collectors of its own.
    """
    scene.watch.flush()
    stats = scene.watch.collector.stats().modules["tcp"]

    assert stats["lost"] == stats["errors"] == 0


def test_sockets_that_were_there_before() -> None:
    """
    Each is found once, with what it has counted; idle, it is silent until it ends.
    """
    needs.root()
    needs.command("ip")
    with ExitStack() as stack:
        client, server = stack.enter_context(joined())
        listeners = [stack.enter_context(server.listen(family)) for family in FAMILIES]
        pairs = [connected(client, listener) for listener in listeners for _ in range(7)]
        for index, (one, other) in enumerate(pairs):
            stack.enter_context(one)
            stack.enter_context(other)
            one.sendall(b"a" * (index + 1) * 101)
            other.sendall(b"b" * (index + 1) * 211)
            receive(other, (index + 1) * 101)
        waiting = stack.enter_context(client.open_socket())
        waiting.connect(listeners[0].getsockname())
        names = [(name_of(client, one), name_of(server, other)) for one, other in pairs]
        bounds = [name_of(server, listener) for listener in listeners]
        watch = Watch(stack.enter_context(Collector(["tcp"], rings=ROOMY)))
        found = list(watch.records)
        watch.collector.resync("tcp")
        watch.flush()
        assert not of(watch.records[len(found) :], TcpOpened), "what is known is not told again"
        silent = len(watch.records)
        time.sleep(0.5)
        watch.flush()
        check_found(watch, names, bounds)
        mine = {client.inode, server.inode}
        assert not [item for item in watch.records[silent:] if getattr(item, "netns", 0) in mine]
        for index, (one, other) in enumerate(pairs):
            one.sendall(b"a" * 7)
            receive(one, (index + 1) * 211)
            one.close()
            receive(other, 7)
            assert other.recv(1) == b""
            other.close()
        watch.closed(*(name for pair in names for name in pair))

    for index, (one, other) in enumerate(names):
        sent, received = (index + 1) * 101 + 7, (index + 1) * 211
        assert traffic(watch.life(one)) == (sent, received)
        assert traffic(watch.life(other)) == (received, sent)
        assert ending(watch.life(one)) == ("FIN_WAIT2", "local", None)
        assert ending(watch.life(other)) == ("LAST_ACK", "remote", None)
        assert watch.life(one)[-1].duration is None


def check_found(
    watch: Watch, names: Sequence[tuple[Name, Name]], listeners: Sequence[Name]
) -> None:
    for index, pair in enumerate(names):
        sent, received = (index + 1) * 101, (index + 1) * 211
        for name, expected in zip(pair, ((sent, received), (received, sent)), strict=True):
            opened, metrics = watch.life(name)
            assert isinstance(opened, TcpOpened)
            assert (opened.existing, opened.state) == (True, "ESTABLISHED")
            assert (opened.pid, opened.start_time // TICK) == (os.getpid(), own_ticks())
            assert isinstance(metrics, TcpMetrics)
            assert (metrics.bytes_sent, metrics.bytes_received) == expected
    for name in listeners:
        (opened,) = watch.life(name)
        assert (opened.existing, opened.role, opened.pid) == (True, "listen", os.getpid())
        assert opened.state == "LISTEN"


def test_attach_in_the_middle() -> None:
    """
    Scans while connections come and go find none twice, and none ends that was not told of.
    """
    needs.root()
    needs.command("ip")
    stop = threading.Event()
    ends: list[End] = []
    faults: list[str] = []

    def work(client: Namespace, server: Namespace) -> None:
        while not stop.is_set():
            done = subprocess.run(
                connections_command(53, client, server), capture_output=True, text=True, check=False
            )
            faults.extend([done.stderr] if done.returncode else [])
            ends.extend(read_ends(done.stdout))

    with joined() as place, Collector(rings=ROOMY) as collector:
        thread = threading.Thread(target=work, args=place)
        thread.start()
        try:
            while not ends:
                time.sleep(0.01)
            before = time.monotonic_ns()
            collector.attach("tcp")
            after = time.monotonic_ns()
            watch = Watch(collector)
            wanted = len(ends) + fewer(500, 200)
            while len(ends) < wanted and thread.is_alive():
                collector.resync("tcp")
                watch.flush()
        finally:
            stop.set()
            thread.join()
        watch.until(
            lambda: not any(each.state != "TIME-WAIT" for one in place for each in one.sockets())
        )
        spaces = {"connect": place[0].inode, "accept": place[1].inode, "listen": place[1].inode}

    assert not faults
    late = check_middle(watch, ends, spaces, (before, after))
    assert late > fewer(100, 50)


def check_middle(
    watch: Watch, ends: Sequence[End], spaces: dict[str, int], attached: tuple[int, int]
) -> int:
    """
    Return how many were seen being opened.
    """
    mine = [item for item in watch.records if getattr(item, "netns", 0) in set(spaces.values())]
    lives: dict[tuple[int, int, int], list[list[Any]]] = {}
    for records in by_socket(mine).values():
        assert [type(item) for item in records].count(TcpOpened) == 1, records
        assert isinstance(records[-1], TcpClosed | TcpReset), records
        assert len(of(records, TcpClosed)) == 1, records
        opened = records[0]
        key = (opened.netns, opened.local_port, opened.remote_port or 0)
        lives.setdefault(key, []).append(records)
    late = 0
    times = Counter((spaces[end.role], end.local_port, end.key[3] or 0) for end in ends)
    for end in ends:
        key = (spaces[end.role], end.local_port, end.key[3] or 0)
        found = lives.get(key, [])
        if times[key] > 1:
            continue  # ports are used again
        assert len(found) <= 1, end
        if end.closed < attached[0] and end.role == "listen":
            assert not found, end
        if end.opening > attached[1]:
            assert found, end
            # A scan may have come by before whoever accepts it.
            late += not found[0][0].existing
        if found and end.role != "listen":
            assert traffic(found[0]) == (end.sent, end.arrived), end
    return late
