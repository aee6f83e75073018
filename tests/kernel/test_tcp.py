# SPDX-License-Identifier: Apache-2.0
"""
The tcp module against the truth, on whatever kernel this runs on.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kprobe_modules.modules.tcp import MODULE
from kprobe_modules.modules.tcp.records import (
    TcpClosed,
    TcpEstablished,
    TcpMetrics,
    TcpOpened,
    TcpReset,
    TcpStateChanged,
    TcpSynackTimeout,
    TcpSynTimeout,
)

from kprobe_modules import Collector
from tests.support.alternatives import absent_programs, names_live
from tests.support.requirements import needs
from tests.support.tcp import End, Workload, connect, ends_of, exchange
from tests.support.watch import record_until, record_work

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kprobe_modules import Record

TICK = 10_000_000
"""Nanoseconds per tick of /proc/PID/stat: USER_HZ is 100 everywhere."""

LAST = max(len(hook.alternatives) for hook in MODULE.hooks)

PATHS = {
    ("connect", "local"): ["ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "CLOSE"],
    ("accept", "local"): ["FIN_WAIT1", "FIN_WAIT2", "CLOSE"],
    ("connect", "remote"): ["ESTABLISHED", "CLOSE_WAIT", "LAST_ACK", "CLOSE"],
    ("accept", "remote"): ["CLOSE_WAIT", "LAST_ACK", "CLOSE"],
}
"""The states of a connection that is closed by FINs, after its first."""


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    needs.root()


def of(records: Iterable[Record], kind: type[Any]) -> list[Any]:
    return [record for record in records if isinstance(record, kind)]


def by_end(records: Iterable[Record]) -> dict[tuple[Any, Any], list[Any]]:
    """
    Sort records about sockets by their addresses, keeping their order.
    """
    found: dict[tuple[Any, Any], list[Any]] = defaultdict(list)
    for record in records:
        if record.module == "tcp" and record.record.startswith("tcp_"):
            item: Any = record
            remote = None if item.remote_port is None else (item.remote_address, item.remote_port)
            found[(item.local_address, item.local_port), remote].append(item)
    return found


def ticks_of(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    return int(stat.rpartition(")")[2].split()[19])


def own_cgroup_id() -> int:
    lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    entries = [line.split(":", 2) for line in lines]
    for _number, controllers, path in entries:
        if "memory" in controllers.split(","):
            return Path(f"/sys/fs/cgroup/memory{path}").stat().st_ino
    path = next(path for number, _, path in entries if number == "0")
    return Path(f"/sys/fs/cgroup{path}").stat().st_ino


def check_owner(record: Any) -> None:
    assert record.pid == os.getpid(), record
    assert record.start_time // TICK == ticks_of(os.getpid())
    assert record.cgroup_id == own_cgroup_id()
    assert record.netns == Path("/proc/self/ns/net").stat().st_ino


def check_end(truth: End, records: Sequence[Any], live: dict[str, str]) -> None:
    """
    Compare all that was recorded of one end of a connection with what its process saw.
    """
    # What answered the segments of nobody bears the same addresses, and no id.
    records = [item for item in records if item.socket_id is not None]
    opened, closed = records[0], of(records, TcpClosed)
    assert [type(item) for item in records].count(TcpOpened) == 1, truth
    assert isinstance(opened, TcpOpened), truth
    assert len(closed) == 1, truth
    (end,) = closed
    # close(2) ends a socket before it sends a reset.
    assert [type(item) for item in records[records.index(end) + 1 :]] in ([], [TcpReset])
    assert len({item.socket_id for item in records}) == 1
    assert {(item.family, item.role) for item in records} == {(truth.family, truth.role)}
    for item in records:
        check_owner(item)
    assert not opened.existing
    check_counters(truth, end, live)
    check_states(truth, records, live)
    assert [item.direction for item in of(records, TcpReset)] == truth.resets, truth
    established = of(records, TcpEstablished)
    assert len(established) == (truth.established and truth.role != "listen"), truth
    for item in established:
        assert item.handshake is None or 0 < item.handshake < 60e9
    if truth.role == "connect":
        assert all(item.handshake for item in established)


def check_counters(truth: End, end: TcpClosed, live: dict[str, str]) -> None:
    assert 0 < (end.duration or 0) < 240e9
    assert end.closed_first == truth.closed_first, truth
    if live["end"].startswith("end_state"):
        assert end.error == truth.error, truth
    if truth.role == "listen":
        assert end.bytes_sent is end.srtt_us is None
        assert end.accept_queue == 0
        assert end.accept_queue_limit == 128
        return
    assert end.accept_queue is end.accept_queue_limit is None
    late = live["end"].startswith(("end_late", "end_release"))
    if late and ("sent" in truth.resets or not truth.established):
        return  # tcp_disconnect() may have forgotten the counters by then
    assert (end.bytes_sent, end.bytes_received) == (truth.sent, truth.received), truth
    if not live["end"].startswith("end_release"):
        assert end.bytes_acked == truth.sent
        assert end.unacked == 0
        assert (end.segments_sent or 0) >= 1
    assert end.receive_queue == end.out_of_order == 0
    assert (end.srtt_us is None) == (not truth.established)
    if not end.retransmits:  # as happens where a guest is held for long
        assert end.congestion_state == "open"
        assert (end.cwnd or 0) >= 10
    assert (end.segments_received or 0) >= 1


def check_states(truth: End, records: Sequence[Any], live: dict[str, str]) -> None:
    changes = of(records, TcpStateChanged)
    path = [item.new_state for item in changes]
    (end,) = of(records, TcpClosed)

    assert path[-1] == "CLOSE"
    assert changes[-1].old_state == end.state
    for before, after in pairwise(changes):
        assert before.new_state == after.old_state
    if truth.role == "listen":
        assert path == ["CLOSE"]
        assert end.state == "LISTEN"
    elif live["end"].startswith("end_release"):
        assert path[:-1] == PATHS[truth.role, truth.closed_first or ""][: len(path) - 1]
    elif truth.resets or not truth.established:
        first = ["ESTABLISHED"] if truth.role == "connect" and truth.established else []
        assert path == [*first, "CLOSE"]
    else:
        assert path == PATHS[truth.role, truth.closed_first or ""], truth


def check_timeouts(workload: Workload, found: dict[tuple[Any, Any], list[Any]]) -> None:
    assert workload.silent
    assert workload.deferred
    server, client = workload.silent
    timeouts = of(found[client, server], TcpSynTimeout)
    assert [item.retransmits for item in timeouts] == [*range(1, len(timeouts) + 1)]
    assert timeouts
    for item in timeouts:
        check_owner(item)
        assert item.role == "connect"
    server, client = workload.deferred
    (listening,) = of(found[server, None], TcpOpened)
    again = of(found[server, client], TcpSynackTimeout)
    assert [item.retransmits for item in again] == [*range(1, len(again) + 1)]
    assert again
    for item in again:
        check_owner(item)
        assert item.role == "listen"
        assert item.socket_id == listening.socket_id


def has_reasons() -> bool:
    """
    Tell whether the kernel has reasons for resets, and tells of those without a socket.
    """
    release = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))
    return release >= (6, 10)


def check_answers(
    workload: Workload, found: dict[tuple[Any, Any], list[Any]], live: dict[str, str]
) -> None:
    """
    Compare what was told of a segment that belongs to nobody.
    """
    assert workload.unanswered
    ours, theirs = workload.unanswered
    answers = [item for item in of(found[ours, theirs], TcpReset) if item.socket_id is None]
    if live["reset_sent"] == "reset_tx_btf" and not has_reasons():
        assert answers == []
        return
    (answer,) = answers
    assert answer.direction == "sent"
    assert answer.pid is answer.role is answer.state is None
    assert answer.netns == Path("/proc/self/ns/net").stat().st_ino
    reasons = has_reasons() and live["reset_sent"] != "reset_tx_kprobe"
    assert answer.reason == ("no_socket" if reasons else None)
    aborts = {
        item.reason
        for records in found.values()
        for item in of(records, TcpReset)
        if item.direction == "sent" and item.pid == os.getpid()
    }
    if live["reset_sent"] == "reset_tx_kprobe":
        assert aborts == {None}
    elif has_reasons():
        # close(2) with SO_LINGER of no time disconnects; kernels differ in what they call that.
        assert aborts <= {"tcp_state", "tcp_abort_on_linger", "tcp_disconnect_with_data"}


@pytest.fixture(scope="module")
def absent() -> frozenset[str]:
    """
    Return the programs that this kernel cannot attach.
    """
    return absent_programs(MODULE)


def test_no_function_is_missing(absent: frozenset[str]) -> None:
    """
    Every kernel with kprobes that we know has all of them: what is missing was renamed.
    """
    needs.kprobes()

    assert absent == frozenset()


@pytest.mark.parametrize("rank", range(LAST))
def test_each_alternative(rank: int, absent: frozenset[str]) -> None:
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
    with ExitStack() as stack:
        old = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        clients = connect(old)
        for each in clients:
            stack.enter_context(each)
        ends = ends_of(*clients)
        exchange(*clients, 1009, 2003, ends)
        workload = Workload()
        with Collector(chosen={f"tcp.{hook}": name for hook, name in chosen.items()}) as collector:
            collector.attach("tcp", metrics_interval_ms=1)
            live = names_live(collector, "tcp")
            assert {hook: live[hook] for hook in chosen} == chosen
            exchange(*clients, 307, 401, ends)
            records = record_work(collector, workload.run)
            exchange(*clients, 307, 401, ends)
            ends[0].closed_first, ends[1].closed_first = "local", "remote"
            for each in clients:
                each.close()
            records += collector.flush()
            stats = collector.stats().modules["tcp"]
    found = by_end(records)

    for truth in workload.ends:
        check_end(truth, found[truth.local, truth.remote], live)
    check_timeouts(workload, found)
    check_answers(workload, found, live)
    check_old(ends, found, live)
    assert stats["lost"] == stats["errors"] == 0
    assert stats["emitted"] == stats["received"]


def check_old(
    ends: tuple[End, End], found: dict[tuple[Any, Any], list[Any]], live: dict[str, str]
) -> None:
    """
    Compare what was told of a connection that was there before.
    """
    for truth, (sent, received) in zip(ends, ((1009, 2003), (2003, 1009)), strict=True):
        opened, before, *rest = found[truth.local, truth.remote]
        assert isinstance(opened, TcpOpened)
        assert opened.existing
        assert (opened.role, opened.state) == (truth.role, "ESTABLISHED")
        assert opened.pid == os.getpid()
        if live["existing"] == "existing_files":
            check_owner(opened)
        else:
            assert opened.start_time is None
        assert isinstance(before, TcpMetrics)
        assert (before.bytes_sent, before.bytes_received) == (sent, received)
        active = of(rest, TcpMetrics)
        assert active
        # Of the first exchange, which was some ticks before the second.
        up, down = (307, 401) if truth.role == "connect" else (401, 307)
        assert active[0].bytes_sent == sent + up
        assert active[0].bytes_received == received + down
        assert active[0].state == "ESTABLISHED"
        assert active[0].srtt_us
        end = rest[-1]
        assert isinstance(end, TcpClosed)
        assert (end.bytes_sent, end.bytes_received) == (truth.sent, truth.received)
        assert end.duration is None
        assert end.closed_first == truth.closed_first


ELSEWHERE = """
import socket, subprocess, sys
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
listener = socket.create_server(("127.0.0.1", 0))
one = socket.create_connection(listener.getsockname())
two = socket.create_connection(listener.getsockname())
two.sendall(bytes(211))
server, _ = listener.accept()
gone = socket.create_connection(listener.getsockname())
print(listener.getsockname()[1], one.getsockname()[1], two.getsockname()[1], flush=True)
input()
later, _ = listener.accept()
later.close()
two.close()
print("done", flush=True)
input()
"""


@pytest.fixture
def elsewhere() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """
    Run sockets in another network namespace; return the process, and their ports.
    """
    command = ["unshare", "--net", sys.executable, "-c", ELSEWHERE]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        ports = [int(word) for word in process.stdout.readline().split()]
        assert ports, "the sockets were not made"
        yield process, ports
        process.communicate("\n\n", timeout=60)


def test_sockets_of_another_network_namespace_are_found_once(
    elsewhere: tuple[subprocess.Popen[str], list[int]],
) -> None:
    process, (listening, one, two) = elsewhere
    namespace = Path(f"/proc/{process.pid}/ns/net").stat().st_ino
    with Collector(["tcp"]) as collector:
        live = names_live(collector, "tcp")
        records = collector.flush()
        collector.resync("tcp")
        again = collector.flush()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"
        later = collector.flush()
    there = [item for item in of(records, TcpOpened) if item.netns == namespace]
    ends = {(item.local_port, item.remote_port): item for item in there}
    queued = ends[listening, two]

    assert len(ends) == len(there) == 7
    assert all(item.existing for item in there)
    assert not [item for item in of(again, TcpOpened) if item.existing]
    assert ends[listening, None].role == "listen"
    for local, remote, role in ((one, listening, "connect"), (listening, one, "accept")):
        assert ends[local, remote].role == role
    owned = [item for item in there if item.pid is not None]
    assert {item.pid for item in owned} == {process.pid}
    assert len(owned) == 5, "two wait to be accepted"
    assert (queued.pid, queued.role) == (None, "accept")
    (end,) = (item for item in of(later, TcpClosed) if item.socket_id == queued.socket_id)
    # Then it was accepted, and closed with what had come unread: by a reset.
    assert end.pid == (None if live["accept"] == "accept_btf" else process.pid)
    assert (end.bytes_received, end.receive_queue, end.closed_first) == (211, 211, "local")


def test_attach_in_the_middle() -> None:
    stop = threading.Event()
    made: list[tuple[float, End, End]] = []

    def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            while not stop.is_set():
                began = time.monotonic()
                client, server = connect(listener)
                ends = ends_of(client, server)
                exchange(client, server, 101, 211, ends)
                client.close()
                server.recv(1)
                server.close()
                made.append((began, *ends))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with Collector() as collector:
            time.sleep(0.2)
            collector.attach("tcp")
            attached = time.monotonic()
            wanted = len(made) + 60
            records = record_until(collector, lambda: len(made) > wanted or not thread.is_alive())
            stop.set()
            thread.join()
            records += collector.flush()
            stats = collector.stats().modules["tcp"]
    finally:
        stop.set()
        thread.join()
    found = by_end(records)

    assert stats["lost"] == stats["errors"] == 0
    assert sum(began > attached for began, _, _ in made) >= 40
    for began, *ends in made:
        for truth in ends:
            kinds = [type(item) for item in found[truth.local, truth.remote]]
            if began > attached or kinds:
                assert kinds.count(TcpOpened) == kinds.count(TcpClosed) == 1, truth
                assert kinds[0] is TcpOpened
                assert kinds[-1] is TcpClosed
                end = found[truth.local, truth.remote][-1]
                assert (end.bytes_sent, end.bytes_received) == (truth.sent, truth.received)
            if began > attached:
                assert not found[truth.local, truth.remote][0].existing
