# SPDX-License-Identifier: Apache-2.0
"""
The dns handler against any order of packets: what is told, and what belongs together.
"""

from __future__ import annotations

import io
import json
import logging
import socket
import struct
from pathlib import Path

import attrs
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from kprobe_modules.modules.dns.handler import COMPLAIN_NS, DIRECTIONS, TRANSPORTS, DnsHandler
from kprobe_modules.modules.dns.message import Answer
from kprobe_modules.modules.dns.queries import OPEN_COUNT, PAST_COUNT, REMEMBERED_NS
from kprobe_modules.modules.dns.routes import KEPT_COUNT, WINDOW_NS
from kprobe_modules.modules.dns.streams import BUFFERED, KEPT, STREAM_COUNT

from kprobe_modules.api import Context
from kprobe_modules.sinks.jsonl import JsonLines

MS = 1_000_000
SECOND = 1000 * MS
TIMEOUT = 10 * SECOND
SENT, RECEIVED = range(len(DIRECTIONS))
UDP, TCP = range(len(TRANSPORTS))
V4, V4_PEER = (socket.inet_aton(f"192.0.2.{n}").ljust(16, b"\0") for n in (1, 2))
V6, V6_PEER = (socket.inet_pton(socket.AF_INET6, f"2001:db8::{n}") for n in (1, 2))


class World:
    """
    A handler that is shown packets.
    """

    def __init__(self, timeout_ms: int = 10_000) -> None:
        def refuse(*_: object) -> object:
            raise AssertionError

        self.handler = DnsHandler(
            Context(
                name="dns",
                tunables={"timeout_ms": timeout_ms},
                proc_root=Path("/nonexistent"),
                provide=refuse,
                find=refuse,
                data=refuse,
                live={},
                map=refuse,
                program_fd=refuse,
            )
        )

    def packet(self, time, wire, direction=SENT, *, number=5, transport=UDP, **more):
        said = {
            "socket_id": number,
            "udp_socket_id": 0,
            "start_time": 100,
            "cgroup_id": 77,
            "pid": 10,
            "netns": 7,
            "family": 4,
            "local_address": V4,
            "remote_address": V4_PEER,
            "local_port": 1000,
            "remote_port": 53,
            "route": 0,
            "packet": 0,
            "offset": 0,
            "total_length": len(wire),
            **more,
        }
        return list(
            self.handler.on_dns_packet(
                time, **said, direction=direction, transport=transport, payload=wire
            )
        )

    def close(self, time, number=5):
        return list(self.handler.on_dns_socket_closed(time, number))

    def tick(self, time):
        return list(self.handler.tick(time))


@pytest.fixture
def world():
    return World()


def query(name="www.example.org", rdtype="A", *, number=7):
    made = dns.message.make_query(name, rdtype)
    made.id = number
    return made.to_wire()


def response(name="www.example.org", rdtype="A", *answers, number=7, rcode=0, flags=0):
    made = dns.message.make_response(dns.message.make_query(name, rdtype))
    made.id = number
    made.set_rcode(rcode)
    made.flags |= flags
    for ttl, kind, value in answers:
        made.answer.append(dns.rrset.from_text(f"{name}.", ttl, "IN", kind, value))
    return made.to_wire(max_size=65535)


def kinds(records):
    return [each.record.removeprefix("dns_") for each in records]


def test_a_query_and_its_response(world):
    (asked,) = world.packet(1 * MS, query())
    (told,) = world.packet(
        4 * MS, response("www.example.org", "A", (60, "A", "192.0.2.9"), number=7), RECEIVED
    )

    for record in (asked, told):
        assert (record.module, record.socket_id, record.pid) == ("dns", 5, 10)
        assert (record.start_time, record.cgroup_id, record.netns) == (100, 77, 7)
        assert (record.family, record.transport, record.role) == ("ipv4", "udp", "client")
        assert (record.local_address, record.local_port) == ("192.0.2.1", 1000)
        assert (record.remote_address, record.remote_port) == ("192.0.2.2", 53)
        assert (record.query_id, record.opcode) == (7, "QUERY")
        assert record.question_name == "www.example.org"
        assert (record.question_type, record.question_class) == ("A", "IN")
        assert record.retries == 0
    assert (asked.record, asked.time, asked.recursion_desired) == ("dns_query", 1 * MS, True)
    assert (told.record, told.time, told.latency) == ("dns_response", 4 * MS, 3 * MS)
    assert told.response_code == "NOERROR"
    assert told.answers == (Answer("www.example.org", "A", "IN", 60, "192.0.2.9"),)
    assert not any((told.duplicate, told.late, told.truncated, told.incomplete))
    assert not told.authoritative
    assert world.tick(60 * SECOND) == []


def test_records_as_json(world):
    out = io.BytesIO()
    for record in (
        *world.packet(1, query()),
        *world.packet(4, response("www.example.org", "A", (60, "A", "192.0.2.9")), RECEIVED),
    ):
        JsonLines(out)(record)
    asked, told = map(json.loads, out.getvalue().splitlines())

    common = {
        "module": "dns", "socket_id": 5, "pid": 10, "start_time": 100, "cgroup_id": 77, "netns": 7,
        "family": "ipv4", "local_address": "192.0.2.1", "local_port": 1000,
        "remote_address": "192.0.2.2", "remote_port": 53, "role": "client", "transport": "udp",
        "query_id": 7, "opcode": "QUERY", "question_name": "www.example.org",
        "question_type": "A", "question_class": "IN", "retries": 0,
    }  # fmt: skip
    assert asked == {**common, "time": 1, "record": "dns_query", "recursion_desired": True}
    answer = {
        "name": "www.example.org", "rdtype": "A", "rdclass": "IN", "ttl": 60, "value": "192.0.2.9",
    }  # fmt: skip
    assert told == {
        **common,
        "time": 4,
        "record": "dns_response",
        "response_code": "NOERROR",
        "answers": [answer],
        "authoritative": False,
        "truncated": False,
        "incomplete": False,
        "latency": 3,
        "duplicate": False,
        "late": False,
    }


def test_negative_answers_and_flags(world):
    for number, rcode in enumerate((dns.rcode.NXDOMAIN, dns.rcode.SERVFAIL, dns.rcode.REFUSED)):
        world.packet(1, query(number=number))
        (told,) = world.packet(9, response(number=number, rcode=rcode), RECEIVED)
        assert told.response_code == dns.rcode.to_text(rcode)
        assert (told.answers, told.latency) == ((), 8)
    (told,) = world.packet(9, response(flags=dns.flags.TC | dns.flags.AA), RECEIVED)
    assert told.truncated
    assert told.authoritative


def test_ipv6_and_who_is_not_known(world):
    nobody = {"pid": 0, "start_time": 0, "cgroup_id": 0}
    (asked,) = world.packet(
        1, query(rdtype="AAAA"), **nobody, family=6, local_address=V6,
        remote_address=V6_PEER,
    )  # fmt: skip

    assert (asked.family, asked.local_address) == ("ipv6", "2001:db8::1")
    assert (asked.remote_address, asked.question_type) == ("2001:db8::2", "AAAA")
    assert asked.pid is asked.start_time is asked.cgroup_id is None


def test_the_two_legs_of_a_resolver_are_two_queries(world):
    """
    It may even ask with the number that it was asked with.
    """
    legs = [(RECEIVED, {"number": 1, "local_port": 53}), (SENT, {"number": 2})]
    records = [
        record
        for time, (direction, more) in enumerate(legs, 1)
        for record in world.packet(time * MS, query(), direction, **more)
    ]
    for time, (direction, more) in zip((5, 9), reversed(legs), strict=True):
        records += world.packet(time * MS, response(), 1 - direction, **more)

    assert kinds(records) == ["query", "query", "response", "response"]
    assert [each.role for each in records] == ["server", "client", "client", "server"]
    assert [each.socket_id for each in records] == [1, 2, 2, 1]
    assert [each.latency for each in records[2:]] == [3 * MS, 8 * MS]
    assert not any(each.duplicate for each in records[2:])


def test_a_socket_that_is_client_and_server_at_once(world):
    world.packet(1, query(), SENT)
    world.packet(2, query(), RECEIVED)
    (to_client,) = world.packet(10, response(), SENT)
    (from_server,) = world.packet(20, response(), RECEIVED)

    assert (to_client.role, to_client.latency) == ("server", 8)
    assert (from_server.role, from_server.latency) == ("client", 19)


@pytest.mark.parametrize(
    "other",
    [
        {"wire": response(number=8)},
        {"wire": response("mail.example.org")},
        {"wire": response(rdtype="AAAA")},
        {"wire": response(), "number": 6},
        {"wire": response(), "remote_port": 54},
        {"wire": response(), "remote_address": V4},
        {"wire": response(), "direction": SENT},
    ],
)
def test_an_answer_to_something_else_is_told_as_unmatched(world, other):
    world.packet(1, query())
    (told,) = world.packet(2, other.pop("wire"), **{"direction": RECEIVED, **other})
    assert told.latency is told.retries is None
    assert not told.duplicate
    (told,) = world.packet(3, response(), RECEIVED)
    assert told.latency == 2


def test_case_of_names_does_not_matter(world):
    world.packet(1, query("wWw.ExAmPlE.oRg"))
    (told,) = world.packet(2, response("www.example.ORG"), RECEIVED)

    assert (told.latency, told.question_name) == (1, "www.example.ORG")


def test_latency_is_of_the_last_transmission(world):
    asked = [world.packet(time * SECOND, query())[0] for time in (0, 5, 10, 15)]
    (told,) = world.packet(15 * SECOND + 7, response(), RECEIVED)

    assert [each.retries for each in asked] == [0, 1, 2, 3]
    assert (told.latency, told.retries) == (7, 3)
    (again,) = world.packet(20 * SECOND, query())
    assert again.retries == 0, "the same number is used for a new query"


def test_duplicates(world):
    world.packet(1, query())
    told = [world.packet(time, response(), RECEIVED)[0] for time in (2, 3, 4)]

    assert [each.duplicate for each in told] == [False, True, True]
    assert [each.latency for each in told] == [1, 2, 3]
    (forgotten,) = world.packet(2 + REMEMBERED_NS, response(), RECEIVED)
    assert forgotten.latency is None
    assert not forgotten.duplicate


def test_timeouts_and_late_answers(world):
    world.packet(0, query())
    world.packet(1 * SECOND, query(number=8))
    assert world.tick(TIMEOUT - 1) == []
    (over,) = world.tick(TIMEOUT)
    late, dead = (world.packet(TIMEOUT + at, response(), RECEIVED)[0] for at in (5, 6))
    other, third = world.packet(12 * SECOND, query(number=9))

    assert (over.record, over.time, over.duration) == ("dns_timeout", TIMEOUT, TIMEOUT)
    assert (over.query_id, over.question_name, over.role) == (7, "www.example.org", "client")
    assert (over.retries, over.socket_closed) == (0, False)
    assert (late.late, late.duplicate, late.latency) == (True, False, TIMEOUT + 5)
    assert (dead.late, dead.duplicate) == (True, True)
    assert (other.record, other.query_id) == ("dns_timeout", 8), "no tick is needed"
    assert (other.time, other.duration) == (12 * SECOND, 11 * SECOND)
    assert third.record == "dns_query"
    assert world.tick(TIMEOUT + 5) == []


def test_a_query_that_is_repeated_starts_its_time_anew(world):
    world.packet(0, query())
    world.packet(6 * SECOND, query())
    assert world.tick(10 * SECOND) == []
    (over,) = world.tick(16 * SECOND)
    (again,) = world.packet(17 * SECOND, query())
    (told,) = world.packet(18 * SECOND, response(), RECEIVED)

    assert (over.retries, over.duration) == (1, TIMEOUT)
    assert again.retries == 2
    assert (told.late, told.latency, told.retries) == (False, 1 * SECOND, 2)


def test_the_timeout_is_a_tunable():
    world = World(timeout_ms=100)
    world.packet(0, query())
    assert world.tick(100 * MS - 1) == []
    assert kinds(world.tick(100 * MS)) == ["timeout"]
    never = World(timeout_ms=0)
    never.packet(0, query())
    assert never.tick(1000 * SECOND) == []
    assert never.packet(1001 * SECOND, response(), RECEIVED)[0].latency == 1001 * SECOND


def test_a_socket_that_is_closed_ends_its_queries(world):
    world.packet(1, query(number=1))
    world.packet(2, query(number=2))
    world.packet(2, query(number=2), number=6)
    world.packet(3, response(number=1), RECEIVED)
    (over,) = world.close(9)

    assert (over.record, over.query_id, over.socket_id) == ("dns_timeout", 2, 5)
    assert (over.time, over.duration, over.socket_closed) == (9, 7, True)
    assert world.close(10) == []
    assert [each.socket_id for each in world.tick(60 * SECOND)] == [6]


def test_responses_without_a_question(world):
    bare = struct.pack("!6H", 7, 0x8001, 0, 0, 0, 0)
    for time, name in enumerate(("a", "b", "c")):
        world.packet(time, query(name))
    world.packet(5, response("c"), RECEIVED)
    told = [world.packet(6, bare, RECEIVED)[0] for _ in range(3)]

    assert [each.latency for each in told] == [5, 6, 4]
    assert [each.duplicate for each in told] == [False, False, True]
    assert told[0].question_name is told[0].question_type is told[0].question_class is None
    assert told[0].response_code == "FORMERR"


def test_what_cannot_be_read_is_counted_and_the_rest_told(world, caplog):
    assert world.packet(1, b"") == []
    assert world.packet(1, b"noise") == []
    assert world.packet(1, bytes(5) + b"\1" + bytes(6)) == []
    whole = response("www.example.org", "A", (60, "A", "192.0.2.9"), (60, "A", "192.0.2.8"))
    (cut,) = world.packet(2, whole[:-16], RECEIVED, total_length=len(whole))
    (damaged,) = world.packet(2, whole[:-16], RECEIVED)

    assert [each.incomplete for each in (cut, damaged)] == [True, True]
    assert [len(each.answers) for each in (cut, damaged)] == [1, 1]
    with caplog.at_level(logging.WARNING):
        world.tick(3)
    assert [each.message for each in caplog.records] == ["3 messages could not be read"]
    caplog.clear()
    world.tick(3 + COMPLAIN_NS)
    assert not caplog.records
    world.packet(4, b"noise")
    world.tick(4 + COMPLAIN_NS)
    assert not caplog.records
    world.handler.detached()
    assert [each.message for each in caplog.records] == ["1 messages could not be read"]


def test_other_opcodes(world):
    notify = dns.message.Message(3)
    notify.set_opcode(4)
    notify.question.append(dns.rrset.RRset(dns.name.from_text("example.org"), 1, 6))
    (asked,) = world.packet(1, notify.to_wire())
    notify.flags |= dns.flags.QR
    (told,) = world.packet(2, notify.to_wire(), RECEIVED)

    assert (asked.opcode, told.opcode, told.latency) == ("NOTIFY", "NOTIFY", 1)
    assert (asked.question_type, asked.recursion_desired) == ("SOA", False)


# -- bounds ----------------------------------------------------------------------


def test_a_newer_transport_is_told_by_its_number(world):
    (told,) = world.packet(1, query(), transport=len(TRANSPORTS))

    assert told.transport == str(len(TRANSPORTS))


def numbered(count, name="x."):
    wire = query(name, number=0)
    return [(5 + number // 65536, struct.pack("!H", number % 65536) + wire[2:]) for number in count]


def test_open_queries_are_bounded(world, caplog):
    for number, wire in numbered(range(OPEN_COUNT + 3)):
        world.packet(1, wire, number=number)
    assert len(world.handler._queries) == OPEN_COUNT
    with caplog.at_level(logging.WARNING):
        world.tick(2)
    assert caplog.records[0].message.startswith("3 queries were forgotten")
    assert world.packet(3, response("x.", number=2), RECEIVED)[0].latency is None
    assert world.packet(3, response("x.", number=3), RECEIVED)[0].latency == 2


def test_past_queries_are_bounded(world):
    for number, wire in numbered(range(PAST_COUNT + 3)):
        world.packet(1, wire, number=number)
        world.packet(1, wire[:2] + b"\x80" + wire[3:], RECEIVED, number=number)
    assert len(world.handler._queries) == 0
    assert world.packet(2, response("x.", number=2), RECEIVED)[0].latency is None
    assert world.packet(2, response("x.", number=3), RECEIVED)[0].duplicate
    world.tick(1 + REMEMBERED_NS)
    assert world.handler._queries._sockets == {}


# -- a packet that comes by two routes ---------------------------------------------


def test_a_packet_that_comes_by_both_routes_is_told_once(world):
    def shown(time, route, tag=99, **more):
        return len(world.packet(time, more.pop("wire", query()), route=route, packet=tag, **more))

    assert shown(1, 0) == 1
    assert shown(2, 1) == 0
    assert shown(3, 1) == 1, "both have had the first"
    assert shown(4, 0) == 0
    assert shown(5, 0) == 1
    assert shown(6, 0) == 1, "the same route does not show a packet twice"
    assert shown(7, 1, wire=query(number=8)) == 1, "it is another packet"
    assert shown(8, 1, number=6) == 1
    assert shown(9, 1, direction=RECEIVED) == 1
    assert shown(6 + WINDOW_NS, 1) >= 1, "the time is over"
    assert shown(2 * WINDOW_NS - 1, 0, tag=5) == 1
    assert shown(2 * WINDOW_NS + 6, 0) == 1, "what is remembered begins anew"
    assert shown(2 * WINDOW_NS + 7, 1, tag=5) == 0
    assert [shown(10 + 3 * WINDOW_NS, route, tag=0) for route in (0, 1)] == [1, 1], (
        "it has no number"
    )


def test_a_packet_at_the_address_of_a_former_one_is_told(world):
    """
    As when a client asks again and again: of some hundred queries two have the same id.
    """

    def shown(time, wire, route, **more):
        return len(world.packet(time, wire, route=route, packet=99, **more))

    names = [f"n{number}." for number in range(3)]
    assert [shown(1, query(name), 0) for name in names] == [1, 1, 1]
    assert shown(2, query("n3."), 1) == 1, "its header is that of one which came the other way"
    assert shown(3, query("n4."), 0) == 1
    assert shown(4, query("n4."), 0, direction=RECEIVED) == 1, "the packet went on"
    assert shown(5, query("n4."), 1) == 1, "so this is another one, with the same payload"


def test_routes_remember_a_bounded_number_of_packets(world):
    wire = query()
    for tag in range(1, 4 * KEPT_COUNT):
        world.packet(1, wire, packet=tag)
        assert world.packet(1, wire, packet=tag, route=1) == []
    for tag in range(1, 4 * KEPT_COUNT):
        world.packet(2, wire, packet=tag)
    packets = world.handler._packets
    assert len(packets._newer) + len(packets._older) <= 2 * KEPT_COUNT
    assert world.packet(2, wire, packet=4 * KEPT_COUNT - 1, route=1) == []


# -- connections ---------------------------------------------------------------------


def framed(*wires):
    return b"".join(struct.pack("!H", len(wire)) + wire for wire in wires)


class Connection:
    """
    A stream that is shown in pieces.
    """

    def __init__(self, world, direction=SENT, number=5):
        self.world, self.direction, self.number, self.offset = world, direction, number, 0

    def piece(self, data, *, time=1, here=None, offset=None):
        at = self.offset if offset is None else offset
        if offset is None:
            self.offset += len(data)
        return self.world.packet(
            time, data[:here], self.direction, number=self.number, transport=TCP, offset=at,
            total_length=len(data),
        )  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3, 7, 30, 1000])
def test_messages_come_in_pieces_of_any_size(world, size):
    stream = framed(query(number=1), query("mail.example.org", number=2), query(number=3))
    sent = Connection(world)
    records = [
        record
        for at in range(0, len(stream), size)
        for record in sent.piece(stream[at : at + size], time=at + 1)
    ]

    assert [(each.query_id, each.transport) for each in records] == [
        (1, "tcp"), (2, "tcp"), (3, "tcp"),
    ]  # fmt: skip
    (told,) = Connection(world, RECEIVED).piece(framed(response(number=3)), time=1000)
    assert told.latency == 1000 - records[2].time


def test_both_directions_and_other_sockets_are_streams_of_their_own(world):
    streams = [Connection(world, RECEIVED), Connection(world), Connection(world, number=6)]
    wires = [framed(query(number=number)) for number in range(3)]
    records = [stream.piece(wire[:9]) for stream, wire in zip(streams, wires, strict=True)]
    records += [stream.piece(wire[9:]) for stream, wire in zip(streams, wires, strict=True)]

    assert records[:3] == [[], [], []]
    assert [each.query_id for (each,) in records[3:]] == [0, 1, 2]
    assert [each.role for (each,) in records[3:]] == ["server", "client", "client"]


def test_pieces_that_overlap_are_taken_once(world):
    stream = framed(query(number=1), query(number=2), query(number=3))
    sent = Connection(world)
    records = sent.piece(stream[:40])
    records += sent.piece(stream[:40], offset=0)
    records += sent.piece(stream[20:70], offset=20)
    records += sent.piece(stream[50:60], offset=50)
    records += sent.piece(stream[60:], offset=60)

    assert [each.query_id for each in records] == [1, 2, 3]


def test_a_large_message(world):
    large = response("www.example.org", "TXT", *[(60, "TXT", f'"{n:0200}"') for n in range(60)])
    assert len(large) > 2 * KEPT
    stream = framed(large, response(number=8))
    sent, other = Connection(world), Connection(world, number=6)
    records = [
        record for at in range(0, len(stream), 4096) for record in sent.piece(stream[at:][:4096])
    ]
    # The same in one piece, of which no more is here than of a datagram.
    records += other.piece(framed(large), here=KEPT)
    records += other.piece(framed(response(number=8)))

    assert [each.query_id for each in records] == [7, 8, 7, 8]
    assert [each.incomplete for each in records] == [False, False, True, False]
    assert len(records[0].answers) == 60
    assert 15 < len(records[2].answers) < 25


def test_what_streams_keep_is_bounded(world):
    """
    Each has the beginning of a message of 64 KiB that does not end.
    """
    wire = struct.pack("!H", 0xFFFF) + response()
    wire += bytes(0xFFFF - len(wire))
    table = world.handler._streams
    for number in range(STREAM_COUNT):
        Connection(world, number=number).piece(wire)
    kept = [len(stream.kept) for stream in table._streams.values()]

    assert min(kept) == KEPT
    assert max(kept) > 0xFF00
    assert sum(kept) == table._buffered < BUFFERED + 0xFFFF + STREAM_COUNT * KEPT
    for number in range(1, 100):
        world.close(2, number)
    (told,) = Connection(world, number=0).piece(bytes(3), offset=len(wire))
    (cut,) = Connection(world, number=STREAM_COUNT - 1).piece(bytes(3), offset=len(wire))
    assert [told.incomplete, cut.incomplete] == [False, True]
    table.give_up(101, SENT)
    Connection(world, number=STREAM_COUNT).piece(wire)
    for number in range(STREAM_COUNT + 1):
        world.close(2, number)
    assert table._buffered == 0


def test_a_piece_that_is_missing_within_a_message_cuts_it_off(world):
    told = response("www.example.org", "TXT", *[(60, "TXT", f'"{n:0200}"') for n in range(10)])
    stream = framed(told, response(number=8), response(number=9))
    sent = Connection(world)
    records = sent.piece(stream[:500], offset=0)
    records += sent.piece(stream[700:], offset=700)

    assert [each.query_id for each in records] == [7, 8, 9]
    assert [each.incomplete for each in records] == [True, False, False]
    assert [each.value[-4:-1] for each in records[0].answers] == ["000", "001"]


def test_a_message_of_which_only_the_length_is_there_does_not_end_the_stream(world):
    """
    Many write the length by itself.
    """
    stream = framed(query(number=1), query(number=2))
    sent = Connection(world)
    records = sent.piece(stream[:2], offset=0)
    size = len(stream) // 2
    records += sent.piece(stream[size:], offset=size)

    assert [each.query_id for each in records] == [2]
    assert world.handler._streams.given_up == 0


def test_a_stream_with_a_length_missing_is_given_up(world, caplog):
    stream = framed(query(number=1), query(number=2), query(number=3))
    size = len(stream) // 3
    lost = Connection(world)
    fine = Connection(world, number=6)

    assert kinds(lost.piece(stream[: size + 5], offset=0)) == ["query"]
    assert lost.piece(stream[2 * size + 1 :], offset=2 * size + 1) == []
    assert lost.piece(stream, offset=3 * size) == []
    assert len(fine.piece(stream)) == 3
    with caplog.at_level(logging.WARNING):
        world.tick(2)
    assert [each.message.split(":")[0] for each in caplog.records] == ["1 streams were given up"]
    world.close(3)
    assert len(Connection(world).piece(stream)) == 3, "another one with the same id"


@pytest.mark.parametrize("data", [b"\0\0", b"\0\x0bhello world", b"GET / HTTP/1.1\r\n" * 2000])
def test_what_is_not_dns_is_given_up(world, data):
    sent = Connection(world)
    records = sent.piece(framed(query()))
    records += sent.piece(data)
    records += sent.piece(framed(query(number=8)))

    assert [each.query_id for each in records] == [7]
    assert world.handler._streams.given_up == 1
    assert all(not each.kept for each in world.handler._streams._streams.values())


def test_streams_are_bounded(world):
    wire = framed(query())
    for number in range(STREAM_COUNT + 3):
        Connection(world, number=number).piece(wire[:-1])
    assert len(world.handler._streams._streams) == STREAM_COUNT
    assert world.handler._streams.forgotten == 3
    oldest = next(iter(world.handler._streams._streams))
    Connection(world, number=oldest[0]).piece(wire, offset=0)
    Connection(world, number=STREAM_COUNT + 3).piece(wire[:-1])
    assert oldest in world.handler._streams._streams, "the one that was used last stays"


# -- any order -------------------------------------------------------------------------


@attrs.define
class Entry:
    """
    A query as the reference sees it.
    """

    where: tuple[object, ...]
    asked: tuple[str, str]
    time: int
    retries: int
    answered: bool = False
    over: int | None = None
    timed_out: bool = False


def order(record):
    where = record.socket_id, record.role, record.remote_port, record.query_id
    return -record.duration, where, (record.question_name.lower(), record.question_type)


NAMES = st.sampled_from(["a.org", "A.ORG", "b.org"])


class AnyOrder(RuleBasedStateMachine):
    """
    The handler beside a list that is searched from end to end.
    """

    @initialize()
    def begin(self):
        self.world = World()
        self.time = 0
        self.entries: list[Entry] = []
        self.records: list[tuple[object, ...]] = []
        self.expected: list[tuple[object, ...]] = []

    def see(self, records):
        for each in records:
            same = each.record, each.time, each.socket_id, each.role, each.query_id
            if each.record == "dns_query":
                self.records.append((*same, each.retries))
            elif each.record == "dns_response":
                flags = each.duplicate, each.late
                self.records.append((*same, each.latency, each.retries, *flags))
            else:
                self.records.append((*same, each.duration, each.retries, each.socket_closed))

    def expect(self, what, where, *more):
        number, role, _, query_id = where
        self.expected.append((f"dns_{what}", self.time, number, role, query_id, *more))

    def expire(self):
        self.entries = [
            each
            for each in self.entries
            if each.over is None or self.time - each.over < REMEMBERED_NS
        ]
        for each in sorted(self.entries, key=lambda each: each.time):
            if each.over is None and self.time - each.time >= TIMEOUT:
                each.over, each.timed_out = self.time, True
                duration = self.time - each.time
                self.expect("timeout", each.where, duration, each.retries, False)  # noqa: FBT003

    @rule(
        number=st.integers(1, 2), role=st.sampled_from(["client", "server"]),
        port=st.integers(53, 54), query_id=st.integers(1, 2), name=NAMES,
        rdtype=st.sampled_from(["A", "AAAA"]),
    )  # fmt: skip
    def ask(self, number, role, port, query_id, name, rdtype):
        where, asked = (number, role, port, query_id), (name.lower(), rdtype)
        self.expire()
        same = [each for each in self.entries if (each.where, each.asked) == (where, asked)]
        retries = same[0].retries + 1 if same and not same[0].answered else 0
        self.entries = [each for each in self.entries if each not in same]
        self.entries.append(Entry(where, asked, self.time, retries))
        self.expect("query", where, retries)
        direction = SENT if role == "client" else RECEIVED
        wire = query(name, rdtype, number=query_id)
        self.see(self.world.packet(self.time, wire, direction, number=number, remote_port=port))

    @rule(
        number=st.integers(1, 2), role=st.sampled_from(["client", "server"]),
        port=st.integers(53, 54), query_id=st.integers(1, 2), name=st.one_of(NAMES, st.none()),
        rdtype=st.sampled_from(["A", "AAAA"]),
    )  # fmt: skip
    def respond(self, number, role, port, query_id, name, rdtype):
        where = number, role, port, query_id
        self.expire()
        found = [each for each in self.entries if each.where == where]
        if name is not None:
            found = [each for each in found if each.asked == (name.lower(), rdtype)]
        found = [each for each in found if each.over is None] or found
        if found:
            last = found[-1]
            latency = self.time - last.time
            self.expect("response", where, latency, last.retries, last.answered, last.timed_out)
            last.answered = True
            last.over = self.time if last.over is None else last.over
        else:
            self.expect("response", where, None, None, False, False)  # noqa: FBT003
        wire = struct.pack("!6H", query_id, 0x8001, 0, 0, 0, 0)
        if name is not None:
            wire = response(name, rdtype, number=query_id)
        direction = RECEIVED if role == "client" else SENT
        self.see(self.world.packet(self.time, wire, direction, number=number, remote_port=port))

    @rule(number=st.integers(1, 2))
    def close(self, number):
        self.expire()
        mine = [each for each in self.entries if each.where[0] == number]
        self.entries = [each for each in self.entries if each not in mine]
        # What came by at the same time may end in any order.
        ending = [each for each in mine if each.over is None]
        for each in sorted(ending, key=lambda each: (each.time, each.where, each.asked)):
            duration = self.time - each.time
            self.expect("timeout", each.where, duration, each.retries, True)  # noqa: FBT003
        records = self.world.close(self.time, number)
        kept = len(records) - len(ending)
        assert [each.duration for each in records[kept:]] == sorted(
            (each.duration for each in records[kept:]), reverse=True
        )
        self.see([*records[:kept], *sorted(records[kept:], key=order)])

    @rule()
    def tick(self):
        self.expire()
        self.see(self.world.tick(self.time))

    @rule(more=st.sampled_from([1, SECOND, TIMEOUT - 1, TIMEOUT, REMEMBERED_NS]))
    def wait(self, more):
        self.time += more

    @invariant()
    def both_say_the_same(self):
        assert self.records == self.expected
        if hasattr(self, "world"):
            still = sum(each.over is None for each in self.entries)
            assert len(self.world.handler._queries) == still


TestAnyOrder = AnyOrder.TestCase
