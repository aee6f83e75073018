# SPDX-License-Identifier: Apache-2.0
"""
The dns module against a resolver and a client that are not ours, and what went over the wire.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import attrs
import dpkt
import pytest
from kprobe_modules.modules.dns.records import DnsQuery, DnsResponse, DnsTimeout

from kprobe_modules import Collector
from tests.support.dns_servers import ODD_PORT, SLOW, Reply, dig, oddities, resolver, sniffed
from tests.support.emulation import fewer
from tests.support.namespaces import Namespace, joined
from tests.support.requirements import needs
from tests.support.sockets import ROOMY, of
from tests.support.watch import record_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from kprobe_modules import Record

TIMEOUT_MS = int(SLOW * 500)
"""Half as long as the slow answer takes."""

TEXTS = [f"{number:03}{'t' * 200}" for number in range(12)]
"""More than 512 bytes, so that whoever has not more room is told to ask over TCP."""

ZONE = (
    "--address=/w.km.test/192.0.2.7",
    "--host-record=both.km.test,192.0.2.8,2001:db8::8",
    *(f"--txt-record=long.km.test,{text}" for text in TEXTS),
)


@attrs.frozen
class Run:
    """
    What was asked and answered, and what was recorded meanwhile.
    """

    client: Namespace
    server: Namespace
    logged: dict[str, list[tuple[str, ...]]]
    replies: Sequence[Reply]
    unanswered: Sequence[Reply]
    wire: Counter[tuple[int, int, int, bool]]
    records: Sequence[Record]
    stats: dict[str, Any]

    def told(self, kind: type[Any], role: str, where: Namespace, port: int) -> list[Any]:
        """
        Return the records of one side of what goes to a server's port.
        """
        return [
            each
            for each in of(self.records, kind)
            if (each.role, each.netns) == (role, where.inode)
            and (each.remote_port if role == "client" else each.local_port) == port
        ]


def on_the_wire(file: Path) -> Counter[tuple[int, int, int, bool]]:
    """
    Return server's port, client's port, id and whether it is a response, of each datagram.
    """
    found: Counter[tuple[int, int, int, bool]] = Counter()
    with file.open("rb") as source:
        for _, frame in dpkt.pcap.Reader(source):
            packet = dpkt.ethernet.Ethernet(frame).data
            udp = packet.data
            if isinstance(udp, dpkt.udp.UDP):
                head = bytes(udp.data)[:3]
                response = bool(head[2] & 0x80)
                ports = (udp.sport, udp.dport) if response else (udp.dport, udp.sport)
                found[(*ports, int.from_bytes(head[:2], "big"), response)] += 1
    return found


def names(count: int) -> list[str]:
    source = random.Random(53)  # noqa: S311 - the same each time
    letters = "abcdefghijklmnopqrstuvwxyz0123456789-"
    return [
        f"q{number}{''.join(source.choices(letters, k=source.randrange(1, 40)))}z.w.km.test"
        for number in range(count)
    ]


def in_background(*works: tuple[Callable[[], list[Reply]], list[Reply]]) -> threading.Thread:
    """
    Do one after the other, and keep what is replied to each.
    """

    def work() -> None:
        for ask, kept in works:
            kept.extend(ask())

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    needs.root()
    needs.command("ip")
    folder = tmp_path_factory.mktemp("dns")
    replies: list[Reply] = []
    unanswered: list[Reply] = []
    random_names = names(fewer(1009, 211))
    odd = f"-p {ODD_PORT} +bufsize=4096"
    with joined() as (client, server), ExitStack() as stack:
        stack.enter_context(oddities(server))
        resolving = stack.enter_context(resolver(server, folder, *ZONE))
        collector = stack.enter_context(Collector(rings=ROOMY))
        collector.attach("dns", port_2=ODD_PORT, timeout_ms=TIMEOUT_MS)

        def ask() -> list[Reply]:
            return [
                *dig(client, server.ipv4, folder, random_names),
                *dig(
                    client,
                    server.ipv4,
                    folder,
                    [
                        "nothing.km.test A",
                        "both.km.test AAAA",
                        f"@{server.ipv6} both.km.test A",
                        f"@{server.ipv6} both.km.test A +tcp",
                        "long.km.test TXT +noedns",
                        "long.km.test TXT +bufsize=4096",
                        "servfail.odd.test TXT",
                        *(f"big{size}.odd.test TXT {odd}" for size in (512, 1232, 4000)),
                        "big4000.odd.test TXT +bufsize=4096",
                    ],
                ),
            ]

        def ask_in_vain() -> list[Reply]:
            lines = ["slow.odd.test TXT", f"silent.odd.test TXT {odd} +time={int(SLOW)}"]
            return dig(client, server.ipv4, folder, lines)

        with sniffed(server, folder / "wire", f"udp port 53 or udp port {ODD_PORT}"):
            works = (ask, replies), (ask_in_vain, unanswered)
            if collector.status("dns").live["udp_received"] == "tp_btf/sk_data_ready":
                # It may overlook one of two that are handed to a socket at the same instant.
                threads = [in_background(*works)]
            else:
                threads = [in_background(work) for work in works]
            records = record_until(
                collector, lambda: not any(thread.is_alive() for thread in threads)
            )
        stats = collector.stats().modules["dns"]
        logged = {what: resolving.logged(what) for what in ("query", "forwarded")}
    return Run(
        client,
        server,
        logged,
        replies,
        unanswered,
        on_the_wire(folder / "wire"),
        # Others on this machine ask, too.
        [each for each in records if getattr(each, "netns", 0) in (client.inode, server.inode)],
        stats,
    )


def test_nothing_is_lost(run: Run) -> None:
    assert run.stats["lost"] == run.stats["errors"] == 0
    assert run.stats["emitted"] == run.stats["received"]


def test_the_client_is_told_what_dig_says(run: Run) -> None:
    """
    Each response once, with code, flags and answers.
    """
    assert len(run.replies) == fewer(1009, 211) + 11
    assert {reply.status for reply in run.replies} == {"NOERROR", "NXDOMAIN", "SERVFAIL"}
    told = [
        *run.told(DnsResponse, "client", run.client, 53),
        *run.told(DnsResponse, "client", run.client, ODD_PORT),
    ]
    found = {(each.query_id, each.question_name, each.transport, each.truncated): each
             for each in told}  # fmt: skip
    assert len(found) == len(told)
    for reply in run.replies:
        record = found.pop((reply.query_id, reply.name, reply.transport, "tc" in reply.flags))
        assert record.question_type == reply.rdtype
        assert record.response_code == reply.status
        assert record.authoritative == ("aa" in reply.flags)
        assert record.latency > 0
        assert not record.duplicate
        assert not record.incomplete
        told_answers = Counter(
            (each.name, each.ttl, each.rdtype, each.value) for each in record.answers
        )
        assert told_answers == Counter(reply.answers)
    # What dig does not show: it has asked again over TCP, and what came late.
    rest = Counter((each.question_name, each.truncated, each.late) for each in found.values())
    assert rest.pop(("long.km.test", True, False)) == 1
    assert rest.pop(("slow.odd.test", False, True)) == 1
    assert not rest


def test_client_and_server_see_the_same(run: Run) -> None:
    """
    Over one port: ids, names, codes; what the server took, the client took longer for.
    """
    for port in (53, ODD_PORT):
        for kind in (DnsQuery, DnsResponse):
            asked = run.told(kind, "client", run.client, port)
            heard = [
                each
                for each in run.told(kind, "server", run.server, port)
                if each.remote_address != run.server.ipv4
            ]
            assert asked
            key = ends_of
            assert Counter(map(key, asked)) == Counter(map(key, heard))
            other = {key(each): each for each in heard}
            for each in asked if kind is DnsResponse else ():
                assert each.latency > other[key(each)].latency > 0


def ends_of(record: Any) -> tuple[Any, ...]:
    near = (record.local_port,) if record.role == "client" else (record.remote_port,)
    code = getattr(record, "response_code", None)
    return (*near, record.transport, record.query_id, record.question_name, code)


def test_the_resolver_has_logged_the_same_queries(run: Run) -> None:
    """
    What it was asked, and what it has asked itself: its two legs do not mix.
    """
    asked = Counter(
        (each.question_name, each.question_type)
        for each in run.told(DnsQuery, "server", run.server, 53)
    )
    assert asked == Counter((name, kind) for _, kind, name, _ in run.logged["query"])
    passed_on = Counter(
        each.question_name for each in run.told(DnsQuery, "client", run.server, ODD_PORT)
    )
    assert passed_on == Counter(name for _, _, name, _ in run.logged["forwarded"])
    legs = [
        run.told(DnsResponse, "client", run.client, 53),
        run.told(DnsResponse, "server", run.server, 53),
        run.told(DnsResponse, "client", run.server, ODD_PORT),
        run.told(DnsResponse, "server", run.server, ODD_PORT),
    ]
    slow = [[each for each in leg if each.question_name == "slow.odd.test"] for leg in legs]
    assert [len(each) for each in slow] == [1, 1, 1, 1]
    latencies = [each.latency for (each,) in slow]
    assert sorted(latencies, reverse=True) == latencies
    assert latencies[-1] > SLOW * 0.9e9


def test_the_wire_had_the_same(run: Run) -> None:
    told: Counter[tuple[int, int, int, bool]] = Counter()
    for port in (53, ODD_PORT):
        for kind in (DnsQuery, DnsResponse):
            for each in run.told(kind, "client", run.client, port):
                if each.transport == "udp":
                    told[port, each.local_port, each.query_id, kind is DnsResponse] += 1
    assert told == run.wire


def test_what_is_not_answered(run: Run) -> None:
    """
    The client's and the server's side time out; what comes later than that is late.
    """
    assert [reply.name for reply in run.unanswered] == ["slow.odd.test"]
    timeouts = [each for each in of(run.records, DnsTimeout) if each.question_name]
    silent = Counter(
        (each.role, each.netns) for each in timeouts if each.question_name == "silent.odd.test"
    )
    assert silent == {("client", run.client.inode): 1, ("server", run.server.inode): 1}
    slow = [each for each in timeouts if each.question_name == "slow.odd.test"]
    assert Counter(each.role for each in slow) == {"client": 2, "server": 2}
    for each in (*slow, *timeouts):
        assert each.duration >= TIMEOUT_MS * 1_000_000 or each.socket_closed


def test_who_it_was(run: Run) -> None:
    ours = run.told(DnsResponse, "server", run.server, ODD_PORT)
    assert ours
    assert {each.pid for each in ours} == {os.getpid()}
    theirs = {each.pid for each in run.told(DnsQuery, "client", run.client, 53)}
    assert os.getpid() not in theirs
    assert None not in theirs
