# SPDX-License-Identifier: Apache-2.0
"""
Network namespaces joined by a pair of veth devices, and what the kernel itself counts in them.

Each has counters of its own in ``/proc/net``: what is found there is of the test alone.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import time
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from tests.support.watch import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["LiveSocket", "Namespace", "ShapeError", "alone", "joined", "running", "silenced"]

FOLDER = Path("/run/netns")
CLONE_NEWNET = 0x40000000

RTM_NEWNEIGH = 28
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_CREATE = 1, 4, 0x100, 0x400
NDA_DST, NDA_LLADDR, NUD_PERMANENT = 1, 2, 0x80
"""Of linux/socket.h, rtnetlink.h, netlink.h and neighbour.h."""

NOBODY = "02:00:00:00:00:00"

_numbers = count()
_libc = ctypes.CDLL(None, use_errno=True)


class ShapeError(Exception):
    """
    This kernel cannot lose or delay packets that way.
    """


def _run(*command: str, lines: Sequence[str] = ()) -> str:
    given = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ShapeError(f"{' '.join(command)}: {done.stderr.strip()}")  # noqa: TRY003, EM102
    return done.stdout


def _ip(*lines: str, name: str = "") -> None:
    """
    Have one ``ip`` do it all: emulated, each that is started takes a second.
    """
    _run("ip", *(("-netns", name) if name else ()), "-batch", "-", lines=lines)


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


@attrs.frozen
class LiveSocket:
    """
    A socket as ``ss`` shows it.
    """

    state: str
    receive_queue: int
    """Bytes, or connections that wait to be accepted."""
    send_queue: int
    local: tuple[str, int]
    remote: tuple[str, int]
    details: dict[str, str]
    """What stands before and after each colon: ``rtt``, ``bytes_acked``, ``sk`` (the cookie) …"""

    @property
    def cookie(self) -> int:
        return int(self.details["sk"], 16)

    @property
    def rtt_us(self) -> tuple[int, int]:
        """
        Smoothed round trip time and its mean deviation, in µs.
        """
        rtt, _, deviation = self.details["rtt"].partition("/")
        return round(float(rtt) * 1000), round(float(deviation) * 1000)

    @property
    def retransmits(self) -> int:
        return int(self.details.get("retrans", "0/0").rpartition("/")[2])

    def number(self, name: str) -> int:
        """
        Return one of the details that ``ss`` leaves out when they are 0.
        """
        return int(self.details.get(name, "0"))


def _end(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    return address.strip("[]").partition("%")[0], 0 if port == "*" else int(port)


def _parse(line: str) -> LiveSocket:
    words = line.split()
    pairs = (word.split(":", 1) for word in words[5:] if ":" in word)
    details = {name: value for name, value in pairs if name}
    return LiveSocket(
        words[0], int(words[1]), int(words[2]), _end(words[3]), _end(words[4]), details
    )


@attrs.frozen
class Namespace:
    """
    A network namespace of ``ip netns``.
    """

    name: str
    inode: int
    """As the kernel and ``lsns`` name it."""
    ipv4: str
    ipv6: str
    """Its own addresses."""
    device: str
    hardware: str
    """The device's address."""

    @property
    def path(self) -> Path:
        return FOLDER / self.name

    def command(self, *arguments: str | Path) -> list[str]:
        """
        Return the command that runs another one in here.
        """
        return ["nsenter", f"--net={self.path}", "--", *map(str, arguments)]

    def run(self, *arguments: str | Path) -> str:
        """
        Run a command in here and return what it prints.

        Raises:
            ShapeError: with what it complains of.
        """
        return _run(*self.command(*arguments))

    def configure(self, *lines: str) -> None:
        """
        Have one ``ip`` do all of this in here.

        Raises:
            ShapeError: with what it complains of.
        """
        _ip(*lines, name=self.name)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """
        Bring the thread in here while the body runs.
        """
        with open("/proc/thread-self/ns/net", "rb") as home:  # noqa: PTH123
            with self.path.open("rb") as here:
                _set_namespace(here.fileno())
            try:
                yield
            finally:
                _set_namespace(home.fileno())

    def open_socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM
    ) -> socket.socket:
        """
        Return a socket that is in here for as long as it lives, whoever uses it.
        """
        with self.inside():
            return socket.socket(family, kind)

    def listen(
        self, family: int = socket.AF_INET, backlog: int = 16, receive_buffer: int = 0
    ) -> socket.socket:
        """
        Return a socket that listens at a port of the kernel's choice.
        """
        listener = self.open_socket(family)
        if receive_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        listener.bind((self.ipv4 if family == socket.AF_INET else self.ipv6, 0))
        listener.listen(backlog)
        return listener

    def set(self, name: str, value: int) -> None:
        """
        Set one of the namespace's own ``/proc/sys``.
        """
        with self.inside():
            Path("/proc/sys", name).write_text(str(value))

    def counters(self) -> dict[str, int]:
        """
        Return all of ``/proc/net/snmp`` and ``netstat``, as ``Tcp.RetransSegs``.
        """
        found = {}
        with self.inside():
            for name in ("snmp", "netstat"):
                lines = Path("/proc/thread-self/net", name).read_text(encoding="ascii").splitlines()
                for names, values in zip(lines[::2], lines[1::2], strict=True):
                    group, *fields = names.split()
                    numbers = values.split()[1:]
                    for field, number in zip(fields, numbers, strict=True):
                        found[f"{group.rstrip(':')}.{field}"] = int(number)
        return found

    def sockets(self) -> list[LiveSocket]:
        """
        Return what ``ss`` shows of TCP sockets in here, listening ones and those that wait, too.
        """
        lines = self.run("ss", "-tainHOe").splitlines()
        return [_parse(line) for line in lines]

    def datagram_sockets(self) -> list[LiveSocket]:
        """
        Return what ``ss`` shows of UDP sockets in here.
        """
        return [_parse(line) for line in self.run("ss", "-uanH").splitlines()]

    def impair(self, *, loss: float = 0.0, delay_ms: int = 0) -> None:
        """
        Lose and delay what leaves from here, at random, with ``netem``; loss in per cent.

        Raises:
            ShapeError: without ``sch_netem``.
        """
        arguments = ["delay", f"{delay_ms}ms"] if delay_ms else []
        if loss:
            arguments += ["loss", f"{loss}%"]
        self.run(*self._qdisc(), "netem", *arguments)

    def narrow(self, *, rate: str, burst: int, limit: int) -> None:
        """
        Let as much leave from here as passes a token bucket (bytes), and drop what waits beyond.

        Raises:
            ShapeError: without ``sch_tbf``.
        """
        self.run(*self._qdisc(), "tbf", "rate", rate, "burst", str(burst), "limit", str(limit))

    def _qdisc(self) -> tuple[str, ...]:
        return ("tc", "qdisc", "replace", "dev", self.device, "root")

    def meet(self, other: Namespace, hardware: str) -> None:
        """
        Send what is for the other namespace to a hardware address, without asking for it.
        """
        with self.inside(), _rtnetlink() as netlink:
            index = socket.if_nametoindex(self.device)
            for family, address in ((socket.AF_INET, other.ipv4), (socket.AF_INET6, other.ipv6)):
                netlink.send(_neighbour(index, family, address, hardware))
                (error,) = struct.unpack_from("=i", netlink.recv(4096), 16)
                assert error == 0, os.strerror(-error)


@contextmanager
def running(here: Namespace, port: int, *command: str | Path) -> Iterator[subprocess.Popen[str]]:
    """
    Run a server until it has ended, having waited for it to listen at a TCP port.
    """
    with subprocess.Popen(
        here.command(*command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        deadline = time.monotonic() + DEADLINE
        while not any(each.local[1] == port for each in here.sockets()):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
        try:
            yield process
        finally:
            process.kill()


def _rtnetlink() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)


def _neighbour(index: int, family: int, address: str, hardware: str) -> bytes:
    """
    Return a message to rtnetlink; a command that says the same takes a second, emulated.
    """
    target = socket.inet_pton(family, address)
    link = bytes.fromhex(hardware.replace(":", ""))
    body = struct.pack("=BxxxiHBB", family, index, NUD_PERMANENT, 0, 0)
    body += struct.pack("=HH", 4 + len(target), NDA_DST) + target
    body += struct.pack("=HH6sxx", 4 + len(link), NDA_LLADDR, link)
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE
    return struct.pack("=IHHII", 16 + len(body), RTM_NEWNEIGH, flags, 0, 0) + body


@contextmanager
def silenced(one: Namespace, other: Namespace) -> Iterator[None]:
    """
    Lose all that goes from one to the other while the body runs, on its way: neither can tell.

    It goes to a hardware address that nobody has.
    """
    one.meet(other, NOBODY)
    try:
        yield
    finally:
        one.meet(other, other.hardware)


def _name() -> str:
    return f"km-test-{os.getpid()}-{next(_numbers)}"


def _namespace(name: str, ipv4: str, ipv6: str, device: str, hardware: str = "") -> Namespace:
    return Namespace(name, (FOLDER / name).stat().st_ino, ipv4, ipv6, device, hardware)


@contextmanager
def _added(*names: str) -> Iterator[None]:
    _ip(*(f"netns add {name}" for name in names))
    try:
        yield
    finally:
        _ip(*(f"netns del {name}" for name in names))


@contextmanager
def alone() -> Iterator[Namespace]:
    """
    Make a network namespace with nothing but a loopback device.
    """
    name = _name()
    with _added(name):
        _ip("link set lo up", name=name)
        yield _namespace(name, "127.0.0.1", "::1", "lo")


@contextmanager
def joined() -> Iterator[tuple[Namespace, Namespace]]:
    """
    Make two network namespaces that reach each other, and nothing else.

    Raises:
        ShapeError: without ``veth``.
    """
    names = (_name(), _name())
    device = "veth0"
    hardware = ("02:00:00:00:00:01", "02:00:00:00:00:02")
    with _added(*names):
        _ip(
            f"link add {device} address {hardware[0]} netns {names[0]} type veth "
            f"peer name {device} address {hardware[1]} netns {names[1]}"
        )
        one = _namespace(names[0], "198.51.100.1", "2001:db8::1", device, hardware[0])
        two = _namespace(names[1], "198.51.100.2", "2001:db8::2", device, hardware[1])
        for each, other in ((one, two), (two, one)):
            _ip(
                "link set lo up",
                f"addr add {each.ipv4}/24 dev {device}",
                f"addr add {each.ipv6}/64 dev {device} nodad",
                f"link set {device} up",
                name=each.name,
            )
            each.meet(other, other.hardware)
        yield one, two
