# SPDX-License-Identifier: Apache-2.0
"""
The udp module against many peers, iperf3, ``ss`` and ``/proc``, in network namespaces.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from kprobe_modules.modules.udp.records import UdpClosed, UdpOpened, UdpTraffic

from kprobe_modules import Collector
from tests.support.datagrams import Counted, traffic_of
from tests.support.emulation import fewer
from tests.support.namespaces import Namespace, alone, running
from tests.support.requirements import needs
from tests.support.sockets import ROOMY, Watch, by_socket, of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


DATAGRAMS = 5
"""How many each peer sends, of different sizes."""


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    needs.root()
    needs.command("ip")


@pytest.fixture
def here() -> Iterator[Namespace]:
    with alone() as namespace:
        yield namespace


class Echo:
    """
    A server that answers every datagram with the same, until it gets an empty one.
    """

    def __init__(self, here: Namespace) -> None:
        self.counted = Counted(here)
        self.address = self.counted.address, self.counted.port
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            size = self.counted.reads[1]
            peer = self.counted.read()
            size = self.counted.reads[1] - size
            if not size:
                return
            self.counted.send(size, peer)

    def close(self) -> None:
        """
        Have it end, and close its socket.
        """
        with self.counted.here.open_socket(kind=socket.SOCK_DGRAM) as last:
            last.sendto(b"", self.address)
            self._thread.join()
        self.counted.socket.close()


def check(one: Counted, port: int, records: Sequence[Any]) -> None:
    """
    Compare what was recorded of a socket's traffic with what it counted, peer by peer.

    Where the kernel does not tell whom a packet was from, all of them together.
    """
    traffic = of(records, UdpTraffic)
    ours = [item for item in traffic if (item.netns, item.local_port) == (one.here.inode, port)]
    datagrams, payload = traffic_of(ours)
    if any(key[1] is None for key in datagrams):
        for told, counted in ((datagrams, one.datagrams), (payload, one.bytes)):
            for direction in ("sent", "received"):
                assert sum(n for key, n in told.items() if key[0] == direction) == sum(
                    n for key, n in counted.items() if key[0] == direction
                )
        return
    assert datagrams == one.datagrams
    assert payload == +one.bytes


def exchange(client: Counted, server: Echo, size: int) -> None:
    client.send(size, server.address)
    client.read()


def closed_ports(records: Sequence[Any], here: Namespace) -> set[int]:
    return {item.local_port for item in of(records, UdpClosed) if item.netns == here.inode}


def test_a_server_with_many_peers_costs_reports_per_interval(here: Namespace) -> None:
    """
    And none of its datagrams is lost when all are reported at once.
    """
    count = fewer(499, 97)
    with ExitStack() as stack:
        server = Echo(here)
        peers = [stack.enter_context(Counted(here)) for _ in range(count)]
        ports = {each.port: each for each in (*peers, server.counted)}
        collector = stack.enter_context(Collector(rings=ROOMY))
        collector.attach("udp", traffic_interval_ms=3_600_000)
        watch = Watch(collector)
        for number in range(DATAGRAMS):
            for each in peers:
                exchange(each, server, 10 + number)
        for each in peers:
            each.socket.close()
        server.close()
        watch.until(lambda: set(ports) <= closed_ports(watch.records, here))
        stats = collector.stats().modules["udp"]

    for port, one in ports.items():
        check(one, port, watch.records)
    for records in by_socket(watch.records).values():
        if records[0].netns == here.inode:
            assert isinstance(records[0], UdpOpened)
            assert isinstance(records[-1], UdpClosed)
    assert stats["lost"] == stats["errors"] == 0
    # One of each end of a pair, and of who sent the last one; twice if an interval ended.
    others = sum(item.netns != here.inode for item in of(watch.records, UdpTraffic))
    assert stats["messages"]["udp_stats"]["emitted"] - others <= 2 * (2 * count + 2)


def test_attach_under_traffic(here: Namespace) -> None:
    """
    Who is opened afterwards is told to the last datagram.
    """
    stop = threading.Event()
    server = Echo(here)
    late: list[tuple[Counted, int]] = []
    attached = threading.Event()

    def work() -> None:
        while not stop.is_set():
            new = attached.is_set()
            with Counted(here) as client:
                for size in (11, 13, 17):
                    exchange(client, server, size)
                if new:
                    late.append((client, client.port))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with Collector(rings=ROOMY) as collector:
            collector.attach("udp", traffic_interval_ms=50)
            attached.set()
            watch = Watch(collector)
            watch.until(lambda: len(late) > fewer(200, 40) or not thread.is_alive())
            stop.set()
            thread.join()
            server.close()
            ended = {port for _, port in late} | {server.address[1]}
            watch.until(lambda: ended <= closed_ports(watch.records, here))
            stats = collector.stats().modules["udp"]
    finally:
        stop.set()
        thread.join()
        server.counted.socket.close()

    wanted: dict[int, list[Counted]] = {}
    for client, port in late:
        wanted.setdefault(port, []).append(client)
    for port, clients in wanted.items():
        lives = [
            records
            for records in by_socket(watch.records).values()
            if (records[0].netns, records[0].local_port) == (here.inode, port)
        ]
        for client, records in zip(clients, lives[-len(clients) :], strict=True):
            assert not records[0].existing
            check(client, port, records)
    assert stats["lost"] == stats["errors"] == 0


HOLD = """
import array, socket, subprocess, sys
one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
flying, kept = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
for each in (flying, kept):
    each.bind(("127.0.0.1", 0))
ports = flying.getsockname()[1], kept.getsockname()[1]
one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [flying.fileno()]))])
flying.close()
print(*ports, flush=True)
input()
"""


def test_sockets_of_another_network_namespace_are_found_once(here: Namespace) -> None:
    """
    One of them no process has: it is under way from one to another.
    """
    command = here.command(sys.executable, "-c", HOLD)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        flying, kept = (int(word) for word in process.stdout.readline().split())
        with Collector(["udp"], rings=ROOMY) as collector:
            watch = Watch(collector)
            collector.resync("udp")
            watch.flush()
            there = [item for item in of(watch.records, UdpOpened) if item.netns == here.inode]
            shown = {item.local[1] for item in here.datagram_sockets()}
            process.communicate("\n", timeout=60)
            watch.until(lambda: {flying, kept} <= closed_ports(watch.records, here))

    assert {item.local_port for item in there} == shown == {flying, kept}
    assert all(item.existing for item in there)
    assert {item.local_port: item.pid for item in there} == {flying: None, kept: process.pid}


def test_iperf3(here: Namespace) -> None:
    """
    Its own report of what it has sent and received, and its greeting of four bytes each way.
    """
    command = needs.command("iperf3")
    amount = fewer(2003, 211)
    with ExitStack() as stack:
        server = stack.enter_context(
            running(here, 5210, command, "--server", "--one-off", "--port", "5210", "--json")
        )
        collector = stack.enter_context(Collector(rings=ROOMY))
        collector.attach("udp", traffic_interval_ms=100)
        watch = Watch(collector)
        client = here.run(
            *(command, "--client", here.ipv4, "--udp", "--port", "5210", "--json"),
            *("--length", "1000", "--blockcount", str(amount), "--bitrate", "8M"),
        )
        printed, _ = server.communicate(timeout=60)

        def closed() -> list[UdpClosed]:
            """
            Those that were used: the server binds another one, for whom would come next.
            """
            ours = [item for item in of(watch.records, UdpClosed) if item.netns == here.inode]
            return [item for item in ours if item.datagrams_sent]

        watch.until(lambda: len(closed()) == 2)
    sender, receiver = sorted(closed(), key=lambda item: item.bytes_received or 0)
    sent = json.loads(client)["end"]["streams"][0]["udp"]
    received = json.loads(printed)["end"]["sum_received"]

    assert sent["packets"] == amount
    assert (sender.datagrams_sent, sender.bytes_sent) == (amount + 1, sent["bytes"] + 4)
    assert (sender.datagrams_received, sender.bytes_received) == (1, 4)
    assert receiver.datagrams_received == 1 + received["packets"] - received["lost_packets"]
    assert receiver.bytes_received == 4 + received["bytes"]
    assert (receiver.datagrams_sent, receiver.bytes_sent) == (1, 4)
    for direction, end in (("sent", sender), ("received", receiver)):
        told = [
            item
            for item in of(watch.records, UdpTraffic)
            if (item.socket_id, item.direction) == (end.socket_id, direction)
        ]
        assert sum(item.datagrams for item in told) == getattr(end, f"datagrams_{direction}")
