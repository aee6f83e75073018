# SPDX-License-Identifier: Apache-2.0
"""
The udp handler against any order of messages, with maps and programs that answer as told.
"""

from __future__ import annotations

import itertools
import socket
import struct
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kprobe_modules.modules.udp.handler import ORIGINS, UdpHandler
from kprobe_modules.modules.udp.table import SocketTable

from kprobe_modules.api import Context
from kprobe_modules.suspects import CONFIRM_NS

SECOND = 1_000_000_000
V4 = socket.inet_pton(socket.AF_INET, "192.0.2.1").ljust(16, b"\0")
V4_PEER = socket.inet_pton(socket.AF_INET, "192.0.2.2").ljust(16, b"\0")
V6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1")
V6_PEER = socket.inet_pton(socket.AF_INET6, "2001:db8::2")
BOUND, USED, FOUND = range(3)
AT_ONCE, FULL = 32, 33


class Map:
    """
    A map in memory.
    """

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}

    def lookup(self, key):
        return self.entries.get(key)

    def update(self, key, value):
        self.entries[key] = value

    def keys(self):
        return iter(list(self.entries))

    def values(self, size=None):
        return [value[:size] for value in self.entries.values()]


class World:
    """
    A handler, with what it sees and does.
    """

    def __init__(self, *, bind: str = "bind4_fexit", **tunables: int) -> None:
        self.maps = {name: Map() for name in ("udp_open_sockets", "flow_generation")}
        self.reported: list[int] = []
        self.can_wait = True
        self.runs = 0
        offers: dict[str, object] = {}

        def refuse(*_: object) -> object:
            raise AssertionError

        self.handler = UdpHandler(
            Context(
                name="udp",
                tunables={"traffic_interval_ms": 10_000, **tunables},
                proc_root=Path("/nowhere"),
                provide=offers.__setitem__,
                find=offers.get,
                data=refuse,
                live={"bind": bind},
                map=self.maps.__getitem__,
                program_fd=refuse,
                observe=self.observe,
            )
        )
        table = offers["udp_socket_table"]
        assert isinstance(table, SocketTable)
        self.table = table

    def observe(self, what: str, _look: object) -> bytes:
        if what == "wait_for_programs":
            return b"\1" if self.can_wait else b""
        assert what == "report_traffic"
        self.runs += 1
        return struct.pack("<I", self.reported.pop(0) if self.reported else 0)

    @property
    def generation(self) -> int:
        value = self.maps["flow_generation"].lookup(bytes(4))
        return struct.unpack("<I", value)[0] if value else 0

    def open(self, time, number, origin=BOUND, **more):
        said = subject(number, origin=origin, connected=False, **more)
        return list(self.handler.on_udp_new_socket(time, **said))

    def stats(self, time, number, *, sent=(0, 0), received=(0, 0), drops=0, **more):
        said = subject(number, **more)
        return list(self.handler.on_udp_stats(time, **said, **counted(sent, received), drops=drops))

    def close(
        self, time, number, *, sent=(0, 0), received=(0, 0), drops=0, flows=0, missed=0, **more
    ):
        said = subject(number, connected=False, **more)
        return list(
            self.handler.on_udp_destroy_socket(
                time,
                **{**said, **counted(sent, received)},
                duration=5,
                drops=drops,
                flows=flows,
                missed=missed,
            )
        )

    def tick(self, now):
        return list(self.handler.tick(now))


def subject(number, *, origin=BOUND, family=4, pid=10, netns=7, connected=True, port=80):
    local, peer = (V4, V4_PEER) if family == 4 else (V6, V6_PEER)
    return {
        "socket_id": number,
        "start_time": 100 if pid else 0,
        "cgroup_id": 77 if pid else 0,
        "pid": pid,
        "netns": netns,
        "local_address": local,
        "remote_address": peer if connected else bytes(16),
        "local_port": 1000,
        "remote_port": port if connected else 0,
        "family": family,
        "origin": origin,
    }


def counted(sent, received):
    return {
        "datagrams_sent": sent[0],
        "bytes_sent": sent[1],
        "datagrams_received": received[0],
        "bytes_received": received[1],
    }


@pytest.fixture
def world() -> World:
    return World()


def kinds(records):
    return [record.record.removeprefix("udp_") for record in records]


def test_a_whole_life(world):
    records = [
        *world.open(1, 5),
        *world.stats(2, 5, sent=(3, 300), received=(2, 20)),
        *world.close(3, 5, sent=(3, 300), received=(2, 20), drops=4),
    ]

    assert kinds(records) == ["opened", "traffic", "traffic", "dropped", "closed"]
    opened, sent, received, dropped, closed = records
    for record in records:
        assert (record.socket_id, record.pid, record.start_time, record.cgroup_id) == (
            5, 10, 100, 77,
        )  # fmt: skip
        assert (record.family, record.netns) == ("ipv4", 7)
        assert (record.local_address, record.local_port) == ("192.0.2.1", 1000)
    for record in (opened, dropped, closed):
        assert record.remote_address is record.remote_port is None
    for record, expected in ((sent, ("sent", 3, 300)), (received, ("received", 2, 20))):
        assert (record.remote_address, record.remote_port) == ("192.0.2.2", 80)
        assert (record.direction, record.datagrams, record.bytes) == expected
    assert not opened.existing
    assert dropped.drops == 4
    assert (closed.duration, closed.drops) == (5, 4)
    assert (closed.datagrams_sent, closed.bytes_sent) == (3, 300)
    assert (closed.datagrams_received, closed.bytes_received) == (2, 20)
    assert len(world.table) == 0


def test_ipv6_and_datagrams_without_payload(world):
    (opened,) = world.open(1, 5, family=6)
    (sent,) = world.stats(2, 5, sent=(1, 0), family=6)

    assert (opened.family, opened.local_address) == ("ipv6", "2001:db8::1")
    assert (sent.remote_address, sent.datagrams, sent.bytes) == ("2001:db8::2", 1, 0)


def test_a_second_start_or_end_of_the_same_socket_is_dropped(world):
    assert kinds(world.open(1, 5)) == ["opened"]
    assert world.open(2, 5, FOUND) == []
    assert kinds(world.close(3, 5)) == ["closed"]
    assert world.open(4, 5, FOUND) == []
    assert world.close(5, 5) == []


def test_whatever_comes_first_starts_the_socket(world):
    for records in (world.stats(1, 1, sent=(1, 1)), world.close(1, 2)):
        assert kinds(records)[0] == "opened"
        assert records[0].existing
    assert world.close(2, 1)[-1].duration is None


@pytest.mark.parametrize(
    ("bind", "origin", "before", "after"),
    [
        ("bind4_fexit", BOUND, False, False),
        ("bind4_fexit", USED, True, True),
        ("used_send_btf", USED, True, False),
        ("used_send_btf", FOUND, True, True),
        ("used_send_btf", len(ORIGINS), False, False),
    ],
)
def test_what_is_met_in_use_was_there_before_unless_nothing_sees_sockets_opening(
    bind, origin, before, after
):
    world = World(bind=bind)
    assert ORIGINS[USED] == "used"

    (early,) = world.open(1, 1, origin)
    list(world.handler.steady(resync=False))
    (late,) = world.open(2, 2, origin)

    assert (early.existing, late.existing) == (before, after)


def test_an_end_that_the_kernel_side_has_missed_has_its_counts_and_no_duration(world):
    world.open(1, 5)
    world.stats(2, 5, drops=3)

    (closed,) = world.close(3, 5, sent=(2, 20), missed=1)

    assert (closed.datagrams_sent, closed.bytes_sent, closed.drops) == (2, 20, 3)
    assert closed.duration is None
    assert closed.local_address == "192.0.2.1"
    assert world.close(4, 6, missed=1) == []


def test_drops_are_told_once(world):
    world.open(1, 5)

    told = [
        *world.stats(2, 5, drops=3),
        *world.stats(3, 5, drops=3, sent=(1, 1)),
        *world.stats(4, 5, drops=0, sent=(1, 1)),
        *world.stats(5, 5, drops=10),
        *world.close(6, 5, drops=11),
    ]

    assert [record.drops for record in told if record.record == "udp_dropped"] == [3, 7, 1]


def test_traffic_that_comes_behind_the_end_of_its_socket_bears_its_owner(world):
    world.open(1, 5)
    world.close(2, 5)

    (late,) = world.stats(3, 5, received=(1, 9), pid=0, netns=0)

    assert (late.pid, late.netns, late.datagrams) == (10, 7, 1)


def test_the_end_waits_for_the_traffic_that_is_still_to_come(world):
    world.open(1, 5)

    assert world.close(2, 5, sent=(3, 30), flows=2) == []
    assert kinds(world.stats(3, 5, sent=(1, 10))) == ["traffic"]
    assert world.open(4, 5, FOUND) == []
    assert kinds(world.stats(5, 5, sent=(2, 20), port=81)) == ["traffic", "closed"]


def test_the_end_waits_no_longer_than_until_both_generations_were_reported(world):
    world.open(1, 5)
    world.tick(1)
    world.close(2, 5, flows=1)

    assert world.tick(SECOND) == []
    assert world.tick(2 * SECOND) == []
    (closed,) = world.tick(2 * SECOND + 1)

    assert closed.record == "udp_closed"
    assert world.stats(3 * SECOND, 5, sent=(1, 1))[0].record == "udp_traffic"


def test_generations_change_a_few_times_a_second_while_ends_wait(world):
    seen = []
    for number, now in enumerate(range(1, SECOND, SECOND // 20)):
        world.open(now, number)
        world.close(now, number, flows=3)
        world.tick(now)
        seen.append(world.generation)

    assert 3 <= sum(a != b for a, b in itertools.pairwise(seen)) <= 5


def test_traffic_of_a_socket_that_the_kernel_side_has_ended_brings_its_end(world):
    world.open(1, 5)

    known = world.stats(2, 5, sent=(1, 9), pid=0, netns=0)
    unheard = world.stats(3, 6, sent=(1, 9), pid=0, netns=0)
    more = world.stats(4, 6, sent=(1, 9), pid=0, netns=0, port=81)
    ends = [record for now in range(1, 5) for record in world.tick(now * SECOND)]

    assert kinds(known) == ["traffic"]
    assert kinds(unheard) == ["opened", "traffic"]
    assert kinds(more) == ["traffic"]
    assert sorted((each.record, each.socket_id) for each in ends) == [
        ("udp_closed", 5),
        ("udp_closed", 6),
    ]
    assert list(world.table) == []


def test_the_end_of_one_whose_traffic_came_first_has_its_counts(world):
    world.open(1, 5)
    world.stats(2, 5, sent=(1, 9), pid=0, netns=0)

    (closed,) = world.close(3, 5, sent=(1, 9))

    assert (closed.datagrams_sent, closed.duration) == (1, 5)
    assert [world.tick(now * SECOND) for now in range(1, 5)] == [[]] * 4


def test_very_many_ends_do_not_come_all_at_once(world):
    for number in range(5000):
        world.open(1, number)
        world.close(2, number, flows=1)

    ends = [len(world.tick(now * SECOND)) for now in range(1, 6)]

    assert max(ends) < sum(ends) == 5000


def test_generations_change_once_per_interval(world):
    seen = []
    for now in (1, 2, 10 * SECOND, 10 * SECOND + 1, 20 * SECOND + 1):
        world.tick(now)
        seen.append(world.generation)

    assert seen == [1, 1, 1, 0, 1]
    assert world.runs == 3


def test_a_generation_is_counted_in_again_only_when_it_is_empty(world):
    world.reported = [AT_ONCE] * 40 + [7]

    world.tick(1)
    assert (world.generation, world.runs) == (1, 32)
    world.tick(11 * SECOND)
    assert (world.generation, world.runs) == (1, 41)
    world.tick(11 * SECOND + 1)
    assert (world.generation, world.runs) == (0, 42)


def test_a_full_ring_is_left_alone_until_the_next_tick(world):
    world.reported = [AT_ONCE, FULL, 3]

    world.tick(1)
    assert world.runs == 2
    world.tick(2)
    assert world.runs == 3


def test_where_nobody_can_wait_for_programs_a_tick_passes(world):
    world.can_wait = False

    world.tick(1)
    assert (world.generation, world.runs) == (1, 0)
    world.tick(2)
    assert (world.generation, world.runs) == (1, 1)


def test_without_an_interval_nothing_is_reported():
    world = World(traffic_interval_ms=0)
    world.open(1, 5)

    list(world.handler.steady(resync=True))
    ends = [record for now in range(1, 5) for record in world.tick(now * SECOND)]

    assert (world.generation, world.runs) == (0, 0)
    assert kinds(ends) == ["closed"]


def test_sockets_that_a_resync_does_not_find_end_after_a_while(world):
    world.open(1, 5)
    world.open(1, 6)
    world.maps["udp_open_sockets"].entries[b"address"] = struct.pack("<Q", 6) + bytes(120)

    list(world.handler.steady(resync=True))
    assert world.tick(SECOND) == []
    assert world.tick(SECOND + CONFIRM_NS) == []
    assert kinds(world.stats(4 * SECOND, 5, sent=(1, 9), pid=0, netns=0)) == ["traffic"]
    (closed,) = (record for now in range(4, 7) for record in world.tick(now * SECOND))

    assert closed.socket_id == 5
    assert closed.duration is closed.bytes_sent is closed.drops is None
    assert [each.socket_id for each in world.table] == [6]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "stats", "close", "tick"]),
            st.integers(1, 3),
            st.integers(0, 2),
        ),
        max_size=30,
    )
)
def test_any_order_of_messages_makes_whole_lives(steps):
    world = World()
    records = []
    told = Counter()
    for now, (what, number, count) in enumerate(steps, 1):
        if what == "open":
            records += world.open(now, number)
        elif what == "stats":
            told[number] += count
            records += world.stats(now, number, sent=(count, count))
        elif what == "close":
            records += world.close(now, number, flows=count)
        else:
            records += world.tick(now * 20 * SECOND)

    for number in range(1, 4):
        ours = [record for record in records if record.socket_id == number]
        names = kinds(ours)
        assert names.count("opened") <= 1
        assert names.count("closed") <= 1
        assert not ours or names[0] == "opened"
        sent = [record.datagrams for record in ours if record.record == "udp_traffic"]
        assert sum(sent) == told[number]
