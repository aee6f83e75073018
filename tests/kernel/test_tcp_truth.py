# SPDX-License-Identifier: Apache-2.0
"""
The tcp module against connections that end in every way there is, and that count their own bytes.

Each runs in network namespaces of its own: the counters in ``/proc/net`` there are the workload's
alone, and what records say has to add up to them.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from kprobe_modules.modules.tcp.records import (
    TcpClosed,
    TcpEstablished,
    TcpOpened,
    TcpReset,
    TcpStateChanged,
    TcpSynackTimeout,
)

from kprobe_modules import Collector
from tests.support.cgroups import own_cgroup_id
from tests.support.connections import RESETS, End, Key, connections_command, read_ends
from tests.support.emulation import fewer
from tests.support.namespaces import Namespace, alone, joined
from tests.support.requirements import needs
from tests.support.sockets import ROOMY, by_socket, of
from tests.support.watch import record_until, record_workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from kprobe_modules import Record

Place = tuple[Namespace, Namespace]

ACTIVE = ("ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "CLOSE")
PASSIVE = ("ESTABLISHED", "CLOSE_WAIT", "LAST_ACK", "CLOSE")
RESET = ("ESTABLISHED", "CLOSE")


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    needs.root()
    needs.command("ip")


@contextmanager
def loopback() -> Iterator[Place]:
    with alone() as here:
        yield here, here


def sockets_of(ends: Sequence[End], records: Sequence[Record], netns: int) -> dict[int, End]:
    """
    Return what the workload did with each socket that was told as opened in one namespace.

    Ports are used again: of those that have the same name, one was opened after the other.
    """
    told: dict[Key, list[int]] = defaultdict(list)
    for record in of(records, TcpOpened):
        if record.netns == netns:
            key = (record.role, record.local_port, record.remote_address, record.remote_port)
            told[key].append(record.socket_id)
    truth: dict[Key, list[End]] = defaultdict(list)
    for end in sorted(ends, key=lambda each: each.opening):
        truth[end.key].append(end)

    assert Counter({key: len(each) for key, each in told.items()}) == Counter(
        {key: len(each) for key, each in truth.items()}
    )
    return {
        identity: end for key in told for identity, end in zip(told[key], truth[key], strict=True)
    }


@attrs.frozen
class Run:
    """
    What the workload did, what was recorded meanwhile, and what the kernel counted.
    """

    ends: Sequence[End]
    records: Sequence[Record]
    counted: dict[str, dict[str, int]]
    """By role: the counters of that end's namespace."""
    netns: dict[str, int]
    stats: dict[str, int]
    ended: int


def run(place: Place, count: int) -> Run:
    client, server = place
    before = [each.counters() for each in place]
    with Collector(["tcp"], rings=ROOMY) as collector:
        records, output = record_workload(collector, connections_command(count, client, server))
        records += record_until(collector, lambda: not any(map(unfinished, place)))
        stats = collector.stats().modules["tcp"]
        while stats["emitted"] != stats["received"] + stats["lost"]:
            # Others on this machine have connections, too.
            records += collector.flush()
            stats = collector.stats().modules["tcp"]
    counted = [
        Counter(each.counters()) - Counter(old) for each, old in zip(place, before, strict=True)
    ]
    return Run(
        read_ends(output),
        records,
        {"connect": counted[0], "accept": counted[1]},
        {"connect": client.inode, "accept": server.inode, "listen": server.inode},
        stats,
        time.monotonic_ns(),
    )


def unfinished(namespace: Namespace) -> bool:
    return any(each.state != "TIME-WAIT" for each in namespace.sockets())


def path_of(end: End) -> tuple[str, ...]:
    """
    Return the states that one goes through once it is connected.
    """
    if end.kind in RESETS:
        return RESET
    return ACTIVE if end.first else PASSIVE


def check_path(end: End, records: Sequence[Any]) -> None:
    opened, closed = records[0], records[-1]
    changes = of(records, TcpStateChanged)
    states = (opened.state, *(item.new_state for item in changes))

    assert [item.old_state for item in changes] == list(states[:-1]), end
    assert closed.state == changes[-1].old_state, end
    if end.role == "listen":
        assert states == ("LISTEN", "CLOSE"), end
    elif end.kind == "refused":
        assert states == ("SYN_SENT", "CLOSE"), end
    elif end.role == "connect":
        assert states == ("SYN_SENT", *path_of(end)), end
    else:
        # It goes on while it waits to be accepted.
        assert states[0] in path_of(end)[:2], end
        assert states == path_of(end)[path_of(end).index(states[0]) :], end


def check_identity(end: End, records: Sequence[Any], netns: int) -> None:
    for record in records:
        assert (record.pid, record.netns) == (end.opener, netns), end
        assert (record.role, record.family) == (end.role, end.family), end
        assert (record.local_port, record.cgroup_id) == (end.local_port, own_cgroup_id()), end
        assert record.start_time is not None, end
        if end.kind != "refused":
            assert record.local_address == end.plain_local, end


def check_bytes(end: End, closed: TcpClosed) -> None:
    assert closed.bytes_sent == end.sent, end
    assert closed.bytes_received == end.arrived, end
    assert closed.bytes_acked is not None
    if end.kind in RESETS:
        assert closed.bytes_acked <= end.sent, end
    else:
        assert closed.bytes_acked == end.sent, end


def check_end(end: End, run: Run, records: Sequence[Any]) -> None:
    """
    Compare all that was recorded of one socket with what the workload did with it.
    """
    life = [record for record in records if not isinstance(record, TcpReset)]
    (opened,) = of(records, TcpOpened)
    (closed,) = of(records, TcpClosed)
    established = of(records, TcpEstablished)

    assert life[0] is opened, end
    assert life[-1] is closed, end
    assert not opened.existing
    check_identity(end, records, run.netns[end.role])
    check_path(end, life)
    if end.role == "listen":
        assert not established
        return
    check_bytes(end, closed)
    assert len(established) == bool(end.opened), end
    assert closed.closed_first == ("local" if end.first else "remote"), end
    if end.error:
        assert closed.error == end.error, end
    elif end.kind not in RESETS:
        assert closed.error is None, end
    check_times(end, run, established, closed)


def check_times(
    end: End, run: Run, established: Sequence[TcpEstablished], closed: TcpClosed
) -> None:
    """
    What took how long lies within what the workload saw of it.
    """
    assert closed.duration is not None
    assert closed.duration < run.ended - min(each.opening for each in run.ends), end
    if not end.opened:
        assert closed.duration < end.closing - end.opening, end
    elif end.first if end.kind in RESETS else (end.kind, end.role) != ("half_close", "connect"):
        # The others have ended before their process closes them.
        assert closed.duration > end.closing - end.opened, end
    if end.role == "connect" and established:
        assert established[0].handshake is not None, end
        assert 0 < established[0].handshake < end.opened - end.opening, end


def check_resets(run: Run, found: dict[int, list[Any]], truth: dict[int, End]) -> None:
    """
    Each reset is told by who sent it and by who got it, and nobody tells of others.
    """
    for identity, end in truth.items():
        if end.role == "listen":
            continue  # it answers what comes late for connections that are gone
        told = [item.direction for item in of(found[identity], TcpReset)]
        if end.kind in RESETS:
            assert told == ["sent" if end.first else "received"], end
        else:
            assert told == (["received"] if end.kind == "refused" else []), end
    stray = [item for item in of(run.records, TcpReset) if item.socket_id is None]
    mine = [item for item in stray if item.netns in run.netns.values()]
    assert {item.direction for item in mine} == {"sent"}
    assert Counter((item.local_port, item.remote_port) for item in mine) == Counter(
        (end.remote_port, end.local_port) for end in truth.values() if end.kind == "refused"
    )


def check_counters(run: Run) -> None:
    """
    What was recorded of all sockets of a namespace adds up to what the kernel counted there.
    """
    for role in ("connect", "accept"):
        netns, counted = run.netns[role], run.counted[role]
        mine: list[Any] = [item for item in run.records if getattr(item, "netns", 0) == netns]
        roles = Counter(item.role for item in of(mine, TcpOpened))
        sent = [item for item in of(mine, TcpReset) if item.direction == "sent"]
        again = sum(item.retransmits or 0 for item in of(mine, TcpClosed))

        assert roles["connect"] == counted["Tcp.ActiveOpens"]
        assert roles["accept"] == counted["Tcp.PassiveOpens"]
        assert len(sent) == counted["Tcp.OutRsts"]
        assert again + len(of(mine, TcpSynackTimeout)) == counted["Tcp.RetransSegs"]


@pytest.mark.parametrize(
    ("place", "count"), [(loopback, fewer(211, 53)), (joined, fewer(1009, 211))]
)
def test_every_connection_exactly_once(
    place: Callable[[], AbstractContextManager[Place]], count: int
) -> None:
    with place() as namespaces:
        done = run(namespaces, count)
    found = by_socket(done.records)
    truth: dict[int, End] = {}
    for netns in set(done.netns.values()):
        ends = [end for end in done.ends if done.netns[end.role] == netns]
        truth |= sockets_of(ends, done.records, netns)

    assert Counter(end.role for end in truth.values())["connect"] == count
    listeners = {end.local_port: each for each, end in truth.items() if end.role == "listen"}
    for identity, end in truth.items():
        check_end(end, done, found[identity])
        if end.role == "accept":
            assert found[identity][0].listener_id == listeners[end.local_port], end
    check_resets(done, found, truth)
    check_counters(done)
    assert done.stats["lost"] == done.stats["errors"] == 0
