# SPDX-License-Identifier: Apache-2.0
"""
Another module takes the packets that the udp module's kprobes have looked at.
"""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from kprobe_modules.modules.udp.records import UdpClosed

from kprobe_modules import Collector
from kprobe_modules.api import Handler, Manifest
from kprobe_modules.libbpf import map as bpf_map
from tests.support.datagrams import Counted
from tests.support.namespaces import Namespace, alone
from tests.support.requirements import needs
from tests.support.sockets import ROOMY, Watch, of

if TYPE_CHECKING:
    from collections.abc import Iterator

FAMILIES = (socket.AF_INET, socket.AF_INET6)
CHOSEN = {"udp.send": "send4_kprobe", "udp.receive": "receive_kprobe"}
HEADERS = 20 + 40 + 2 * 8
"""Of IPv4 and IPv6, and of UDP twice, which are before the payload on the way out."""
TAKING = Manifest(
    name="taking",
    package="tests.bpf.objects",
    handler=Handler,
    hooks=(),
    common_maps=("events", "tail_calls"),
    tail_calls={"udp_sent": "take_sent", "udp_received": "take_received"},
    own_programs=("take_sent", "take_received"),
)


@pytest.fixture
def here() -> Iterator[Namespace]:
    needs.root()
    needs.kprobes()
    needs.command("ip")
    with alone() as namespace:
        yield namespace


def taken(collector: Collector) -> list[tuple[int, int]]:
    """
    Return how many packets were taken and how long they were: sent ones, received ones.
    """
    fd = collector._ensemble.attached["taking"].loaded.map_fd("taken_packets")
    values = (bpf_map.lookup(fd, struct.pack("<I", index), 16) for index in range(2))
    return [struct.unpack("<QQ", value) for value in values if value is not None]


@pytest.mark.parametrize("first", ["udp", "taking"])
def test_packets_come_by_the_slots_whichever_is_attached_first(first: str, here: Namespace) -> None:
    """
    And with the one gone that takes them, the other one goes on alone.
    """
    modules: list[str | Manifest] = ["udp", TAKING]
    with ExitStack() as stack:
        servers = [stack.enter_context(Counted(here, family)) for family in FAMILIES]
        clients = [stack.enter_context(Counted(here, family)) for family in FAMILIES]
        collector = stack.enter_context(Collector(chosen=CHOSEN, rings=ROOMY))
        for module in modules if first == "udp" else modules[::-1]:
            collector.attach(module)
        watch = Watch(collector)
        before = taken(collector)
        for server, client in zip(servers, clients, strict=True):
            client.send(101, (server.address, server.port))
            server.socket.recv(1, socket.MSG_PEEK)
            server.read()
        after = taken(collector)
        collector.detach("taking")
        clients[0].send(7, (servers[0].address, servers[0].port))
        servers[0].read()
        for one in (*servers, *clients):
            one.socket.close()

        def closed() -> list[UdpClosed]:
            return [item for item in of(watch.records, UdpClosed) if item.netns == here.inode]

        watch.until(lambda: len(closed()) == 4)
    sent, received = (
        tuple(b - a for a, b in zip(one, other, strict=True))
        for one, other in zip(before, after, strict=True)
    )

    assert sent == (2, 2 * 101 + HEADERS)
    assert received == (2, 2 * 101)
    assert sum(item.datagrams_sent or 0 for item in closed()) == 3
    assert sum(item.bytes_received or 0 for item in closed()) == 2 * 101 + 7
