# SPDX-License-Identifier: Apache-2.0
"""
Ends of UDP sockets that the kernel has not shown, where there is nothing better to hook.

What is left of such a socket is its entry in ``udp_open_sockets``; so that is made here.
"""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING

import attrs
import pytest
from kprobe_modules.modules.udp.records import UdpClosed, UdpOpened, UdpTraffic

from kprobe_modules import Collector
from kprobe_modules.libbpf import map as bpf_map
from tests.support.datagrams import Counted
from tests.support.namespaces import Namespace, alone
from tests.support.requirements import needs
from tests.support.sockets import ROOMY, Watch, of

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

BLIND = {"udp.end": "end_slab_btf", "udp.send": "queue_btf"}
HEAD = struct.Struct("<QQQIIQ")
"""Of ``struct km_udp_open_socket``: id, start, cgroup, pid, netns, inode."""
NO_ADDRESS = struct.pack("<Q", 0xFFFF_FFFF_FFE0_0000)
"""Nothing is there: the kernel leaves its last two megabytes empty.  A number that is no
address makes 5.10 warn of who reads it."""


@attrs.frozen
class Entry:
    """
    One of ``udp_open_sockets``.
    """

    fd: int
    key: bytes
    value: bytes

    @property
    def socket_id(self) -> int:
        identity: int = HEAD.unpack_from(self.value)[0]
        return identity

    def lie(self) -> None:
        """
        Have it say that another socket was there.
        """
        *before, inode = HEAD.unpack_from(self.value)
        changed = HEAD.pack(*before, inode + 1) + self.value[HEAD.size :]
        bpf_map.update(self.fd, self.key, changed)

    def move(self, key: bytes) -> None:
        bpf_map.update(self.fd, key, self.value)
        bpf_map.delete(self.fd, self.key)


def entry_of(collector: Collector, one: socket.socket) -> Entry:
    """
    Return the entry that bears the inode which the socket's file has.
    """
    fd = collector._ensemble.attached["udp"].loaded.map_fd("udp_open_sockets")
    entries = ((key, bpf_map.lookup(fd, key)) for key in list(bpf_map.keys(fd)))
    (found,) = (
        Entry(fd, key, value)
        for key, value in entries
        if value and HEAD.unpack_from(value)[-1] == os.fstat(one.fileno()).st_ino
    )
    return found


@pytest.fixture
def here() -> Iterator[Namespace]:
    needs.root()
    needs.command("ip")
    with alone() as namespace:
        yield namespace


def test_a_socket_that_is_gone_ends(here: Namespace) -> None:
    with ExitStack() as stack:
        server, client = (stack.enter_context(Counted(here)) for _ in range(2))
        collector = stack.enter_context(Collector(chosen=BLIND, rings=ROOMY))
        collector.attach("udp", traffic_interval_ms=100)
        watch = Watch(collector)
        for size in (11, 13):
            client.send(size, (server.address, server.port))
        port = client.port

        def sent() -> int:
            told = [item for item in of(watch.records, UdpTraffic) if item.netns == here.inode]
            return sum(each.datagrams for each in told if each.local_port == port)

        # Traffic of a socket that is not at its address any more would end it at once.
        watch.until(lambda: sent() == 2)
        left = entry_of(collector, client.socket)
        left.move(NO_ADDRESS)

        def closed() -> list[UdpClosed]:
            return [item for item in of(watch.records, UdpClosed) if item.netns == here.inode]

        watch.until(lambda: bool(closed()))
        (end,) = closed()
        assert (end.socket_id, end.local_port, end.duration) == (left.socket_id, port, None)
        assert (end.datagrams_sent, end.bytes_sent, end.datagrams_received) == (2, 24, 0)
        # Those that are open stay so.
        assert entry_of(collector, server.socket).socket_id != left.socket_id
        assert not bpf_map.lookup(left.fd, NO_ADDRESS)


def test_a_socket_that_has_the_address_of_another_one(here: Namespace) -> None:
    """
    What it sends is its own: the other one has ended, with what that had sent.
    """
    with ExitStack() as stack:
        server, client = (stack.enter_context(Counted(here)) for _ in range(2))
        collector = stack.enter_context(Collector(chosen=BLIND, rings=ROOMY))
        collector.attach("udp")
        watch = Watch(collector)
        for size in (11, 13):
            client.send(size, (server.address, server.port))
        former = entry_of(collector, client.socket)
        former.lie()
        client.send(17, (server.address, server.port))
        port = client.port
        latter = entry_of(collector, client.socket)
        client.socket.close()

        def lives() -> list[UdpOpened | UdpClosed]:
            return [
                item
                for item in watch.records
                if isinstance(item, UdpOpened | UdpClosed)
                and (item.netns, item.local_port) == (here.inode, port)
            ]

        watch.until(lambda: sum(isinstance(item, UdpClosed) for item in lives()) == 2)
    told = [(type(item), item.socket_id) for item in lives()]
    assert told == [
        (UdpOpened, former.socket_id),
        (UdpClosed, former.socket_id),
        (UdpOpened, latter.socket_id),
        (UdpClosed, latter.socket_id),
    ]
    ends = [(item.datagrams_sent, item.bytes_sent) for item in of(lives(), UdpClosed)]
    assert ends == [(2, 24), (1, 17)]
