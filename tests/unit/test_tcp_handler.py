# SPDX-License-Identifier: Apache-2.0
"""
The tcp handler against any order of messages, with maps and programs that answer as told.
"""

from __future__ import annotations

import errno
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kprobe_modules.modules.tcp.handler import STATES, TcpHandler
from kprobe_modules.modules.tcp.table import Socket, SocketTable

from kprobe_modules import namespaces
from kprobe_modules.api import Context, network_namespaces
from kprobe_modules.opensockets import OPEN_COUNT
from kprobe_modules.socketscan import SocketScan
from kprobe_modules.suspects import CONFIRM_NS

SECOND = 1_000_000_000
FILES = ("tcp", "tcp6")
V4 = socket.inet_pton(socket.AF_INET, "192.0.2.1").ljust(16, b"\0")
V4_PEER = socket.inet_pton(socket.AF_INET, "192.0.2.2").ljust(16, b"\0")
V6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1")
V6_PEER = socket.inet_pton(socket.AF_INET6, "2001:db8::2")
CONNECT, ACCEPT, LISTEN = 1, 2, 3
ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, CLOSE, LISTENING = (
    STATES.index(name)
    for name in ("ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "CLOSE", "LISTEN")
)


class Map:
    """
    A map in memory, of so many entries.
    """

    def __init__(self, room: int = 1000) -> None:
        self.entries: dict[bytes, bytes] = {}
        self.room = room

    def lookup(self, key):
        return self.entries.get(key)

    def update(self, key, value):
        if key not in self.entries and len(self.entries) == self.room:
            raise OSError(errno.E2BIG, "full")
        self.entries[key] = value

    def delete(self, key):
        return self.entries.pop(key, None) is not None

    def keys(self):
        return iter(list(self.entries))

    def values(self, size=None):
        return [value[:size] for value in self.entries.values()]


class World:
    """
    A handler, with what it sees and does.
    """

    def __init__(self, root: Path, *, accept: str = "accept_fentry", **tunables: int) -> None:
        self.maps = {name: Map() for name in ("tcp_open_sockets", "seen_inodes", "scan_epoch")}
        self.reported: list[int] = []
        offers: dict[str, object] = {}

        def refuse(*_: object) -> object:
            raise AssertionError

        def observe(what: str, _look: object) -> bytes:
            assert what == "report_active"
            return (self.reported.pop(0) if self.reported else 0).to_bytes(4, "little")

        self.handler = TcpHandler(
            Context(
                name="tcp",
                tunables={"state_changes": 1, "metrics_interval_ms": 10_000, **tunables},
                proc_root=root,
                provide=offers.__setitem__,
                find=offers.get,
                data=refuse,
                live={"accept": accept},
                map=self.maps.__getitem__,
                program_fd=refuse,
                observe=observe,
            )
        )
        table = offers["socket_table"]
        assert isinstance(table, SocketTable)
        self.table = table

    def open(self, time, number, role=CONNECT, *, state=SYN_SENT, port=1000, **more):
        said = {
            **subject(number, role, state, port=port, **more.pop("said", {})),
            "existing": 0,
            "listener_id": 0,
            "handshake_us": 0,
            **more,
        }
        return list(self.handler.on_new_sock_created(time, **said))

    def change(self, time, number, old, new, role=CONNECT, *, port=1000, handshake=0):
        said = subject(number, role, new, port=port)
        del said["family"]
        said["local_address"] = int.from_bytes(V4[:4], "big")
        said["remote_address"] = int.from_bytes(V4_PEER[:4], "big")
        return list(
            self.handler.on_set_state_ipv4(time, **said, old_state=old, handshake=handshake)
        )

    def close(self, time, number, role=CONNECT, *, state=FIN_WAIT1, port=1000, **more):
        said = {
            **subject(number, role, state, port=port),
            **counted(),
            "existing": 0,
            "duration": 5,
            "error": 0,
            "closed_first": 1,
            "missed": 0,
            **more,
        }
        return list(self.handler.on_close_sock_info(time, **said))

    def reset(self, time, number, role=CONNECT, *, state=ESTABLISHED, direction=0, reason=0):
        return list(
            self.handler.on_tcp_reset(
                time, **subject(number, role, state), direction=direction, reason=reason
            )
        )


def subject(number, role, state, *, port=1000, family=4, pid=10, netns=7):
    return {
        "socket_id": number,
        "start_time": 100 if pid else 0,
        "cgroup_id": 77 if pid else 0,
        "pid": pid,
        "netns": netns,
        "local_address": V4 if family == 4 else V6,
        "remote_address": V4_PEER if family == 4 else V6_PEER,
        "local_port": port,
        "remote_port": 80,
        "family": family,
        "role": role,
        "state": state,
    }


def counted(**more):
    return {
        "bytes_sent": 11,
        "bytes_acked": 7,
        "bytes_received": 13,
        "segments_sent": 3,
        "segments_received": 4,
        "retransmits": 1,
        "out_of_order": 2,
        "srtt_us": 250,
        "rttvar_us": 125,
        "cwnd": 10,
        "congestion_state": 4,
        "unacked": 2,
        "receive_queue": 5,
        "accept_queue": 6,
        "accept_queue_limit": 128,
        **more,
    }


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def kinds(records):
    return [record.record.removeprefix("tcp_") for record in records]


def test_a_whole_life(world):
    records = [
        *world.open(1, 5),
        *world.change(2, 5, SYN_SENT, ESTABLISHED, handshake=99),
        *world.handler.on_rtt_estimator(3, **subject(5, CONNECT, ESTABLISHED), **counted()),
        *world.change(4, 5, ESTABLISHED, FIN_WAIT1),
        *world.close(5, 5),
    ]

    assert kinds(records) == [
        "opened", "state_changed", "established", "metrics", "state_changed", "state_changed",
        "closed",
    ]  # fmt: skip
    opened, changed, established, metrics, _, last, closed = records
    for record in records:
        assert (record.socket_id, record.pid, record.start_time, record.cgroup_id) == (
            5, 10, 100, 77,
        )  # fmt: skip
        assert (record.family, record.role, record.netns) == ("ipv4", "connect", 7)
        assert (record.local_address, record.local_port) == ("192.0.2.1", 1000)
        assert (record.remote_address, record.remote_port) == ("192.0.2.2", 80)
    assert (opened.state, opened.existing, opened.listener_id) == ("SYN_SENT", False, None)
    assert (changed.old_state, changed.new_state) == ("SYN_SENT", "ESTABLISHED")
    assert established.handshake == 99
    assert (metrics.bytes_sent, metrics.bytes_acked, metrics.bytes_received) == (11, 7, 13)
    assert (metrics.segments_sent, metrics.segments_received) == (3, 4)
    assert (metrics.retransmits, metrics.out_of_order) == (1, 2)
    assert (metrics.srtt_us, metrics.rttvar_us, metrics.cwnd) == (250, 125, 10)
    assert (metrics.congestion_state, metrics.unacked, metrics.receive_queue) == ("loss", 2, 5)
    assert metrics.accept_queue is metrics.accept_queue_limit is None
    assert metrics.state == "ESTABLISHED"
    assert (last.old_state, last.new_state) == ("FIN_WAIT1", "CLOSE")
    assert (closed.state, closed.duration, closed.closed_first) == ("FIN_WAIT1", 5, "local")
    assert closed.error is None
    assert len(world.table) == 0


def test_an_accepted_socket_is_established_when_it_is_opened(world):
    opened, established = world.open(
        1, 6, ACCEPT, state=ESTABLISHED, listener_id=5, handshake_us=40
    )
    (half,) = world.open(2, 7, ACCEPT, state=SYN_RECV, listener_id=5)

    assert opened.listener_id == 5
    assert established.handshake == 40_000
    assert half.state == "SYN_RECV"


def test_a_listener_has_no_other_side_and_its_own_counters(world):
    (opened,) = world.open(1, 5, LISTEN, state=LISTENING)
    _, closed = world.close(2, 5, LISTEN, state=LISTENING)

    assert opened.remote_address is opened.remote_port is None
    assert closed.bytes_sent is closed.cwnd is closed.receive_queue is None
    assert (closed.accept_queue, closed.accept_queue_limit) == (6, 128)


def test_ipv6(world):
    (opened,) = world.open(1, 5, said={"family": 6})
    said = subject(5, CONNECT, ESTABLISHED, family=6)
    del said["family"]
    changed, established = world.handler.on_set_state_ipv6(
        2, **said, old_state=SYN_SENT, handshake=0
    )

    for record in (opened, changed, established):
        assert record.family == "ipv6"
        assert (record.local_address, record.remote_address) == ("2001:db8::1", "2001:db8::2")
    assert established.handshake is None


def test_a_second_start_of_the_same_socket_is_dropped(world):
    assert kinds(world.open(1, 5)) == ["opened"]
    assert world.open(2, 5, existing=1) == []
    assert kinds(world.close(3, 5)) == ["state_changed", "closed"]
    assert world.open(4, 5, existing=1) == []
    assert world.close(5, 5) == []
    assert world.change(6, 5, SYN_SENT, ESTABLISHED) == []


def test_whatever_comes_first_starts_the_socket(world):
    firsts = [
        world.change(1, 1, SYN_SENT, ESTABLISHED),
        list(world.handler.on_rtt_estimator(1, **subject(2, CONNECT, 1), **counted())),
        list(world.handler.on_tcp_syn_timeout(1, **subject(3, CONNECT, 2), retransmits=2)),
        world.reset(1, 4),
        world.close(1, 5),
    ]

    for records in firsts:
        assert kinds(records)[0] == "opened"
        assert records[0].existing
        assert len(records) >= 2


def test_what_was_found_has_no_duration(world):
    world.open(1, 5, existing=1, state=ESTABLISHED)

    *_, closed = world.close(2, 5, existing=1, error=errno.ECONNRESET, closed_first=0)

    assert (closed.duration, closed.error, closed.closed_first) == (None, "ECONNRESET", None)


def test_an_end_that_the_kernel_side_has_missed_has_no_counters(world):
    world.open(1, 5)

    (closed,) = world.close(2, 5, missed=1)

    assert closed.bytes_sent is closed.duration is closed.closed_first is None
    assert (closed.local_address, closed.state) == ("192.0.2.1", "SYN_SENT")
    assert world.close(3, 6, missed=1) == []


def test_without_a_measurement_there_is_no_round_trip_time(world):
    world.open(1, 5)

    *_, closed = world.close(2, 5, **counted(srtt_us=0, rttvar_us=250))

    assert closed.srtt_us is closed.rttvar_us is None


def test_resets(world):
    world.open(1, 5)
    world.open(1, 6, LISTEN, state=LISTENING)
    (received,) = world.reset(2, 5, direction=1)
    world.close(3, 5)
    (sent,) = world.reset(4, 5, state=ESTABLISHED, reason=9)
    (answer,) = world.handler.on_tcp_reset(5, **subject(0, 0, 0, pid=0), direction=0, reason=2)
    (listeners,) = world.reset(6, 6, LISTEN, state=LISTENING)

    assert (received.direction, received.reason, received.pid) == ("received", None, 10)
    assert (sent.direction, sent.reason, sent.state) == (
        "sent", "tcp_abort_on_data", "ESTABLISHED",
    )  # fmt: skip
    assert (sent.socket_id, sent.pid) == (5, 10), "after its end it is known still"
    assert answer.socket_id is answer.pid is answer.role is answer.state is None
    assert (answer.reason, answer.remote_port) == ("no_socket", 80)
    assert (listeners.socket_id, listeners.role, listeners.remote_port) == (6, "listen", 80)


def test_timeouts(world):
    world.open(1, 5)
    (syn,) = world.handler.on_tcp_syn_timeout(2, **subject(5, CONNECT, SYN_SENT), retransmits=3)
    said = subject(6, LISTEN, 12)
    del said["role"]
    synack = world.handler.on_tcp_synack_timeout(3, **said, retransmits=1)
    unknown = world.handler.on_tcp_synack_timeout(
        4, **{**said, "socket_id": 0, "pid": 0}, retransmits=1
    )

    assert (syn.retransmits, syn.role) == (3, "connect")
    assert (synack.socket_id, synack.role, synack.remote_port) == (6, "listen", 80)
    assert synack.retransmits == 1
    assert (unknown.socket_id, unknown.pid, unknown.role) == (None, None, "listen")


def test_changes_of_state_can_be_switched_off(tmp_path):
    world = World(tmp_path, state_changes=0)
    world.open(1, 5)

    assert kinds(world.change(2, 5, SYN_SENT, ESTABLISHED, handshake=9)) == ["established"]
    assert kinds(world.close(3, 5)) == ["closed"]


def test_who_accepts_later_owns_from_then_on(world):
    (opened,) = world.open(1, 5, ACCEPT, state=ESTABLISHED, existing=1, said={"pid": 0})
    _, closed = world.close(2, 5, ACCEPT)

    assert opened.pid is opened.start_time is opened.cgroup_id is None
    assert (closed.pid, closed.start_time, closed.cgroup_id) == (10, 100, 77)


def test_a_port_that_is_chosen_late_is_taken_and_one_that_is_given_back_kept(world):
    world.open(1, 5, LISTEN, state=LISTENING, port=0)
    said = {**subject(5, LISTEN, LISTENING, port=4000), **counted()}
    (metrics,) = world.handler.on_rtt_estimator(2, **said)
    (accepted, _) = world.open(3, 6, ACCEPT, state=ESTABLISHED, port=4000)
    *_, closed = world.close(4, 5, LISTEN, state=LISTENING, port=0)
    (orphan, _) = world.open(5, 7, ACCEPT, state=ESTABLISHED, port=4000)

    assert metrics.local_port == closed.local_port == 4000
    assert accepted.listener_id == 5
    assert orphan.listener_id is None


def test_where_accept_is_not_seen_the_owner_is_the_listeners(tmp_path):
    world = World(tmp_path, accept="accept_btf")
    world.open(1, 5, LISTEN, state=LISTENING, port=4000)

    opened, _ = world.open(2, 6, ACCEPT, state=ESTABLISHED, port=4000, said={"pid": 0})
    other, _ = world.open(3, 7, ACCEPT, state=ESTABLISHED, port=4000, said={"pid": 0, "netns": 8})

    assert (opened.pid, opened.start_time, opened.listener_id) == (10, 100, 5)
    assert (other.pid, other.listener_id) == (None, None)


def test_a_lost_end_is_found_out(world):
    world.open(1, 5)
    world.open(1, 6)
    world.maps["tcp_open_sockets"].update(b"address5", struct.pack("<QQ", 5, 0))

    assert list(world.handler.steady(resync=False)) == []
    assert list(world.handler.steady(resync=True)) == []
    assert list(world.handler.tick(10 * SECOND)) == []
    assert list(world.handler.tick(10 * SECOND + CONFIRM_NS - 1)) == []
    (closed,) = world.handler.tick(10 * SECOND + CONFIRM_NS)

    assert (closed.socket_id, closed.state) == (6, "SYN_SENT")
    assert closed.bytes_sent is closed.duration is closed.closed_first is closed.error is None
    assert world.close(11 * SECOND, 6) == []
    assert kinds(world.close(12 * SECOND, 5)) == ["state_changed", "closed"]


def test_an_end_that_was_on_its_way_is_not_reported_twice(world):
    world.open(1, 5)
    list(world.handler.steady(resync=True))
    list(world.handler.tick(10 * SECOND))
    world.close(11, 5)

    assert list(world.handler.tick(20 * SECOND)) == []


def test_active_sockets_are_reported_once_per_interval(world):
    world.reported = [32, 32, 3, 5]

    list(world.handler.tick(1 * SECOND))
    assert world.reported == [5], "as often as it takes"
    list(world.handler.tick(10 * SECOND))
    assert world.reported == [5]
    list(world.handler.tick(11 * SECOND))
    assert world.reported == []


def test_many_active_sockets_are_reported_over_several_ticks(world):
    world.reported = [32] * 40 + [1]

    list(world.handler.tick(1 * SECOND))
    assert len(world.reported) == 9
    list(world.handler.tick(1 * SECOND + 1))
    assert world.reported == []


def test_metrics_can_be_switched_off(tmp_path):
    world = World(tmp_path, metrics_interval_ms=0)
    world.reported = [1]

    list(world.handler.tick(SECOND))

    assert world.reported == [1]


def test_a_listener_that_had_to_make_room_is_not_found():
    table = SocketTable()
    for number in range(OPEN_COUNT + 1):
        role = "connect" if number else "listen"
        table.add(Socket(number, 1, 1, 1, 7, "ipv4", "", 1, "", 1, role, ""))

    assert table.get(0) is table.listener(7, 1) is None
    assert table.forgotten == 1


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["open", "change", "close"]))))
def test_in_any_order_a_socket_starts_first_and_ends_once(steps):
    world = World(Path("/nonexistent"))
    records = []
    for time, (number, what) in enumerate(steps):
        if what == "open":
            records += world.open(time, number)
        elif what == "change":
            records += world.change(time, number, SYN_SENT, ESTABLISHED)
        else:
            records += world.close(time, number)

    for number in (1, 2, 3):
        mine = kinds(record for record in records if record.socket_id == number)
        assert mine.count("opened") == (mine[:1] == ["opened"])
        assert mine.count("closed") <= 1
        assert "closed" not in mine or mine[-1] == "closed"


class Proc:
    """
    A folder that looks like procfs to who reads it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, pid: int, inodes: tuple[int, ...]) -> None:
        for name in ("fd", "net", "ns"):
            (self.root / str(pid) / name).mkdir(parents=True)
        (self.root / str(pid) / "ns" / "net").write_text("")
        for number, inode in enumerate(inodes):
            (self.root / str(pid) / "fd" / str(number)).symlink_to(f"socket:[{inode}]")
        (self.root / str(pid) / "fd" / "9").symlink_to("/dev/null")
        for name in ("tcp", "tcp6"):
            (self.root / str(pid) / "net" / name).write_text("")


def seen(found: Map) -> dict[int, int]:
    return {
        struct.unpack("<I", key)[0]: struct.unpack("<II", value)[0]
        for key, value in found.entries.items()
    }


class Watching(Map):
    """
    A map that remembers all that ever was in it.
    """

    def __init__(self, room: int = 1000) -> None:
        super().__init__(room)
        self.ever: dict[bytes, bytes] = {}

    def update(self, key, value):
        super().update(key, value)
        self.ever[key] = value


def test_a_scan_tells_who_has_a_socket_and_cleans_up(tmp_path):
    proc = Proc(tmp_path)
    proc.put(10, (101, 102))
    proc.put(11, (102, 103))
    inodes, epoch = Watching(), Map()

    assert SocketScan(tmp_path, inodes, epoch, FILES).run() == 0

    assert {struct.unpack("<I", key)[0] for key in inodes.ever} == {101, 102, 103}
    assert inodes.entries == {}
    assert len(epoch.entries) == 1


def test_a_scan_leaves_what_a_later_one_has_found(tmp_path):
    Proc(tmp_path).put(10, (101, 102))
    inodes, epoch = Map(), Map()
    scan = SocketScan(tmp_path, inodes, epoch, FILES)
    (mine,) = struct.unpack("<I", epoch.entries[bytes(4)])
    inodes.update(struct.pack("<I", 101), struct.pack("<II", 55, (mine + 1) & 0xFFFFFFFF))
    inodes.update(struct.pack("<I", 102), struct.pack("<II", 56, (mine - 1) & 0xFFFFFFFF))

    assert scan.run() == 0

    assert seen(inodes) == {101: 55}


def test_a_scan_counts_what_finds_no_room(tmp_path):
    Proc(tmp_path).put(10, (101, 102, 103))

    assert SocketScan(tmp_path, Map(room=2), Map(), FILES).run() == 1


def test_each_network_namespace_has_one_process(tmp_path):
    proc = Proc(tmp_path)
    proc.put(10, ())
    proc.put(11, ())
    proc.put(12, ())
    same = tmp_path / "11" / "ns" / "net"
    same.unlink()
    same.hardlink_to(tmp_path / "10" / "ns" / "net")

    found = namespaces.pids_by_namespace(tmp_path)

    assert len(found) == 2
    assert "12" in found.values()


def test_numbers_without_a_name(world):
    """
    A kernel may have states and reasons that nobody knew when this was written.
    """
    world.open(1, 5)
    world.change(2, 5, SYN_SENT, ESTABLISHED)
    (changed,) = world.change(3, 5, ESTABLISHED, 13)
    (reset,) = world.reset(4, 5, reason=200)
    closed = world.close(5, 5, state=13, congestion_state=9, closed_first=7)[-1]

    assert (changed.old_state, changed.new_state) == ("ESTABLISHED", "13")
    assert reset.reason == "200"
    assert (closed.state, closed.congestion_state, closed.closed_first) == ("13", "9", "7")


def test_a_namespace_that_was_mounted_is_gone(tmp_path):
    """
    Between reading where it is mounted and opening it, only the file below is left.
    """
    left = tmp_path / "netns"
    left.touch()
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "mountinfo").write_text(
        f"36 35 0:4 net:[4026531840] {left} rw - nsfs x rw"
    )

    assert list(network_namespaces(tmp_path)) == []
