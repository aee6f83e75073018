# SPDX-License-Identifier: Apache-2.0
"""
What the programs of the dns module see, on whatever kernel this runs on: every byte of it.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import defaultdict
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

import pytest
from kprobe_modules.modules.dns import MODULE

from kprobe_modules import Collector
from tests.support.alternatives import absent_programs
from tests.support.cgroups import own_cgroup_id
from tests.support.dns import (
    OTHER_PORT,
    RAW_MODULE,
    STRANGE_PORT,
    TICK,
    Exchange,
    Packet,
    Process,
    SocketClosed,
    Workload,
)
from tests.support.namespaces import alone
from tests.support.requirements import needs
from tests.support.sockets import of
from tests.support.watch import DEADLINE, record_work

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kprobe_modules import Record

OWN = {hook.name: [item for item in hook.alternatives if not item.slot] for hook in MODULE.hooks}
"""The alternatives that are attached; who calls slots is in test_dns_sharing."""
LAST = max(map(len, OWN.values()))

KEPT = 4096
"""Bytes of a datagram that are told."""

BRIEF_FROM = 3
"""From this rank on there are alternatives for one hook only."""


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    needs.root()
    needs.command("ip")


@pytest.fixture(scope="module")
def absent() -> frozenset[str]:
    """
    Return the programs that this kernel cannot attach.
    """
    return absent_programs(MODULE)


def check_process(packet: Packet, process: Process, *, known: bool) -> None:
    if not known and not packet.pid:
        return
    assert packet.pid == process.pid, packet
    assert packet.start_time // TICK == process.started
    assert packet.cgroup_id == own_cgroup_id()


def check_payload(packet: Packet, sent: bytes) -> None:
    assert packet.total_length == len(sent)
    assert packet.payload == sent[:KEPT]


def check_exchange(
    truth: Exchange, packets: Sequence[Packet], netns: int, live: Mapping[str, str]
) -> None:
    """
    Compare all four sights of a query and its answer with what was sent.
    """
    client, server = truth.near, truth.far
    # What arrives is told before its process takes it.
    known = live["udp_received"] != "received_btf"
    expected = [
        ("sent", client, server, truth.client, truth.query),
        ("received", server, client, truth.server, truth.query),
        ("sent", server, client, truth.server, truth.answer),
        ("received", client, server, truth.client, truth.answer),
    ]
    assert len(packets) == len(expected), (truth.mode, len(truth.query), packets)
    for packet, (direction, local, remote, process, data) in zip(packets, expected, strict=True):
        assert (packet.direction, packet.local, packet.remote) == (direction, local, remote)
        assert (packet.transport, packet.route, packet.offset) == ("udp", 0, 0)
        assert (packet.family, packet.netns) == (truth.family, netns)
        check_process(packet, process, known=known or direction == "sent")
        check_payload(packet, data)
    assert packets[0].socket_id == packets[3].socket_id != packets[1].socket_id
    assert packets[1].socket_id == packets[2].socket_id


def check_streams(workload: Workload, packets: Sequence[Packet], live: Mapping[str, str]) -> None:
    """
    Put the pieces together: each byte was told once, in order, by both ends.
    """
    for truth in workload.streams:
        for direction, ends in (
            ("sent", (truth.local, truth.remote)),
            ("received", (truth.remote, truth.local)),
        ):
            if f"tcp_{direction}" not in live:
                continue
            pieces = [
                each
                for each in packets
                if each.direction == direction and (each.local, each.remote) == ends
            ]
            assert b"".join(each.payload for each in pieces) == truth.data
            assert all(each.total_length == len(each.payload) <= KEPT for each in pieces)
            starts = [sum(len(each.payload) for each in pieces[:n]) for n in range(len(pieces))]
            assert [each.offset for each in pieces] == starts
            for each in pieces:
                check_process(each, workload.exchanges[0].client, known=True)


def until_closed(collector: Collector, records: Sequence[Record]) -> list[Record]:
    """
    Take records until each socket is told as closed: the kernel frees some with a delay.
    """
    known = {each.socket_id for each in of(records, Packet)}
    closed = {each.socket_id for each in of(records, SocketClosed)}
    more: list[Record] = []
    deadline = monotonic() + DEADLINE
    while not known <= closed:
        assert monotonic() < deadline, known - closed
        more += collector.poll(timeout=0.2)
        closed |= {each.socket_id for each in of(more, SocketClosed)}
    return more + collector.flush()


def check_sockets(records: Sequence[Record], live: Mapping[str, str]) -> None:
    """
    Each socket has an id of its own, and its end is told once, behind all else.
    """
    ends: dict[int, set[tuple[str, int]]] = defaultdict(set)
    last: dict[int, int] = {}
    for number, record in enumerate(records):
        if isinstance(record, Packet):
            # The port, as who is bound to none has more than one address.
            ends[record.socket_id].add((record.transport, record.local[1]))
            last[record.socket_id] = number
    assert all(len(each) == 1 for each in ends.values())
    closed = [each.socket_id for each in of(records, SocketClosed) if each.socket_id in ends]
    if "closed" in live:
        assert sorted(closed) == sorted(ends)
        for number, record in enumerate(records):
            if isinstance(record, SocketClosed):
                assert number > last.get(record.socket_id, -1)


@contextmanager
def on_one_cpu() -> Iterator[None]:
    """
    Stay on a CPU, which is where what is sent to ourselves arrives.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("rank", range(LAST))
def test_each_alternative(rank: int, absent: frozenset[str]) -> None:
    """
    The alternatives of one rank, of all hooks at a time: each tells of every byte.

    A hook without one of that rank uses the first that there is.
    """
    chosen = {
        hook: alternatives[rank].name
        for hook, alternatives in OWN.items()
        if rank < len(alternatives) and not absent & set(alternatives[rank].programs)
    }
    if not chosen:
        pytest.xfail(f"this kernel has no alternatives of rank {rank}")
    with (
        alone() as here,
        Collector(chosen={f"dns.{hook}": name for hook, name in chosen.items()}) as collector,
    ):
        # What comes late in the order is an alternative for datagrams that are sent, only.
        workload = Workload(here, brief=rank >= BRIEF_FROM)
        collector.attach(RAW_MODULE, port_2=OTHER_PORT)
        live = {
            choice.hook.name: choice.alternative.name
            for choice in collector.status("dns").choices
            if choice.alternative
        }
        assert {hook: live[hook] for hook in chosen} == chosen
        records = [
            record
            for record in record_work(collector, workload.run)
            if not isinstance(record, Packet) or record.netns == here.inode
        ]
        if "closed" in live:
            records += until_closed(collector, records)
        stats = collector.stats().modules["dns"]
    packets = of(records, Packet)
    found: dict[bytes, list[Packet]] = defaultdict(list)
    for packet in packets:
        if packet.transport == "udp":
            found[packet.payload[4:12]].append(packet)

    for truth in workload.exchanges:
        check_exchange(truth, found.pop(truth.query[4:12]), here.inode, live)
    assert not found
    assert not any(STRANGE_PORT in (each.local[1], each.remote[1]) for each in packets)
    assert workload.strangers
    check_streams(workload, packets, live)
    check_sockets(records, live)
    assert stats["lost"] == stats["errors"] == 0
    assert stats["emitted"] == stats["received"]


def test_what_was_dropped_is_not_told_with_what_comes_to_its_socket_next(
    absent: frozenset[str],
) -> None:
    """
    Where datagrams are told when they arrive, one with a wrong checksum wakes nobody.
    """
    if absent & {"received_btf", "arriving_btf", "reader_btf"}:
        pytest.xfail("this kernel tells of datagrams when they are taken")
    with (
        Collector(chosen={"dns.udp_received": "received_btf"}) as collector,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw,
        on_one_cpu(),
    ):
        collector.attach(RAW_MODULE)
        asking.bind(("127.0.0.1", 0))
        port = asking.getsockname()[1]
        raw.bind(("127.0.0.2", 0))
        wrong_checksum = 0xDEAD
        forged = struct.pack("!4H", 53, port, 40, wrong_checksum) + bytes(32)
        raw.sendto(forged, ("127.0.0.1", 0))
        other.sendto(b"no DNS", ("127.0.0.1", port))
        assert asking.recv(100) == b"no DNS"
        raw.sendto(struct.pack("!4H", 53, port, 40, 0) + bytes(32), ("127.0.0.1", 0))
        assert len(asking.recv(100)) == 32
        packets = of(collector.flush(), Packet)

    (told,) = [each for each in packets if each.local[1] == port]
    assert told.direction == "received"


def test_no_function_is_missing(absent: frozenset[str]) -> None:
    """
    Every kernel with kprobes that we know has all of them: what is missing was renamed.
    """
    needs.kprobes()
    tracepoints = {"received_btf", "reader_btf", "written_btf"}

    assert absent <= tracepoints, "these have come with 6.3 and 6.16"
