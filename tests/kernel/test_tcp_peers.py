# SPDX-License-Identifier: Apache-2.0
"""
The tcp module next to those who know sockets as well: ss, nginx, iperf3, tcplife, tcpconnect,
tcpretrans.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections import Counter, defaultdict
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from kprobe_modules.modules.tcp.records import (
    TcpClosed,
    TcpMetrics,
    TcpOpened,
    TcpSynackTimeout,
    TcpSynTimeout,
)

from kprobe_modules import Collector
from tests.support.connections import connections_command, plain, read_ends
from tests.support.emulation import fewer
from tests.support.namespaces import (
    LiveSocket,
    Namespace,
    ShapeError,
    joined,
    running,
    silenced,
)
from tests.support.requirements import needs
from tests.support.sockets import ROOMY, Name, Watch, connected, name_of, of
from tests.support.watch import record_until, record_workload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

FAMILIES = (socket.AF_INET, socket.AF_INET6)
DISCARD = 9
"""A port at which nobody listens."""
DEADLINE = 120.0
"""Seconds: emulated guests are slow."""

STATES = {"ESTAB": "ESTABLISHED", "CLOSE-WAIT": "CLOSE_WAIT", "FIN-WAIT-2": "FIN_WAIT2"}
"""What ``ss`` calls them, and the kernel."""


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    needs.root()
    needs.command("ip")


def lose_some(one: Namespace) -> None:
    """
    Lose some of what leaves: at random, or where the kernel cannot do so what waits too long.
    """
    try:
        one.impair(loss=2.0, delay_ms=3)
    except ShapeError:
        # A part of a large packet: the sender notices when a whole one finds no room.
        one.narrow(rate="60mbit", burst=3000, limit=9000)
    else:
        # Or a few large ones would hardly ever be lost.
        one.run("ip", "link", "set", "dev", one.device, "gso_max_segs", "1")


def quiet(*namespaces: Namespace) -> dict[Name, LiveSocket]:
    """
    Return what ``ss`` shows once nothing changes any more.
    """
    deadline = time.monotonic() + DEADLINE
    seen: list[dict[Name, LiveSocket]] = []
    while len(seen) < 2 or [counts(each) for each in seen[-2:]] != [counts(seen[-1])] * 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        seen.append(
            {
                Name(one.inode, each.local[1], each.remote[1]): each
                for one in namespaces
                for each in one.sockets()
            }
        )
    return seen[-1]


def counts(seen: dict[Name, LiveSocket]) -> list[tuple[str, ...]]:
    names = ("segs_in", "segs_out", "bytes_acked", "bytes_received", "rtt", "unacked")
    return [
        (each.state, *(each.details.get(name, "0") for name in names)) for each in seen.values()
    ]


def cut(one: socket.socket) -> None:
    """
    Close a socket with a reset, which changes none of its counters before.
    """
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()


def test_live_sockets_agree_with_ss() -> None:
    with ExitStack() as stack:
        client, server = stack.enter_context(joined())
        collector = stack.enter_context(Collector(rings=ROOMY))
        collector.attach("tcp", metrics_interval_ms=1)
        watch = Watch(collector)
        lose_some(client)
        pairs = []
        for index in range(12):
            with server.listen(FAMILIES[index % 2]) as listener:
                one, other = connected(client, listener)
            pairs.append((stack.enter_context(one), stack.enter_context(other)))
            exchange(index, one, other)
        names = [(name_of(client, one), name_of(server, other)) for one, other in pairs]
        shown = quiet(client, server)
        check_metrics(watch, shown, [name for pair in names[::2] for name in pair])
        for one, _ in pairs:
            cut(one)
        for _, other in pairs:
            other.close()
        watch.closed(*(name for pair in names for name in pair))

    for name, _ in names:
        check_as_in_ss(watch, name, shown[name])


def exchange(index: int, one: socket.socket, other: socket.socket) -> None:
    """
    Send some each way; every third end is left with what it has not read, some half closed.
    """
    one.sendall(b"a" * 7919 * (index + 1))
    other.sendall(b"b" * 1013)
    left = 7919 * (index + 1)
    while left:
        left -= len(other.recv(left))
    if index % 3:
        assert one.recv(1013, socket.MSG_WAITALL) == b"b" * 1013
    if index % 4 == 1:
        one.shutdown(socket.SHUT_WR)
        assert other.recv(1) == b""
    if index % 4 == 3:
        other.shutdown(socket.SHUT_WR)


def last_metrics(watch: Watch, name: Name) -> TcpMetrics | None:
    found = of(watch.life(name), TcpMetrics)
    return found[-1] if found else None


def check_metrics(watch: Watch, shown: dict[Name, LiveSocket], names: Sequence[Name]) -> None:
    """
    What is told last of a socket that has fallen idle is what it has counted.
    """

    def is_told(name: Name) -> bool:
        last = last_metrics(watch, name)
        return last is not None and last.bytes_received == shown[name].number("bytes_received")

    watch.until(lambda: all(map(is_told, names)))
    for name in names:
        last, each = last_metrics(watch, name), shown[name]
        assert last is not None
        assert last.state == STATES[each.state]
        assert (last.srtt_us, last.rttvar_us) == each.rtt_us, name
        assert last.bytes_acked == each.number("bytes_acked") - (last.role == "connect"), name
        assert last.retransmits == each.retransmits, name
        assert last.cwnd == each.number("cwnd"), name
        assert last.receive_queue == each.receive_queue, name


def check_as_in_ss(watch: Watch, name: Name, shown: LiveSocket) -> None:
    """
    An end that was cut off has counted what ``ss`` had shown of it.
    """
    (closed,) = of(watch.life(name), TcpClosed)
    fin = 1 if shown.state == "FIN-WAIT-2" else 0

    assert closed.role == "connect"
    assert closed.state == STATES[shown.state]
    assert (closed.srtt_us, closed.rttvar_us) == shown.rtt_us
    # To the kernel a SYN and a FIN are bytes.
    assert closed.bytes_acked == closed.bytes_sent == shown.number("bytes_acked") - 1 - fin
    assert closed.segments_received == shown.number("segs_in")
    assert closed.segments_sent == shown.number("segs_out")
    assert closed.retransmits == shown.retransmits
    assert closed.out_of_order == shown.number("rcv_ooopack")
    assert closed.cwnd == shown.number("cwnd")
    assert (closed.unacked, shown.number("unacked")) == (0, 0)


NGINX = """
user root;
worker_processes 2;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 64; }}
http {{
    log_format told '$pid $remote_port $request_length $bytes_sent';
    access_log requests.log told;
    client_body_temp_path temp;
    proxy_temp_path temp;
    fastcgi_temp_path temp;
    uwsgi_temp_path temp;
    scgi_temp_path temp;
    sendfile on;
    server {{
        listen {ipv4}:8080;
        listen [{ipv6}]:8080;
        root files;
    }}
}}
"""

FILES = {"empty": 0, "small": 101, "segment": 1447, "large": 200003}


@contextmanager
def nginx(server: Namespace, folder: Path) -> Iterator[int]:
    """
    Run nginx in a namespace; give the process that listens.
    """
    (folder / "files").mkdir()
    (folder / "nginx.conf").write_text(NGINX.format(ipv4=server.ipv4, ipv6=server.ipv6))
    for name, size in FILES.items():
        (folder / "files" / name).write_bytes(b"n" * size)
    command = ("nginx", "-e", "error.log", "-p", folder, "-c", "nginx.conf", "-g", "daemon off;")
    with running(server, 8080, *command) as process:
        yield process.pid
        process.send_signal(signal.SIGQUIT)
        assert process.wait(DEADLINE) == 0


def get(one: socket.socket, name: str, *, last: bool) -> tuple[int, int]:
    """
    Ask for a file; return how many bytes went each way.
    """
    header = "Connection: close\r\n" if last else ""
    request = f"GET /{name} HTTP/1.1\r\nHost: test\r\n{header}\r\n".encode()
    one.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += one.recv(1 << 16)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"200 OK" in head
    received = len(answer)
    left = FILES[name] - len(body)
    while left:
        got = len(one.recv(left))
        assert got
        received += got
        left -= got
    return len(request), received


def fetch_all(client: Namespace, server: Namespace, count: int) -> dict[int, tuple[int, int]]:
    """
    Ask for files over connections of one to five requests; return their bytes, by local port.
    """
    done = {}
    for index in range(count):
        family = FAMILIES[index % 2]
        with client.open_socket(family) as one:
            one.connect((server.ipv4 if family == socket.AF_INET else server.ipv6, 8080))
            sent = received = 0
            requests = 1 + index % 5
            for number in range(requests):
                name = list(FILES)[(index + number) % len(FILES)]
                # Half of them nginx closes first.
                went = get(one, name, last=number + 1 == requests and index % 4 > 1)
                sent, received = sent + went[0], received + went[1]
            if index % 4 > 1:
                assert one.recv(1) == b""
            done[one.getsockname()[1]] = sent, received
    return done


def test_bytes_agree_with_nginx(tmp_path: Path) -> None:
    needs.command("nginx")
    with joined() as (client, server), Collector(["tcp"], rings=ROOMY) as collector:
        watch = Watch(collector)
        with nginx(server, tmp_path) as master:
            done = fetch_all(client, server, fewer(31, 13))
        names = [Name(client.inode, port, 8080) for port in done]
        watch.closed(*names, *(Name(server.inode, 8080, port) for port in done))
        spaces = client.inode, server.inode
        live = collector.status("tcp").live["accept"]
    told: dict[int, Counter[str]] = defaultdict(Counter)
    workers: dict[int, set[int]] = defaultdict(set)
    for line in (tmp_path / "requests.log").read_text().splitlines():
        pid, port, received, sent = map(int, line.split())
        told[port] += Counter(sent=sent, received=received)
        workers[port].add(pid)

    assert told.keys() == done.keys()
    for port, (sent, received) in done.items():
        (mine,) = of(watch.life(Name(spaces[0], port, 8080)), TcpClosed)
        (its,) = of(watch.life(Name(spaces[1], 8080, port)), TcpClosed)
        assert (mine.bytes_sent, mine.bytes_received) == (sent, received)
        assert (its.bytes_sent, its.bytes_received) == (told[port]["sent"], told[port]["received"])
        assert mine.closed_first != its.closed_first
        # Of the tracepoint alone, what is known is who owns the listener.
        assert {its.pid} == ({master} if live.startswith("tp_btf/") else workers[port])
    listening = [item for item in of(watch.records, TcpOpened) if item.role == "listen"]
    assert {item.pid for item in listening if item.netns == spaces[1]} == {master}


def test_retransmits_agree_with_the_kernel_and_iperf3() -> None:
    needs.command("iperf3")
    with joined() as place, Collector(["tcp"], rings=ROOMY) as collector:
        client, server = place
        before = [each.counters()["Tcp.RetransSegs"] for each in place]
        lose_some(client)
        with running(server, 5201, "iperf3", "-s", "-1") as process:
            report = json.loads(
                client.run("iperf3", "-c", server.ipv4, "-n", "2M", "-P", "2", "-J")
            )
            process.wait(DEADLINE)
        records = record_until(
            collector,
            lambda: all(each.state == "TIME-WAIT" for one in place for each in one.sockets()),
        )
        again = [
            each.counters()["Tcp.RetransSegs"] - old
            for each, old in zip(place, before, strict=True)
        ]
    closed: list[Any] = of(records, TcpClosed)
    for one, count in zip(place, again, strict=True):
        mine = [item for item in closed if item.netns == one.inode]
        synacks = [item for item in of(records, TcpSynackTimeout) if item.netns == one.inode]
        assert sum(item.retransmits or 0 for item in mine) + len(synacks) == count
    assert again[0] > 0, "nothing was lost"
    check_streams(report, [item for item in closed if item.netns == client.inode])


COOKIE = 37
"""Bytes that iperf3 begins each connection with."""


def check_streams(report: dict[str, Any], closed: Sequence[TcpClosed]) -> None:
    ports = {each["socket"]: each["local_port"] for each in report["start"]["connected"]}
    streams = [each["sender"] for each in report["end"]["streams"]]

    assert len(streams) == 2
    for stream in streams:
        (mine,) = (item for item in closed if item.local_port == ports[stream["socket"]])
        assert mine.bytes_sent == stream["bytes"] + COOKIE
        assert mine.retransmits is not None
        # It looks before the end.
        assert mine.retransmits >= stream["retransmits"]


def tool(name: str, package: str) -> str:
    path = shutil.which(name, path="/usr/sbin:/usr/bin")
    needs.that(path, f"needs Debian's {name} (package {package})")
    assert path is not None
    return path


@contextmanager
def observing(name: str, package: str = "libbpf-tools") -> Iterator[list[str]]:
    """
    Run an observer; what it has printed below its heading is there in the end.
    """
    printed: list[str] = []
    with subprocess.Popen(
        ["stdbuf", "-oL", tool(name, package)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as observer:
        assert observer.stdout is not None
        before: list[str] = []
        while not before or " PID " not in f" {before[-1]}":
            before.append(observer.stdout.readline())
            if "fatal error: 'net/sock.h' file not found" in before[-1]:
                pytest.xfail(f"{name} does without headers of the kernel on newer ones only")
            if not before[-1]:
                needs.unmet(f"{name} does not run on this kernel: {''.join(before).strip()}")
        yield printed
        time.sleep(2)
        observer.send_signal(signal.SIGINT)
        printed += observer.communicate(timeout=60)[0].splitlines()


def test_agrees_with_tcplife_and_tcpconnect() -> None:
    """
    The same connections, and the same bytes where they count those that were acknowledged.
    """
    needs.kprobes()
    with (
        joined() as (client, server),
        observing("tcplife") as lives,
        observing("tcpconnect") as connects,
        Collector(["tcp"], rings=ROOMY) as collector,
    ):
        records, output = record_workload(
            collector, connections_command(fewer(101, 53), client, server)
        )
        records += record_until(
            collector,
            lambda: all(
                each.state == "TIME-WAIT" for one in (client, server) for each in one.sockets()
            ),
        )
        spaces = {client.inode, server.inode}
    ends = read_ends(output)
    connecting = {end.opener for end in ends if end.role == "connect"}
    opened = [item for item in of(records, TcpOpened) if item.netns in spaces]
    ours = {
        (item.local_port, item.remote_address, item.remote_port): item
        for item in of(records, TcpClosed)
        if item.netns in spaces and item.role != "listen"
    }
    theirs = {}
    for words in map(str.split, lives):
        key = int(words[-6]), plain(words[-5]), int(words[-4])
        if key in ours:
            theirs[key] = float(words[-3]), float(words[-2])

    assert len(ours) == len([end for end in ends if end.role != "listen"])
    assert theirs.keys() == ours.keys()
    for key, (sent, received) in theirs.items():
        # In KiB with two digits, SYN and FIN included.
        assert abs(sent * 1024 - ours[key].bytes_acked) < 8, key
        assert abs(received * 1024 - ours[key].bytes_received) < 8, key
    mine = [words for words in map(str.split, connects) if int(words[0]) in connecting]
    assert Counter((plain(words[-2]), int(words[-1])) for words in mine) == Counter(
        (item.remote_address, item.remote_port) for item in opened if item.role == "connect"
    )


def test_agrees_with_tcpretrans() -> None:
    """
    Each segment that is sent again, of a connection and of one that does not come about.
    """
    needs.kprobes()
    with (
        joined() as (client, server),
        observing("tcpretrans.bt", "bpftrace") as lines,
        Collector(["tcp"], rings=ROOMY) as collector,
        ExitStack() as stack,
    ):
        watch = Watch(collector)
        # It does not see the probes that are sent when an answer is late.
        client.set("net/ipv4/tcp_early_retrans", 0)
        ones = []
        for family in FAMILIES:
            with server.listen(family) as listener:
                one, other = connected(client, listener)
            ones.append(stack.enter_context(one))
            stack.enter_context(other)
        before = client.counters()["Tcp.RetransSegs"]
        with silenced(client, server):
            for one in ones:
                one.sendall(b"a" * 101)
            ones.append(stack.enter_context(client.open_socket()))
            ones[-1].settimeout(0)
            ones[-1].connect_ex((server.ipv4, DISCARD))
            ports = {one.getsockname()[1] for one in ones}
            watch.until(
                lambda: any(item.netns == client.inode for item in of(watch.records, TcpSynTimeout))
            )
            for one in ones:
                cut(one)
        again = client.counters()["Tcp.RetransSegs"] - before
        watch.flush()
    ours = {
        item.local_port: item.retransmits
        for item in of(watch.records, TcpClosed)
        if item.netns == client.inode
    }
    shown = [words for words in map(str.split, lines) if len(words) == 5]
    theirs = Counter(int(words[2].rpartition(":")[2]) for words in shown)

    assert ours.keys() == ports
    assert all(ours.values())
    assert sum(ours.values()) == again
    assert {port: theirs[port] for port in ports} == ours
