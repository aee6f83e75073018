# SPDX-License-Identifier: Apache-2.0
"""
The messages of the dns module as they come, and DNS traffic whose every byte is known.
"""

from __future__ import annotations

from socket import AF_INET, AF_INET6, inet_ntop
from typing import TYPE_CHECKING

import attrs
from kprobe_modules.modules.dns import MODULE

from kprobe_modules.api import Handler, Record

if TYPE_CHECKING:
    from kprobe_modules.api import Manifest

__all__ = ["RAW_MODULE", "Packet", "SocketClosed"]


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
            family,
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
