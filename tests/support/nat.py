# SPDX-License-Identifier: Apache-2.0
"""
Two network namespaces, one of which translates, and what its own ``conntrack`` says of that.

What is translated is at the near one: of what leaves it, and of what the far one sends to
addresses that nobody has.
"""

from __future__ import annotations

import re
import socket
import struct
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from tests.support.namespaces import Namespace, joined

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["INNER", "VIRTUAL", "Flow", "Translator", "flow_of", "translating"]

ZONE = 7
UNPORTED = 99
"""A protocol without ports that the kernel knows nothing of."""

INNER = {socket.AF_INET: "10.9.9.9", socket.AF_INET6: "2001:db8:9::9"}
"""Addresses that only the near namespace knows of: they are masqueraded."""

VIRTUAL = {socket.AF_INET: "203.0.113.7", socket.AF_INET6: "2001:db8:7::7"}
"""Addresses that nobody has."""
ZONED, BEHIND = "203.0.113.9", "203.0.113.8"
"""One that is in another zone, and one that the near namespace answers for."""

RULES = """
table ip kmtest {{
    chain zones {{
        type filter hook output priority -300;
        ip daddr {zoned} ct zone set {zone}
    }}
    chain output {{
        type nat hook output priority -100;
        ip daddr {virtual} tcp dport {{ 80, 81 }} dnat to {far}:{tcp}
        ip daddr {{ {virtual}, {zoned} }} udp dport 53 dnat to {far}:{udp}
        ip daddr {near} tcp dport 82 redirect to :{own}
    }}
    chain prerouting {{
        type nat hook prerouting priority -100;
        ip daddr {behind} tcp dport 83 dnat to {near}:{own}
    }}
    chain postrouting {{
        type nat hook postrouting priority 100;
        ip saddr {inner} masquerade
        ip daddr {far} tcp dport {tcp} ct original proto-dst 81 snat to {near}:20000-29999
    }}
}}
table ip6 kmtest {{
    chain output {{
        type nat hook output priority -100;
        ip6 daddr {virtual6} tcp dport 80 dnat to [{far6}]:{tcp6}
    }}
    chain postrouting {{
        type nat hook postrouting priority 100;
        ip6 saddr {inner6} masquerade
    }}
}}
"""

_FIELD = re.compile(r"(\w+)=(\S+)")


@attrs.frozen(order=True)
class Flow:
    """
    A connection that is translated: the first packet's ends, and the same behind.
    """

    netns: int
    zone: int
    family: str
    transport: str
    kind: str
    source: tuple[str, int | None]
    destination: tuple[str, int | None]
    translated_source: tuple[str, int | None]
    translated_destination: tuple[str, int | None]


def flow_of(record: Any) -> Flow:
    """
    Return the connection of a record.
    """
    return Flow(
        record.netns,
        record.zone,
        record.family,
        record.transport,
        record.kind,
        (record.source_address, record.source_port),
        (record.destination_address, record.destination_port),
        (record.translated_source_address, record.translated_source_port),
        (record.translated_destination_address, record.translated_destination_port),
    )


def _parse(line: str, netns: int) -> Flow | None:
    """
    Return what a line of ``conntrack -L -o extended`` says; None if nothing is translated.
    """
    words = line.split()
    pairs = _FIELD.findall(line)
    second = [number for number, (name, _) in enumerate(pairs) if name == "src"][1]
    sent, answer = dict(pairs[:second]), dict(pairs[second:])

    def end(fields: dict[str, str], address: str, port: str) -> tuple[str, int | None]:
        return fields[address], int(fields[port]) if port in fields else None

    source, destination = end(sent, "src", "sport"), end(sent, "dst", "dport")
    before, behind = end(answer, "dst", "dport"), end(answer, "src", "sport")
    kinds = {(True, False): "source", (False, True): "destination", (True, True): "both"}
    kind = kinds.get((source != before, destination != behind))
    if kind is None:
        return None
    transport = words[3] if words[2] == "unknown" else words[2]
    return Flow(
        netns,
        int(answer.get("zone", "0")),
        words[0],
        transport,
        kind,
        source,
        destination,
        before,
        behind,
    )


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


class Translator:
    """
    The namespaces, and connections of every kind between them.

    Attributes:
        near: the one that translates.
        far: the other one.
    """

    def __init__(self, near: Namespace, far: Namespace, stack: ExitStack) -> None:
        self.near = near
        self.far = far
        self._stack = stack
        self._connections = stack.enter_context(ExitStack())
        self._servers = {
            "tcp": self._server(far, socket.AF_INET),
            "tcp6": self._server(far, socket.AF_INET6),
            "udp": self._server(far, socket.AF_INET, socket.SOCK_DGRAM),
            "own": self._server(near, socket.AF_INET),
        }
        self._set_up()

    def _server(
        self, here: Namespace, family: int, kind: int = socket.SOCK_STREAM
    ) -> socket.socket:
        server = self._stack.enter_context(here.open_socket(family, kind))
        server.bind(("", 0))
        if kind == socket.SOCK_STREAM:
            server.listen(64)
        return server

    def port(self, name: str) -> int:
        """
        Return the port of a server: ``tcp``, ``tcp6``, ``udp``, or ``own`` of the near one.
        """
        number: int = self._servers[name].getsockname()[1]
        return number

    def _set_up(self) -> None:
        near, far = self.near, self.far
        inner, inner6 = INNER[socket.AF_INET], INNER[socket.AF_INET6]
        near.configure(
            f"address add {inner}/32 dev lo",
            f"address add {inner6}/128 dev lo",
            f"route add 203.0.113.0/24 via {far.ipv4}",
            f"route add 2001:db8:7::/64 via {far.ipv6}",
        )
        far.configure(f"route add {BEHIND} via {near.ipv4}")
        ports = {name: self.port(name) for name in self._servers}
        rules = RULES.format(
            near=near.ipv4, far=far.ipv4, far6=far.ipv6, inner=inner, inner6=inner6,
            virtual=VIRTUAL[socket.AF_INET], virtual6=VIRTUAL[socket.AF_INET6],
            zoned=ZONED, zone=ZONE, behind=BEHIND, **ports,
        )  # fmt: skip
        self._run("nft", rules)

    def _run(self, *command: str) -> str:
        """
        Run a command in the near namespace, without another one that brings it there.
        """
        with self.near.inside():
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    # -- connections ----------------------------------------------------------

    def connect(
        self,
        address: str,
        port: int,
        server: str,
        *,
        here: Namespace | None = None,
        family: int = socket.AF_INET,
        source: str = "",
    ) -> tuple[socket.socket, socket.socket]:
        """
        Return both ends of a connection over TCP.
        """
        one = self._connections.enter_context((here or self.near).open_socket(family))
        if source:
            one.bind((source, 0))
        one.connect((address, port))
        other, _ = self._servers[server].accept()
        return one, self._connections.enter_context(other)

    def send(
        self, address: str, port: int, *, family: int = socket.AF_INET, source: str = ""
    ) -> socket.socket:
        """
        Return a socket of UDP that has sent something.
        """
        one = self._connections.enter_context(self.near.open_socket(family, socket.SOCK_DGRAM))
        if source:
            one.bind((source, 0))
        one.sendto(b"something", (address, port))
        return one

    def ping(self, family: int) -> None:
        """
        Ask for an echo from an address that is translated.
        """
        is_4 = family == socket.AF_INET
        protocol = socket.IPPROTO_ICMP if is_4 else socket.IPPROTO_ICMPV6
        head = struct.pack("!BBHHH", 8 if is_4 else 128, 0, 0, 4711, 1)
        if is_4:  # the kernel does it for IPv6
            head = head[:2] + struct.pack("!H", _checksum(head)) + head[4:]
        self._send_raw(family, protocol, head)

    def send_unported(self) -> None:
        """
        Send a packet of a protocol that has no ports.
        """
        self._send_raw(socket.AF_INET, UNPORTED, b"something")

    def _send_raw(self, family: int, protocol: int, data: bytes) -> None:
        with self.near.inside(), socket.socket(family, socket.SOCK_RAW, protocol) as one:
            one.bind((INNER[family], 0))
            one.sendto(data, (self.far.ipv4 if family == socket.AF_INET else self.far.ipv6, 0))

    def insert(self) -> None:
        """
        Make one without a packet.
        """
        self._run(
            "conntrack", "-I", "-p", "udp", "-t", "600", "--src", "192.0.2.50",
            "--dst", "192.0.2.51", "--sport", "1111", "--dport", "2222", "--src-nat", "192.0.2.52",
        )  # fmt: skip

    def everything(self) -> None:
        """
        Begin a connection of every kind by a packet, and some that are not translated.
        """
        v4, v6 = socket.AF_INET, socket.AF_INET6
        self.connect(VIRTUAL[v4], 80, "tcp")
        self.connect(VIRTUAL[v4], 81, "tcp")
        self.connect(self.near.ipv4, 82, "own")
        self.connect(BEHIND, 83, "own", here=self.far)
        self.connect(VIRTUAL[v6], 80, "tcp6", family=v6)
        self.connect(self.far.ipv4, self.port("tcp"), "tcp")
        self.connect(self.far.ipv6, self.port("tcp6"), "tcp6", family=v6, source=INNER[v6])
        self.send(VIRTUAL[v4], 53)
        self.send(ZONED, 53)
        self.send(self.far.ipv4, self.port("udp"), source=INNER[v4])
        self.send(self.far.ipv4, self.port("udp"))
        self.ping(v4)
        self.ping(v6)
        self.send_unported()

    def close(self) -> None:
        """
        Close the sockets of all connections.
        """
        self._connections.close()

    # -- the truth --------------------------------------------------------------

    def flows(self) -> set[Flow]:
        """
        Return the connections that are translated, as ``conntrack`` says.
        """
        lines = self._run("conntrack", "-L", "-o", "extended").splitlines()
        found = (_parse(line, self.near.inode) for line in lines)
        return {flow for flow in found if flow is not None}

    def are_left(self) -> bool:
        """
        Tell whether there are connections, translated or not.
        """
        with self.near.inside():
            return Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text("ascii") != "0\n"

    def forget(self, *which: str) -> None:
        """
        Have ``conntrack`` delete what its options say; without any, everything.
        """
        self._run("conntrack", *(("-D", *which) if which else ("-F",)))


@contextmanager
def translating() -> Iterator[Translator]:
    """
    Make the namespaces and the rules.
    """
    with joined() as (near, far), ExitStack() as stack:
        yield Translator(near, far, stack)
