# SPDX-License-Identifier: Apache-2.0
"""
The messages of the dns module as they come, and DNS traffic whose every byte is known.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import subprocess
import threading
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_ntop
from typing import TYPE_CHECKING

import attrs
from kprobe_modules.modules.dns import MODULE

from kprobe_modules.api import Handler, Record
from tests.support.compiled import compiled
from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kprobe_modules.api import Manifest
    from tests.support.namespaces import Namespace

__all__ = [
    "MTU",
    "RAW_MODULE",
    "Exchange",
    "Packet",
    "Process",
    "SocketClosed",
    "Stream",
    "Workload",
    "build",
]

SOURCE = Path(__file__).with_name("responder.c")

PORT, OTHER_PORT, STRANGE_PORT = 53, 5300, 5301
"""Of DNS, one that the module is told of, and one that it is not."""

MTU = 1500
"""What is larger goes in fragments."""

SIZES = (12, 512, 1232, 4000, 5000)
"""Of datagrams; the last is larger than what is kept."""

TICK = 10_000_000
"""Nanoseconds per tick of /proc/PID/stat: USER_HZ is 100 everywhere."""


@attrs.define
class Packet(Record, module="dns"):
    """
    A ``dns_packet``, all of it.
    """

    socket_id: int
    start_time: int
    cgroup_id: int
    packet: int
    offset: int
    pid: int
    netns: int
    local: tuple[str, int]
    remote: tuple[str, int]
    family: int
    direction: str
    transport: str
    route: int
    total_length: int
    payload: bytes


@attrs.define
class SocketClosed(Record, module="dns"):
    """
    A ``dns_socket_closed``.
    """

    socket_id: int


def _address(family: int, raw: bytes) -> str:
    return inet_ntop(AF_INET, raw[:4]) if family == 4 else inet_ntop(AF_INET6, raw)


class RawHandler(Handler):
    """
    Records what came, nothing else.
    """

    def on_dns_packet(  # noqa: PLR0913, PLR0917 - the fields of the message
        self,
        time: int,
        socket_id: int,
        start_time: int,
        cgroup_id: int,
        packet: int,
        offset: int,
        pid: int,
        netns: int,
        local_address: bytes,
        remote_address: bytes,
        local_port: int,
        remote_port: int,
        family: int,
        direction: int,
        transport: int,
        route: int,
        total_length: int,
        payload: bytes,
    ) -> Record:
        return Packet(
            time,
            socket_id,
            start_time,
            cgroup_id,
            packet,
            offset,
            pid,
            netns,
            (_address(family, local_address), local_port),
            (_address(family, remote_address), remote_port),
            AF_INET if family == 4 else AF_INET6,
            ("sent", "received")[direction],
            ("udp", "tcp")[transport],
            route,
            total_length,
            bytes(payload),
        )

    def on_dns_socket_closed(self, time: int, socket_id: int) -> Record:
        return SocketClosed(time, socket_id)


RAW_MODULE: Manifest = attrs.evolve(MODULE, handler=RawHandler, records=(Packet, SocketClosed))
"""The dns module with a handler that only records."""


@attrs.frozen
class Process:
    """
    Who sends or receives.
    """

    pid: int
    started: int
    """In ticks since boot."""

    @classmethod
    def of(cls, pid: int) -> Process:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        return cls(pid, int(stat.rpartition(")")[2].split()[19]))


@attrs.frozen
class Exchange:
    """
    A datagram and the one that answers it.
    """

    mode: str
    family: int
    client: Process
    server: Process
    near: tuple[str, int]
    """The client's address and port, as records tell them."""
    far: tuple[str, int]
    query: bytes
    answer: bytes


@attrs.frozen
class Stream:
    """
    What went one way through a connection.
    """

    local: tuple[str, int]
    """Of who wrote it."""
    remote: tuple[str, int]
    data: bytes


def build() -> Path:
    """
    Return the program that answers.
    """
    compiler = needs.command("cc", "gcc")
    return compiled([compiler, "-O2", "-Wall", "-Werror", "-static"], [SOURCE])


Target = tuple[str, int, str, int, str]
"""How it answers, its family, address and port, and how it is asked."""

TARGETS: tuple[Target, ...] = (
    ("plain", AF_INET, "127.0.0.2", PORT, "unconnected"),
    ("plain", AF_INET6, "::1", PORT, "unconnected"),
    ("plain", AF_INET, "127.0.0.3", PORT, "mapped"),
    ("plain", AF_INET, "127.0.0.2", STRANGE_PORT, "unconnected"),
    ("look", AF_INET, "127.0.0.4", PORT, "connected"),
    ("many", AF_INET, "127.0.0.5", PORT, "unconnected"),
    ("ring", AF_INET, "127.0.0.6", PORT, "unconnected"),
    ("many", AF_INET6, "::1", OTHER_PORT, "connected"),
)
BRIEF = 4

SIOCSIFMTU = 0x8922
"""Of linux/sockios.h."""


def set_mtu(device: str, size: int) -> None:
    """
    Set it without a command, which takes a second where it is emulated.
    """
    with socket.socket(AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16si", device.encode(), size).ljust(40, b"\0")
        fcntl.ioctl(any_socket, SIOCSIFMTU, request)


_numbers = count(1)


def content(size: int) -> bytes:
    """
    Return bytes that are unlike all others: a DNS header's worth and more of them.
    """
    number = next(_numbers)
    head = number.to_bytes(2, "big") + b"\x01\x00" + number.to_bytes(8, "big")
    return head + bytes((number + index * 7) % 251 for index in range(size - len(head)))


class Workload:
    """
    Exchanges datagrams and streams on the loopback device of a namespace, whose MTU is `MTU`.

    Attributes:
        exchanges: what was sent and answered at ports that count.
        strangers: the same at a port that does not.
        streams: what went through connections.
    """

    def __init__(self, here: Namespace, *, brief: bool = False) -> None:
        self.exchanges: list[Exchange] = []
        self.strangers: list[Exchange] = []
        self.streams: list[Stream] = []
        self._here = here
        self._program = build()
        self._brief = brief

    def run(self) -> None:
        """
        Do all of it, once; if it is to be brief, only what is sent in different ways.
        """
        with self._here.inside():
            set_mtu("lo", MTU)
        targets = TARGETS[: BRIEF if self._brief else None]
        with self._responders(targets) as servers:
            for target, server in zip(targets, servers, strict=True):
                self._ask(target, server)
        if not self._brief:
            for family, address in ((AF_INET, "127.0.0.2"), (AF_INET6, "::1")):
                self._converse(family, address)

    @contextmanager
    def _responders(self, targets: Sequence[Target]) -> Iterator[list[Process]]:
        arguments = [
            word
            for mode, family, address, port, _ in targets
            for word in (mode, "ipv4" if family == AF_INET else "ipv6", address, str(port))
        ]
        command = self._here.command(self._program, str(len(SIZES)), *arguments)
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            assert process.stdout is not None
            try:
                yield [Process.of(int(process.stdout.readline())) for _ in targets]
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        assert process.returncode == 0

    def _ask(self, target: Target, server: Process) -> None:
        mode, family, address, port, how = target
        own = Process.of(os.getpid())
        with (
            self._here.inside(),
            socket.socket(AF_INET6 if how == "mapped" else family, socket.SOCK_DGRAM) as client,
        ):
            client.settimeout(60)
            there = (f"::ffff:{address}" if how == "mapped" else address, port)
            if how != "unconnected":
                client.connect(there)
            for size in SIZES:
                query = content(size)
                if how == "unconnected":
                    client.sendto(query, there)
                else:
                    client.send(query)
                answer = client.recv(1 << 16)
                near = "::1" if family == AF_INET6 else "127.0.0.1"
                exchange = Exchange(
                    mode,
                    family,
                    own,
                    server,
                    (near, client.getsockname()[1]),
                    (address, port),
                    query,
                    answer,
                )
                (self.strangers if port == STRANGE_PORT else self.exchanges).append(exchange)

    def _converse(self, family: int, address: str) -> None:
        """
        Send two messages, one in two buffers, and read them by halves and with a look.
        """
        first, second, third = content(300), content(20002), content(9001)
        told: list[bytes] = []

        def serve(listener: socket.socket) -> None:
            server, _ = listener.accept()
            with server:
                server.settimeout(60)
                for _ in range(2):
                    server.recv(2, socket.MSG_PEEK)
                    size = int.from_bytes(_take(server, 2), "big")
                    told.append(_take(server, size))
                server.sendall(len(third).to_bytes(2, "big") + third)

        with self._here.inside(), socket.create_server((address, PORT), family=family) as listener:
            thread = threading.Thread(target=serve, args=(listener,))
            thread.start()
            with socket.create_connection((address, PORT), timeout=60) as client:
                client.sendmsg([len(first).to_bytes(2, "big"), first])
                client.sendall(len(second).to_bytes(2, "big") + second)
                near, far = client.getsockname()[:2], client.getpeername()[:2]
                answer = _take(client, len(third) + 2)
            thread.join()
        assert told == [first, second]
        messages = [len(each).to_bytes(2, "big") + each for each in told]
        self.streams += [Stream(near, far, b"".join(messages)), Stream(far, near, answer)]


def _take(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = source.recv(size - len(data))
        assert piece, "the connection has ended"
        data += piece
    return data
