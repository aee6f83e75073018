# SPDX-License-Identifier: Apache-2.0
"""
TCP connections that end in every way there is, and the truth about both their ends.

The truth comes from the workload's own socket calls, which know nothing of BPF.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from tests.support.compiled import compiled
from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.namespaces import Namespace

__all__ = ["RESETS", "End", "Key", "build", "connections_command", "plain", "read_ends"]

SOURCE = Path(__file__).with_name("connections.c")

RESETS = {
    "client_reset": "connect",
    "server_reset": "accept",
    "client_unread": "connect",
    "server_unread": "accept",
}
"""Of the kinds that end with a reset, whose end sends it."""

CLOSES_FIRST = RESETS | {
    "client_first": "connect",
    "server_first": "accept",
    "half_close": "connect",
    "queued": "accept",
    "refused": "accept",
    "passed": "connect",
    "listener": "listen",
}
"""Whose end closes first."""

Key = tuple[str, int, str | None, int | None]
"""Role, local port, remote address and port."""


def plain(address: str) -> str:
    """
    Return an address without the prefix that maps IPv4 into IPv6.
    """
    return address.removeprefix("::ffff:")


@attrs.frozen
class End:
    """
    What the workload knows of one of its sockets.  Times are CLOCK_MONOTONIC in ns.
    """

    index: int
    """Of the connection; both ends have the same.  -1 of listeners."""
    kind: str
    role: str
    opener: int
    """The process that had it first."""
    closer: int
    """The process that closed it last."""
    local_address: str
    local_port: int
    remote_address: str
    remote_port: int
    opening: int
    """Before it was asked for."""
    opened: int
    """When it was there; 0 if it never was."""
    closing: int
    """Before it was closed."""
    closed: int
    sent: int
    """Bytes that send took."""
    received: int
    """Bytes that recv gave."""
    unread: int
    """Bytes that waited when it was closed."""
    unsent: int
    """Bytes that the kernel had not sent yet when it was closed."""
    error: str

    @property
    def key(self) -> Key:
        """
        What names it in its network namespace, as records tell addresses.
        """
        if self.role == "listen":
            return self.role, self.local_port, None, None
        return self.role, self.local_port, plain(self.remote_address), self.remote_port

    @property
    def plain_local(self) -> str:
        return plain(self.local_address)

    @property
    def family(self) -> str:
        address = self.local_address if self.role == "listen" else self.remote_address
        return "ipv6" if ":" in plain(address) else "ipv4"

    @property
    def first(self) -> bool:
        """
        Whether it, and not the other end, closes or resets first.
        """
        return CLOSES_FIRST.get(self.kind) == self.role

    @property
    def arrived(self) -> int:
        """
        Bytes that the other end got through to this one's kernel.
        """
        return self.received + self.unread


def build() -> Path:
    """
    Return the workload's program.
    """
    compiler = needs.command("cc", "gcc")
    return compiled([compiler, "-O2", "-Wall", "-Werror", "-static"], [SOURCE])


def connections_command(count: int, client: Namespace, server: Namespace) -> list[str]:
    """
    Return the command that makes *count* connections from one namespace to the other.
    """
    return client.command(build(), str(count), server.ipv4, server.ipv6, server.path)


def read_ends(output: str) -> Sequence[End]:
    """
    Parse what the workload said.
    """
    return [End(**json.loads(line)) for line in output.splitlines()]
