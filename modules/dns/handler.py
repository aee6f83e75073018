# SPDX-License-Identifier: Apache-2.0
"""
From packets to records: queries, their responses, and what was never answered.
"""
# ruff: noqa: PLR0913, PLR0917 - a message method takes the fields of its message

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kprobe_modules.modules.dns.codes import class_text, opcode_text, rcode_text, type_text
from kprobe_modules.modules.dns.message import HEADER_SIZE, MessageError, parse
from kprobe_modules.modules.dns.queries import OPEN_COUNT, QueryTable
from kprobe_modules.modules.dns.records import DnsQuery, DnsResponse, DnsTimeout
from kprobe_modules.modules.dns.routes import Packets
from kprobe_modules.modules.dns.streams import STREAM_COUNT, StreamTable

from kprobe_modules.api import Handler, format_address

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kprobe_modules.modules.dns.message import Message
    from kprobe_modules.modules.dns.queries import Asked, Key, Query, Said

    from kprobe_modules.api import Context, Record

    _Where = tuple[
        int, int | None, int | None, int | None, int, str, str, int, str, int
    ]  # fmt: skip

__all__ = ["DIRECTIONS", "TRANSPORTS", "DnsHandler"]

DIRECTIONS = ("sent", "received")
"""``enum km_dns_direction``."""

TRANSPORTS = ("udp", "tcp")
"""``enum km_dns_transport``."""

COMPLAIN_NS = 10_000_000_000
"""How often the log says what could not be told."""

_SENT = DIRECTIONS.index("sent")
_TCP = TRANSPORTS.index("tcp")


def _transport(number: int) -> str:
    """
    Return the name of a transport; of a newer one its number, as text.
    """
    return TRANSPORTS[number] if number < len(TRANSPORTS) else str(number)


def _role(direction: int, *, response: bool) -> str:
    """
    Return the side that sends queries and receives responses, or the other one.
    """
    return "client" if (direction == _SENT) != response else "server"


class DnsHandler(Handler):
    """
    Handles the messages of ``messages.h``.
    """

    tick_interval: ClassVar[float] = 0.25

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._queries = QueryTable(context.tunables["timeout_ms"] * 1_000_000)
        self._packets = Packets()
        self._streams = StreamTable()
        self._unreadable = 0
        """How many messages were none."""
        self._complain_at = 0

    # -- messages -----------------------------------------------------------

    def on_dns_packet(
        self,
        time: int,
        socket_id: int,
        udp_socket_id: int,
        start_time: int,
        cgroup_id: int,
        pid: int,
        netns: int,
        family: int,
        local_address: bytes,
        remote_address: bytes,
        local_port: int,
        remote_port: int,
        direction: int,
        transport: int,
        route: int,
        packet: int,
        offset: int,
        total_length: int,
        payload: bytes,
    ) -> Iterable[Record]:
        """
        Tell of a datagram, or of the messages that end in a piece of a stream.
        """
        if packet and self._packets.repeated(time, packet, socket_id, direction, route, payload):
            return ()
        records = self._expire(time)
        where = (
            udp_socket_id or socket_id,
            pid or None,
            start_time or None,
            cgroup_id or None,
            netns,
            f"ipv{family}",
            format_address(family, local_address),
            local_port,
            format_address(family, remote_address),
            remote_port,
        )
        peer = remote_address, remote_port
        messages = [(payload, total_length)]
        if transport == _TCP:
            messages = self._streams.feed(socket_id, direction, offset, payload, total_length)
        for data, length in messages:
            try:
                message = parse(data, length)
            except MessageError:
                self._unreadable += 1
                # What is too short has lost its beginning; what is not was never DNS.
                if transport == _TCP and len(data) >= HEADER_SIZE:
                    self._streams.give_up(socket_id, direction)
                    break
                continue
            records.append(self._tell(time, message, socket_id, where, peer, direction, transport))
        return records

    def on_dns_socket_closed(self, time: int, socket_id: int) -> Iterable[Record]:
        """
        End the queries of a socket.
        """
        records = self._expire(time)
        self._streams.close(socket_id)
        records += [
            _timeout(time, query, socket_closed=True) for query in self._queries.close(socket_id)
        ]
        return records

    # -- the table ----------------------------------------------------------

    def _tell(
        self,
        time: int,
        message: Message,
        socket_id: int,
        where: _Where,
        peer: tuple[bytes, int],
        direction: int,
        transport: int,
    ) -> Record:
        role = _role(direction, response=message.qr)
        key = (role, *peer, message.id)
        asked, question = _question(message)
        said = (
            *where, role, _transport(transport), message.id, opcode_text(message.opcode), *question,
        )  # fmt: skip
        if message.qr:
            return self._respond(time, message, socket_id, key, asked, said)
        query = self._queries.ask(time, socket_id, key, asked, said)
        return DnsQuery(time, *said, query.retries, message.rd)

    def _respond(
        self,
        time: int,
        message: Message,
        socket_id: int,
        key: Key,
        asked: Asked | None,
        said: Said,
    ) -> Record:
        query = self._queries.find(socket_id, key, asked)
        latency = retries = None
        duplicate = late = False
        if query is not None:
            latency, retries = max(time - query.time, 0), query.retries
            duplicate, late = query.answered, query.timed_out
            self._queries.answer(time, query)
        return DnsResponse(
            time,
            *said,
            rcode_text(message.rcode),
            message.answers,
            message.aa,
            message.tc,
            message.cut or message.malformed,
            latency,
            retries,
            duplicate,
            late,
        )

    def _expire(self, time: int) -> list[Record]:
        return [_timeout(time, query, socket_closed=False) for query in self._queries.expired(time)]

    # -- the rest of a module's life ----------------------------------------

    def tick(self, now: int) -> Iterable[Record]:
        """
        Tell of queries that were not answered in time.
        """
        if now >= self._complain_at:
            self._complain_at = now + COMPLAIN_NS
            self._complain()
        return self._expire(now)

    def detached(self) -> None:
        """
        Log what could not be told since the log was written last.
        """
        self._complain()

    def _complain(self) -> None:
        """
        Log what could not be told since the last time.
        """
        queries, streams, warn = self._queries, self._streams, self.context.log.warning
        if queries.forgotten:
            warn("%d queries were forgotten: over %d are open", queries.forgotten, OPEN_COUNT)
        if streams.forgotten:
            warn("%d streams were forgotten: over %d exist", streams.forgotten, STREAM_COUNT)
        if streams.given_up:
            warn("%d streams were given up: something was missing or no DNS", streams.given_up)
        if self._unreadable:
            warn("%d messages could not be read", self._unreadable)
        queries.forgotten = streams.forgotten = streams.given_up = self._unreadable = 0


def _question(
    message: Message,
) -> tuple[Asked | None, tuple[str | None, str | None, str | None]]:
    """
    Return the question of a message for comparing, and as records have it.
    """
    name, rdtype, rdclass = message.question_name, message.question_type, message.question_class
    if name is None or rdtype is None or rdclass is None:
        return None, (None, None, None)
    # Case is the client's own business, and may be random to make answers hard to forge.
    return (name.lower(), rdtype, rdclass), (name, type_text(rdtype), class_text(rdclass))


def _timeout(time: int, query: Query, *, socket_closed: bool) -> Record:
    return DnsTimeout(time, *query.said, max(time - query.time, 0), query.retries, socket_closed)
