# SPDX-License-Identifier: Apache-2.0
"""
What the nat module's handler makes of messages, and of what ctnetlink tells.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections import Counter
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kprobe_modules.modules.nat.addresses import LASTING_NS, REFRESH_NS
from kprobe_modules.modules.nat.ctnetlink import ENTRY, FOUND, LOST, NEW, OVER
from kprobe_modules.modules.nat.handler import LOOK_NS, NatHandler
from kprobe_modules.modules.nat.sockets import KEEP_NS

from kprobe_modules.api import Context, KprobeModulesError, OpenSockets
from kprobe_modules.suspects import CONFIRM_NS

SECOND = 1_000_000_000
SOURCE, DESTINATION, BOTH = 1, 2, 3
CLIENT, SERVER = "192.0.2.1", "198.51.100.2"
VIRTUAL, OUTSIDE = "203.0.113.7", "198.51.100.9"
ANYWHERE = "0.0.0.0"  # noqa: S104
TCP, UDP, ICMP, GRE, ICMPV6 = 6, 17, 1, 47, 58
PROGRAMS = {"end": "end_fentry", "start": "start_fexit", "existing": "existing_kprobe"}
CTNETLINK = dict.fromkeys(PROGRAMS, "ctnetlink")


def raw(address: str) -> bytes:
    """
    Return an IPv4 address as messages have it.
    """
    return socket.inet_aton(address).ljust(16, b"\0")


@attrs.define(eq=False)
class One:
    """
    A socket, as the tcp and udp modules offer them.
    """

    socket_id: int
    local_address: str
    local_port: int
    remote_address: str | None = None
    remote_port: int | None = None
    netns: int | None = 7
    pid: int | None = 99


class Map(dict):
    def values(self, size=None):
        return [value[:size] for value in super().values()]


class World:
    """
    A handler, with what it sees.
    """

    def __init__(self, live=PROGRAMS) -> None:
        self.seen = Map()
        self.offers: dict[str, object] = {}
        self.now = SECOND
        self.told: list[bytes] = []
        self.there: list[bytes] = []
        self.spaces: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        self.silent: tuple[int, ...] = ()
        self.addresses = [(7, raw(CLIENT)), (7, raw(SERVER))]
        self.looks: Counter[str] = Counter()

        def refuse(*_: object) -> object:
            raise AssertionError

        self.handler = NatHandler(
            Context(
                name="nat",
                tunables={},
                proc_root=Path("/nowhere"),
                provide=refuse,
                find=self.offers.get,
                data=refuse,
                live=live,
                map={"seen_conntracks": self.seen}.__getitem__,
                program_fd=refuse,
                observe=self.observe,
            )
        )

    def observe(self, what: str, _look: object) -> bytes:
        self.looks[what] += 1
        if what == "namespaces":
            new, gone = self.spaces
            self.spaces = ((), ())
            numbers = len(new), len(gone), *new, *gone, *self.silent
            return struct.pack(f"<{len(numbers)}I", *numbers)
        if what == "addresses":
            return b"".join(struct.pack("<I16s", *each) for each in self.addresses)
        entries = self.there
        if what == "events":
            entries, self.told = self.told, []
        return struct.pack("<QQ", self.now, self.now - SECOND) + b"".join(entries)

    def start(self, time, number, **more):
        return list(self.handler.on_nf_conntrack_alter_reply(time, **subject(number, **more)))

    def find(self, time, number, **more):
        return list(self.handler.on_existing_conntrack_tuple(time, **subject(number, **more)))

    def end(self, time, number, *, duration=0, missed=0, **more):
        said = subject(number, **more)
        return list(
            self.handler.on_nf_nat_cleanup_conntrack(time, **said, duration=duration, missed=missed)
        )

    def hear(self, *entries):
        self.told += entries
        return list(self.handler.read_source("ctnetlink"))

    def scan(self, *entries):
        self.there = list(entries)
        return list(self.handler.scan("existing"))

    def tick(self, now):
        self.now = now
        return list(self.handler.tick(now))


def subject(number, *, port=1000, protocol=TCP, kind=DESTINATION, netns=7, zone=0, client=CLIENT):
    return {
        "conntrack_id": number,
        "original_source": raw(client),
        "original_destination": raw(VIRTUAL),
        "translated_source": raw(OUTSIDE if kind & SOURCE else client),
        "translated_destination": raw(SERVER if kind & DESTINATION else VIRTUAL),
        "original_source_port": port,
        "original_destination_port": 80,
        "translated_source_port": port + 1 if kind & SOURCE else port,
        "translated_destination_port": 8080 if kind & DESTINATION else 80,
        "netns": netns,
        "zone": zone,
        "family": 4,
        "protocol": protocol,
        "kind": kind,
    }


def entry(what, kernel_id, **more):
    said = subject(0, **more)
    return ENTRY.pack(
        what, said["family"], said["protocol"], said["kind"], said["zone"], said["netns"],
        kernel_id, said["original_source"], said["original_destination"],
        said["translated_source"], said["translated_destination"], said["original_source_port"],
        said["original_destination_port"], said["translated_source_port"],
        said["translated_destination_port"],
    )  # fmt: skip


def kinds(records):
    return [record.record.removeprefix("nat_") for record in records]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def listening() -> World:
    return World(CTNETLINK)


def test_a_whole_life(world):
    (began,) = world.start(1, 5, kind=BOTH, zone=3)
    (ended,) = world.end(2, 5, kind=BOTH, zone=3, duration=9)

    assert (began.record, ended.record) == ("nat_translated", "nat_ended")
    for record in (began, ended):
        assert (record.conntrack_id, record.netns, record.zone) == (5, 7, 3)
        assert (record.family, record.transport, record.kind) == ("ipv4", "tcp", "both")
        assert (record.source_address, record.source_port) == (CLIENT, 1000)
        assert (record.destination_address, record.destination_port) == (VIRTUAL, 80)
        assert (record.translated_source_address, record.translated_source_port) == (OUTSIDE, 1001)
        translated = record.translated_destination_address, record.translated_destination_port
        assert translated == (SERVER, 8080)
    assert not began.existing
    assert ended.duration == 9


@pytest.mark.parametrize(
    ("protocol", "name", "ports"),
    [
        (TCP, "tcp", True),
        (UDP, "udp", True),
        (132, "sctp", True),
        (ICMP, "icmp", False),
        (ICMPV6, "icmpv6", False),
        (GRE, "gre", False),
        (99, "99", False),
    ],
)
def test_protocols_with_ports_and_without(world, protocol, name, ports):
    (began,) = world.start(1, 5, protocol=protocol)

    assert began.transport == name
    numbers = (
        began.source_port, began.destination_port,
        began.translated_source_port, began.translated_destination_port,
    )  # fmt: skip
    assert numbers == ((1000, 80, 1000, 8080) if ports else (None,) * 4)


def test_what_was_found_has_no_duration(world):
    (found,) = world.find(1, 5)
    (ended,) = world.end(2, 5)

    assert found.existing
    assert ended.duration is None


def test_whatever_comes_first_starts_it_and_twice_is_once(world):
    assert kinds(world.end(1, 5, duration=9)) == ["translated", "ended"]
    assert world.start(2, 5) == world.find(3, 5) == world.end(4, 5) == []
    assert kinds(world.start(5, 6)) == ["translated"]
    assert world.find(6, 6) == []
    assert kinds(world.end(7, 6, missed=1)) == ["ended"]
    assert world.end(8, 7, missed=1) == []


def test_an_end_that_was_lost_is_found_out_after_a_while(world):
    world.start(1, 5)
    world.start(2, 6, port=2000)
    world.seen[b"there"] = struct.pack("<QQQ", 6, 0, 0)

    assert list(world.handler.steady(resync=True)) == []
    assert world.tick(10 * SECOND) == []
    (ended,) = world.tick(10 * SECOND + CONFIRM_NS)
    assert (ended.conntrack_id, ended.duration) == (5, None)
    assert world.tick(20 * SECOND) == []


def test_programs_that_tell_of_starts_ask_for_programs_that_tell_of_ends():
    for hook in ("start", "existing"):
        live = {**CTNETLINK, hook: PROGRAMS[hook]}
        with pytest.raises(KprobeModulesError, match=f"same of {hook}"):
            World(live).handler.attached()
    World(CTNETLINK).handler.attached()
    World(PROGRAMS).handler.attached()
    World({}).handler.attached()


# -- ctnetlink -----------------------------------------------------------------


def test_ctnetlink_tells_a_whole_life(listening):
    (began,) = listening.hear(entry(NEW, 50, kind=SOURCE))
    listening.now += 5
    assert listening.hear(entry(NEW, 50, kind=SOURCE), entry(OVER, 51, kind=SOURCE)) == []
    (ended,) = listening.hear(entry(OVER, 50, kind=SOURCE))

    assert (began.kind, began.existing) == ("source", False)
    assert (ended.conntrack_id, ended.duration) == (began.conntrack_id, 5)
    assert listening.hear(entry(OVER, 50, kind=SOURCE)) == []


def test_ids_are_not_used_twice(listening):
    records = listening.hear(*(entry(NEW, port, port=port) for port in range(1, 100)))

    assert len({record.conntrack_id for record in records}) == 99


def test_another_one_with_the_same_ends_ends_the_former(listening):
    first = listening.hear(entry(NEW, 50))
    second = listening.hear(entry(NEW, 51))

    assert kinds(first) == ["translated"]
    assert kinds(second) == ["ended", "translated"]
    assert second[0].conntrack_id == first[0].conntrack_id != second[1].conntrack_id


def test_what_has_no_events_is_looked_for(listening):
    listening.hear(entry(NEW, 50))
    (found,) = listening.scan(entry(FOUND, 50), entry(FOUND, 60, port=2000))
    assert found.existing
    times = [10 * SECOND + number * LOOK_NS for number in range(4)]
    assert listening.tick(times[0]) == []
    listening.there = []
    assert listening.tick(times[1]) == []
    assert listening.tick(times[1] + 1) == []
    (ended,) = listening.tick(times[2])
    assert (ended.conntrack_id, ended.duration) == (found.conntrack_id, None)
    looks = listening.looks["dump"]
    assert listening.tick(times[3]) == []
    assert listening.looks["dump"] == looks, "nobody is left who has to be looked for"


def test_after_lost_messages_everything_is_looked_for(listening, caplog):
    began = listening.hear(entry(NEW, 50), entry(NEW, 60, port=2000))
    with caplog.at_level(logging.WARNING):
        listening.hear(entry(LOST, 0))
    assert "lost messages of network namespace 7" in caplog.text
    listening.there = [entry(FOUND, 60, port=2000), entry(FOUND, 70, port=3000)]
    (found,) = listening.tick(10 * SECOND)
    (ended,) = listening.tick(10 * SECOND + LOOK_NS)

    assert (found.source_port, found.existing) == (3000, True)
    assert ended.conntrack_id == began[0].conntrack_id


def test_where_there_are_no_events_everything_is_looked_for(listening):
    began = listening.hear(entry(NEW, 50))
    listening.silent = (7,)
    listening.there = [entry(FOUND, 60, port=2000)]
    (found,) = listening.tick(10 * SECOND)
    (ended,) = listening.tick(10 * SECOND + LOOK_NS)

    assert found.source_port == 2000
    assert ended.conntrack_id == began[0].conntrack_id
    listening.silent = ()
    listening.there = []
    listening.tick(10 * SECOND + 2 * LOOK_NS)
    (ended,) = listening.tick(10 * SECOND + 3 * LOOK_NS)
    assert ended.conntrack_id == found.conntrack_id


def test_namespaces_come_and_go(listening):
    listening.there = [entry(FOUND, 50, netns=8)]
    listening.spaces = ((8, 9), ())
    (found,) = listening.tick(10 * SECOND)
    listening.spaces = ((), (8,))
    (ended,) = listening.tick(20 * SECOND)

    assert (found.netns, found.existing) == (8, True)
    assert ended.conntrack_id == found.conntrack_id


def test_programs_and_a_dump_tell_of_the_same_once():
    """
    Where no program can be made to look at what exists.
    """
    mixed = World({**PROGRAMS, "existing": "ctnetlink"})
    (early,) = mixed.start(1, 5)
    (found,) = mixed.scan(entry(FOUND, 50), entry(FOUND, 60, port=2000))
    assert (early.existing, found.existing) == (False, True)
    assert mixed.start(2, 6, port=2000) == [], "its message was under way"
    (ended,) = mixed.end(3, 6, port=2000)
    assert ended.conntrack_id == found.conntrack_id
    assert kinds(mixed.end(4, 5, duration=3)) == ["ended"]


# -- sockets -------------------------------------------------------------------


def offer(world, *sockets, name="socket_table"):
    table = world.offers.setdefault(name, OpenSockets())
    for each in sockets:
        table.add(each)
    return table


def remapped(records):
    return [
        (
            each.socket_id, each.local_address, each.local_port,
            each.remote_address, each.remote_port,
            each.translated_local_address, each.translated_local_port,
            each.translated_remote_address, each.translated_remote_port,
        )
        for each in records if each.record == "nat_remapped"
    ]  # fmt: skip


INITIATOR = (1, CLIENT, 1000, VIRTUAL, 80, OUTSIDE, 1001, SERVER, 8080)
RESPONDER = (2, SERVER, 8080, OUTSIDE, 1001, VIRTUAL, 80, CLIENT, 1000)


def both_sides():
    return One(1, CLIENT, 1000, VIRTUAL, 80), One(2, SERVER, 8080, OUTSIDE, 1001)


@given(st.permutations(range(4)), st.booleans())
def test_sockets_and_connection_in_any_order(order, is_udp):
    """
    Each side once, whoever comes first; also where a module comes late.
    """
    name, protocol = ("udp_socket_table", UDP) if is_udp else ("socket_table", TCP)
    world = World()
    one, other = both_sides()
    records = []
    steps = (
        lambda: offer(world, one, name=name),
        lambda: offer(world, other, name=name),
        lambda: records.extend(world.start(1, 5, kind=BOTH, protocol=protocol)),
        lambda: records.extend(world.tick(2)),
    )
    for step in order:
        steps[step]()
    records += world.tick(3)

    assert sorted(remapped(records)) == [INITIATOR, RESPONDER]
    assert world.tick(4) == []


def test_a_socket_that_is_closed_is_still_found_for_a_while(world):
    one, _ = both_sides()
    table = offer(world, one)
    world.tick(1)
    table.end(one)
    world.tick(SECOND)
    assert remapped(world.start(2 * SECOND, 5, kind=BOTH)) == [INITIATOR]
    world.end(2 * SECOND, 5, kind=BOTH)
    world.tick(SECOND + KEEP_NS)
    assert remapped(world.start(5 * SECOND, 6, kind=BOTH)) == []


def test_a_socket_elsewhere_counts_if_it_is_the_only_one(world):
    offer(world, One(1, CLIENT, 1000, VIRTUAL, 80, netns=8))
    assert len(remapped(world.start(1, 5))) == 1
    offer(world, One(2, CLIENT, 1000, VIRTUAL, 80, netns=9))
    assert remapped(world.tick(2)) == []
    world.end(3, 5)
    assert remapped(world.start(4, 6)) == [], "nobody knows which of the two"
    offer(world, One(3, CLIENT, 1000, VIRTUAL, 80, netns=7))
    assert [each[0] for each in remapped(world.tick(5))] == [3]


def test_a_bound_socket_of_udp_counts_where_the_address_is_its_own(world):
    offer(world, One(1, ANYWHERE, 1000), One(2, "::", 8080), name="udp_socket_table")
    assert [each[0] for each in remapped(world.start(1, 5, protocol=UDP))] == [1, 2]
    world.end(2, 5, protocol=UDP)
    # What is only passed on has nothing to do with who is bound to its ports here.
    world.addresses = []
    assert remapped(world.start(1 + LASTING_NS, 6, protocol=UDP)) == []
    again = LASTING_NS + REFRESH_NS
    assert remapped(world.start(again, 7, protocol=UDP, client="192.0.2.77")) == []
    assert world.looks["addresses"] == 2


def test_listeners_and_protocols_without_sockets_have_no_part(world):
    offer(world, One(1, CLIENT, 1000), One(2, ANYWHERE, 8080))
    assert kinds(world.start(1, 5)) == ["translated"]
    assert kinds(world.start(2, 6, protocol=ICMP)) == ["translated"]


def test_sockets_of_a_module_that_has_left_are_forgotten(world):
    table = offer(world, *both_sides())
    world.tick(1)
    del world.offers["socket_table"]
    assert kinds(world.start(2, 5, kind=BOTH)) == ["translated"]
    world.offers["socket_table"] = table
    assert sorted(remapped(world.tick(3))) == [INITIATOR, RESPONDER]
    world.handler.detached()
    table.add(One(3, CLIENT, 1, VIRTUAL, 2))
    assert not table._followers


# -- whatever comes ------------------------------------------------------------

STEPS = st.lists(
    st.tuples(st.sampled_from(["start", "find", "end", "miss"]), st.integers(1, 4)), max_size=40
)


@given(STEPS)
def test_records_of_each_connection_make_a_whole(steps):
    """
    Whatever is lost, repeated or out of order: first a start, then at most one end.
    """
    world = World()
    records = []
    for time, (step, number) in enumerate(steps, 1):
        if step == "miss":
            records += world.end(time, number, missed=1)
        else:
            records += getattr(world, step)(time, number, port=1000 + number)

    for number in range(1, 5):
        told = kinds(record for record in records if record.conntrack_id == number)
        heard = [step for step, of in steps if of == number and step != "miss"]
        assert told in ([], ["translated"], ["translated", "ended"])
        assert bool(told) is bool(heard)
        assert ("ended" in told) or "end" not in heard


# -- the wire ------------------------------------------------------------------


def test_addresses_are_in_network_order(world):
    (began,) = world.start(1, 5)

    assert socket.inet_aton(began.source_address) == raw(CLIENT)[:4]
