# SPDX-License-Identifier: Apache-2.0
"""
The udp module against the truth, on whatever kernel this runs on.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kprobe_modules.modules.udp import MODULE
from kprobe_modules.modules.udp.records import UdpClosed, UdpDropped, UdpOpened, UdpTraffic

from kprobe_modules import Collector
from tests.support.alternatives import absent_programs, names_live
from tests.support.cgroups import own_cgroup_id
from tests.support.datagrams import (
    GROUP,
    UDP_GRO,
    UDP_SEGMENT,
    Counted,
    Traffic,
    drops_in_proc,
    traffic_of,
)
from tests.support.namespaces import Namespace, joined
from tests.support.requirements import has_kprobes, needs
from tests.support.sockets import ROOMY, Watch, of

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator, Sequence

Place = tuple[Namespace, Namespace]

TICK = 10_000_000
"""Nanoseconds per tick of /proc/PID/stat: USER_HZ is 100 everywhere."""
LAST = max(len(hook.alternatives) for hook in MODULE.hooks)
SINCE_6_3 = {"used_send_btf", "used_recv_btf", "receive_btf"}
"""Programs at tracepoints that older kernels do not have."""


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    needs.root()
    needs.command("ip")
    with joined() as both:
        yield both


@pytest.fixture(scope="module")
def absent() -> frozenset[str]:
    """
    Return the programs that this kernel cannot attach.
    """
    needs.root()
    return absent_programs(MODULE)


def life(records: Sequence[Any], here: Namespace, port: int) -> list[Any]:
    """
    Return what was recorded of the only socket that had a port.
    """
    ours = [
        item
        for item in records
        if item.record.startswith("udp_") and item.netns == here.inode and item.local_port == port
    ]
    assert len({item.socket_id for item in ours}) == 1, ours
    return ours


def check_owner(record: Any, *, whole: bool = True) -> None:
    assert record.pid == os.getpid(), record
    if not whole:
        return
    stat = Path("/proc/self/stat").read_text(encoding="utf-8")
    assert record.start_time // TICK == int(stat.rpartition(")")[2].split()[19])
    assert record.cgroup_id == own_cgroup_id()


def sums(counted: Counter[Traffic], direction: str) -> int:
    return sum(count for key, count in counted.items() if key[0] == direction)


def check_life(one: Counted, port: int, records: Sequence[Any], *, peers: bool) -> None:
    """
    Compare all that was recorded of a socket that was opened under watch with what it counted.

    Without *peers* what came is known by how often and how much was read.
    """
    ours = life(records, one.here, port)
    opened, *between, closed = ours

    assert isinstance(opened, UdpOpened)
    assert not opened.existing
    assert isinstance(closed, UdpClosed)
    assert {type(item) for item in between} <= {UdpTraffic, UdpDropped}
    for item in ours:
        check_owner(item)
    datagrams, payload = traffic_of(ours)
    came = sums(one.datagrams, "received"), sums(one.bytes, "received")
    if peers:
        assert datagrams == one.datagrams
        assert payload == +one.bytes
    else:
        came = one.reads[0], one.reads[1]
        assert {key: n for key, n in datagrams.items() if key[0] == "sent"} == {
            key: n for key, n in one.datagrams.items() if key[0] == "sent"
        }
        assert (sums(datagrams, "received"), sums(payload, "received")) == came
    assert (closed.datagrams_received, closed.bytes_received) == came
    assert closed.datagrams_sent == sums(one.datagrams, "sent")
    assert closed.bytes_sent == sums(one.bytes, "sent")
    if closed.duration is None:
        # The kernel has not shown the end; it has been found out since.
        assert not has_kprobes()
    else:
        assert 0 < closed.duration < 240e9


class Workload:
    """
    Sends every kind of datagram from one namespace to the other.

    Attributes:
        sockets: those that are over, with their ports.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.sockets: list[tuple[Counted, int]] = []

    def run(self) -> None:
        """
        Do all of it, once.
        """
        for family in (socket.AF_INET, socket.AF_INET6):
            self._exchange(family)
        self._mapped()
        self._reconnect()
        self._pieces()
        self._group()

    def _done(self, *ended: Counted) -> None:
        for one in ended:
            self.sockets.append((one, one.port))
            one.socket.close()

    def _exchange(self, family: int) -> None:
        """
        Ask and answer, unconnected; look first, read nothing, less than there is, and fragments.
        """
        near, far = self.place
        client, server = Counted(near, family, bind=False), Counted(far, family)
        to = server.address, server.port
        for size in (101, 0, 1009, 4001):
            client.send(size, to)
        assert len(server.socket.recv(50, socket.MSG_PEEK)) == 50
        peer = server.read()
        assert server.socket.recv(50, socket.MSG_PEEK) == b""
        server.read()
        server.read(7, size=1009)
        server.read()
        server.send(211, peer)
        client.read()
        self._done(client, server)

    def _mapped(self) -> None:
        """
        Send over IPv4 by a socket of IPv6, which sends over IPv6 as well.
        """
        near, far = self.place
        client = Counted(near, socket.AF_INET6, bind=False)
        four, six = Counted(far), Counted(far, socket.AF_INET6)
        client.send(23, (f"::ffff:{four.address}", four.port))
        client.send(29, (six.address, six.port))
        four.send(31, four.read())
        six.read()
        client.read()
        self._done(client, four, six)

    def _reconnect(self) -> None:
        """
        Connect to one after the other, and bind again in between.
        """
        near, far = self.place
        client, servers = Counted(near), (Counted(far), Counted(far))
        for number, server in enumerate(servers):
            client.socket.connect((server.address, server.port))
            for size in range(10, 13 + number):
                assert client.socket.send(bytes(size)) == size
                client.count("sent", (server.address, server.port), size)
                server.read()
            server.send(41, (client.address, client.port))
            client.read()
        self._done(client, *servers)

    def _pieces(self) -> None:
        """
        Send one datagram in two pieces, and several in one; read them one by one, and together.
        """
        near, far = self.place
        for together in (False, True):
            client, server = Counted(near), Counted(far)
            to = server.address, server.port
            server.socket.setsockopt(socket.IPPROTO_UDP, UDP_GRO, together)
            client.socket.sendto(bytes(100), socket.MSG_MORE, to)
            client.socket.sendto(bytes(53), to)
            client.count("sent", to, 153)
            server.read()
            client.socket.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
            assert client.socket.sendto(bytes(530), to) == 530
            client.count("sent", to, 530, 6)
            left = 530
            while left:
                before = server.reads[1]
                server.read(datagrams=0)
                size = server.reads[1] - before
                left -= size
                key = "received", client.address, client.port
                server.datagrams[key] += -(-size // 100)
            self._done(client, server)

    def _group(self) -> None:
        """
        Send to a group that one has joined.
        """
        near, far = self.place
        client, server = Counted(near), Counted(far, bind=False)
        client.socket.setsockopt(
            socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(near.ipv4)
        )
        server.socket.bind(("", 0))
        request = struct.pack("4s4s", socket.inet_aton(GROUP), socket.inet_aton(far.ipv4))
        server.socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        client.send(307, (GROUP, server.port))
        server.read()
        self._done(client, server)


def test_no_function_is_missing(absent: frozenset[str]) -> None:
    """
    Every kernel with kprobes that we know has all of them: what is missing was renamed.
    """
    needs.kprobes()

    assert absent in (frozenset(), SINCE_6_3)


def overflow(near: Namespace, server: Counted) -> int:
    """
    Send more than a socket has room for; return how many it has dropped by then.
    """
    wanted = drops_in_proc(server) + 7
    with Counted(near) as client, Counted(server.here) as marker:
        while drops_in_proc(server) < wanted:
            client.send(1000, (server.address, server.port))
        # What was sent before this one has been dropped or queued when this one comes.
        client.send(1, (marker.address, marker.port))
        marker.read()
    return drops_in_proc(server)


@pytest.fixture
def inhabited(place: Place) -> Iterator[Place]:
    """
    Have a process in the other namespace, without which procfs does not show its sockets.
    """
    with subprocess.Popen(place[1].command("sleep", "3600")) as process:
        while Path(f"/proc/{process.pid}/ns/net").stat().st_ino != place[1].inode:
            assert process.poll() is None
        yield place
        process.kill()


@pytest.mark.parametrize("rank", range(LAST))
def test_each_alternative(rank: int, absent: frozenset[str], inhabited: Place) -> None:
    """
    The alternatives of one rank, of all hooks at a time: each is heard with the truth.

    A hook without one of that rank uses the first that there is.
    """
    chosen = {
        hook.name: hook.alternatives[rank].name
        for hook in MODULE.hooks
        if rank < len(hook.alternatives) and not absent & set(hook.alternatives[rank].programs)
    }
    if not chosen:
        pytest.xfail(f"this kernel has no alternatives of rank {rank}")
    near, far = inhabited
    workload = Workload(inhabited)
    with ExitStack() as stack:
        old = stack.enter_context(Counted(far))
        port = old.port
        old.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        before = overflow(near, old)
        options = {f"udp.{hook}": name for hook, name in chosen.items()}
        collector = stack.enter_context(Collector(chosen=options, rings=ROOMY))
        collector.attach("udp", traffic_interval_ms=1)
        live = names_live(collector, "udp")
        assert {hook: live[hook] for hook in chosen} == chosen
        watch = Watch(collector)
        workload.run()
        after = overflow(near, old)
        if "drop" in live:
            watch.until(
                lambda: sum(
                    item.drops for item in of(life(watch.records, far, port), UdpDropped)
                ) == after - before
            )  # fmt: skip
        peer = old.read()
        old.send(59, peer)
        old.socket.close()
        ports = {(far.inode, port)} | {(one.here.inode, number) for one, number in workload.sockets}
        watch.until(
            lambda: (
                ports <= {(item.netns, item.local_port) for item in of(watch.records, UdpClosed)}
            )
        )
        stats = collector.stats().modules["udp"]

    # A kernel that frees elsewhere what was read (6.18) tells nobody which packet that was.
    _, number = workload.sockets[1]
    noted = any(
        item[1] for item in traffic_of(life(watch.records, far, number))[0] if item[0] == "received"
    )
    assert noted or live["receive"] == "receive_btf"
    for one, number in workload.sockets:
        check_life(one, number, watch.records, peers=noted)
    groups = [item for item in of(watch.records, UdpTraffic) if item.local_address == GROUP]
    assert [(item.direction, item.datagrams, item.bytes) for item in groups] == (
        [("received", 1, 307)] if noted else []
    )
    check_old(old, life(watch.records, far, port), live, after - before)
    assert stats["lost"] == stats["errors"] == 0


def check_old(old: Counted, records: Sequence[Any], live: dict[str, str], drops: int) -> None:
    """
    Compare what was told of a socket that was there before, and had dropped datagrams.
    """
    opened, *between, closed = records

    assert isinstance(opened, UdpOpened)
    assert opened.existing
    assert (opened.family, opened.local_address) == ("ipv4", old.here.ipv4)
    check_owner(opened, whole=live["existing"] == "existing_files")
    if live["existing"] != "existing_files":
        assert opened.start_time is None
    assert sum(item.drops for item in of(between, UdpDropped)) == closed.drops == drops
    assert closed.duration is None
    datagrams, payload = traffic_of(between)
    assert (sums(datagrams, "received"), sums(payload, "received")) == (1, 1000)
    assert (closed.datagrams_received, closed.bytes_received) == (1, 1000)
    assert (sums(datagrams, "sent"), sums(payload, "sent")) == (1, 59)
