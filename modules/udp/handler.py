# SPDX-License-Identifier: Apache-2.0
"""
From messages about sockets to records, with the table that remembers between them.

What the messages promise is written in ``lifetime.h`` and ``traffic.h``: every socket is
announced at least once and its end comes once, and every datagram is in one ``udp_stats``.
The table turns "at least once" into once, and when a ring was full and something is
missing, it makes the sequence whole again: whatever is heard first of a socket starts it.

What is told of traffic may still be in the kernel when a socket ends.  Then the end waits
for it here, a fraction of a second unless there is very much.
"""
# ruff: noqa: PLR0913, PLR0917 - a message method takes the fields of its message

from __future__ import annotations

from itertools import islice
from struct import Struct
from typing import TYPE_CHECKING, ClassVar

import attrs
from kprobe_modules.modules.udp.check import OpenCheck
from kprobe_modules.modules.udp.records import UdpClosed, UdpDropped, UdpOpened, UdpTraffic
from kprobe_modules.modules.udp.table import Socket, SocketTable

from kprobe_modules.api import (
    Handler,
    format_address,
    network_namespaces,
    run_program,
    show_sockets,
    wait_for_programs,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from kprobe_modules.api import Context, Record

    _Owner = tuple[int, int | None, int | None, int | None, int | None]
    _Ends = tuple[str, str, int, str | None, int | None]
    _Totals = tuple[int | None, int | None, int | None, int | None, int | None, int | None]

__all__ = ["ORIGINS", "UdpHandler"]

ORIGINS = ("bound", "used", "found")
"""``enum km_udp_origin``."""

_USED, _FOUND = map(ORIGINS.index, ("used", "found"))

_AT_ONCE = 32
"""``KM_UDP_AT_ONCE``: how many flows one run of ``report_traffic`` reports; it returns more
when the ring is full."""

_RUNS = 32
"""Of which there are so many in a tick, that rings have time to be drained."""

_HURRY_NS = 200_000_000
"""How long at least from one generation to the next while sockets wait for their traffic:
each change waits for all programs that run."""

_ENDED_AT_ONCE = 4096
"""How many sockets that have waited are ended in a tick, or half of them if those are more:
others wait meanwhile."""

_CYCLES = 2
"""A flow is in one of two generations, so it is told when both have been taken out."""

_INDEX = bytes(4)
_NUMBER = Struct("<I")

_NOTHING_COUNTED: _Totals = (None,) * 6


def _owner(socket: Socket) -> _Owner:
    """
    Return the fields with which every record about a socket begins, but for the time.
    """
    return (socket.socket_id, socket.pid, socket.start_time, socket.cgroup_id, socket.netns)


def _ends(socket: Socket) -> _Ends:
    """
    Return the fields behind these.
    """
    return (
        socket.family,
        socket.local_address,
        socket.local_port,
        socket.remote_address,
        socket.remote_port,
    )


@attrs.define(eq=False)
class _Closing:
    """
    A socket that has ended, some of whose traffic is still in the kernel.
    """

    socket: Socket
    ends: _Ends
    totals: _Totals
    flows: int
    """How many more messages of its traffic are to come; 0 or less: nobody knows."""
    until: int
    """Not longer than until the kernel's flows have been taken out so many times."""

    def closed(self, time: int) -> Record:
        return UdpClosed(time, *_owner(self.socket), *self.ends, *self.totals)


class UdpHandler(Handler):
    """
    Handles the messages of ``messages.h``.
    """

    tick_interval: ClassVar[float] = 0.05
    """So that much traffic is told as fast as the rings are read."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._interval = context.tunables["traffic_interval_ms"] * 1_000_000
        self._table = SocketTable()
        self._closing: dict[int, _Closing] = {}
        self._check = OpenCheck(context)
        self._scanned = False
        self._report_at = 0
        """When traffic is to be reported."""
        self._hurry_at = 0
        """The same while sockets wait for their traffic."""
        self._generation = 0
        """Of the flows that are being counted; the other ones are being reported."""
        self._reporting = False
        """Whether flows of the other generation may be left."""
        self._cycles = 0
        """How often all flows of a generation have been reported."""
        context.provide("udp_socket_table", self._table)

    # -- messages -----------------------------------------------------------

    def on_udp_new_socket(
        self,
        time: int,
        socket_id: int,
        start_time: int,
        cgroup_id: int,
        pid: int,
        netns: int,
        local_address: bytes,
        remote_address: bytes,
        local_port: int,
        remote_port: int,
        family: int,
        origin: int,
    ) -> Iterable[Record]:
        """
        Enter a socket, unless it is known already.
        """
        if self._table.get(socket_id) or self._table.ended(socket_id):
            return ()
        socket = self._heard(
            socket_id, start_time, cgroup_id, pid, netns, local_address, remote_address,
            local_port, remote_port, family, origin,
        )  # fmt: skip
        return (self._open(time, socket),)

    def on_udp_stats(
        self,
        time: int,
        socket_id: int,
        start_time: int,
        cgroup_id: int,
        pid: int,
        netns: int,
        local_address: bytes,
        remote_address: bytes,
        local_port: int,
        remote_port: int,
        family: int,
        origin: int,
        datagrams_sent: int,
        bytes_sent: int,
        datagrams_received: int,
        bytes_received: int,
        drops: int,
    ) -> Iterable[Record]:
        """
        Report what went between a socket and a peer, and what it has dropped.
        """
        heard = self._heard(
            socket_id, start_time, cgroup_id, pid, netns, local_address, remote_address,
            local_port, remote_port, family, origin,
        )  # fmt: skip
        socket, records = self._known(time, heard)
        said = *_owner(socket), *_ends(heard)
        if datagrams_sent:
            records.append(UdpTraffic(time, *said, "sent", datagrams_sent, bytes_sent))
        if datagrams_received:
            records.append(UdpTraffic(time, *said, "received", datagrams_received, bytes_received))
        records += self._dropped(time, socket, drops)
        closing = self._closing.get(socket_id)
        if closing is not None:
            closing.flows -= 1
            if not closing.flows:
                records.append(self._close(time, closing))
        elif not netns and self._table.get(socket_id):
            # The kernel's side has ended it, and the message that says so may be lost.
            self._end_unseen(socket)
        return records

    def on_udp_destroy_socket(
        self,
        time: int,
        socket_id: int,
        start_time: int,
        cgroup_id: int,
        pid: int,
        netns: int,
        local_address: bytes,
        remote_address: bytes,
        local_port: int,
        remote_port: int,
        family: int,
        origin: int,
        datagrams_sent: int,
        bytes_sent: int,
        datagrams_received: int,
        bytes_received: int,
        duration: int,
        drops: int,
        flows: int,
        missed: int,
    ) -> Iterable[Record]:
        """
        End a socket, at once or when its traffic has been told.
        """
        if self._table.ended(socket_id) or (missed and not self._table.get(socket_id)):
            return ()
        heard = self._heard(
            socket_id, start_time, cgroup_id, pid, netns, local_address, remote_address,
            local_port, remote_port, family, origin,
        )  # fmt: skip
        socket, records = self._known(time, heard)
        records += self._dropped(time, socket, drops)
        totals = (
            None if socket.existing or missed else duration,
            datagrams_sent,
            bytes_sent,
            datagrams_received,
            bytes_received,
            max(drops, socket.drops),
        )
        ends = _ends(socket if missed else heard)
        closing = _Closing(socket, ends, totals, flows, self._all_told())
        if flows:
            self._closing[socket_id] = closing
        else:
            records.append(self._close(time, closing))
        return records

    # -- the table ----------------------------------------------------------

    def _heard(
        self,
        socket_id: int,
        start_time: int,
        cgroup_id: int,
        pid: int,
        netns: int,
        local_address: bytes,
        remote_address: bytes,
        local_port: int,
        remote_port: int,
        family: int,
        origin: int,
    ) -> Socket:
        """
        Make a socket of what a message says of it.
        """
        return Socket(
            socket_id,
            pid or None,
            start_time or None,
            cgroup_id or None,
            netns or None,
            f"ipv{family}",
            format_address(family, local_address),
            local_port,
            format_address(family, remote_address) if remote_port else None,
            remote_port or None,
            self._existed(origin),
        )

    def _existed(self, origin: int) -> bool:
        """
        Tell whether a socket was there before, by how it was met.
        """
        if origin != _USED:
            return origin == _FOUND
        # Where no hook sees sockets getting a port, all are met like that.
        return self.context.live.get("bind") != "used_send_btf" or not self._scanned

    def _open(self, time: int, socket: Socket) -> Record:
        self._table.add(socket)
        return UdpOpened(time, *_owner(socket), *_ends(socket), socket.existing)

    def _known(self, time: int, heard: Socket) -> tuple[Socket, list[Record]]:
        """
        Return the socket of a message, started first if its start was lost.
        """
        known = self._table.get(heard.socket_id) or self._table.ended(heard.socket_id)
        if known is not None:
            return known, []
        heard.existing = True
        return heard, [self._open(time, heard)]

    def _dropped(self, time: int, socket: Socket, drops: int) -> Iterable[Record]:
        if drops > socket.drops:
            yield UdpDropped(time, *_owner(socket), *_ends(socket), drops - socket.drops)
            socket.drops = drops

    def _close(self, time: int, closing: _Closing) -> Record:
        self._closing.pop(closing.socket.socket_id, None)
        self._table.end(closing.socket)
        return closing.closed(time)

    def _end_unseen(self, socket: Socket) -> None:
        """
        Have a socket whose end was missed ended when its traffic has been told.
        """
        self._closing[socket.socket_id] = _Closing(
            socket, _ends(socket), _NOTHING_COUNTED, 0, self._all_told()
        )

    def _all_told(self) -> int:
        """
        Return how many cycles there have been when all that is counted by now has been told.
        """
        return self._cycles + (_CYCLES if self._interval else 0)

    # -- traffic ------------------------------------------------------------

    def _report_traffic(self, now: int) -> None:
        """
        Have the kernel report what was counted, as far as that is to be done now.
        """
        if not self._reporting:
            if now < self._report_at and (not self._closing or now < self._hurry_at):
                return
            self._report_at = now + self._interval
            self._hurry_at = now + _HURRY_NS
            self._reporting = True
            if not self._change_generation():
                return  # where nobody can wait for programs, a tick has to do
        if self._report_flows():
            self._reporting = False
            self._cycles += 1

    def _change_generation(self) -> bool:
        """
        Let the kernel count in other flows; tell whether nobody counts in the old ones any more.
        """
        self._generation ^= 1
        self.context.map("flow_generation").update(_INDEX, _NUMBER.pack(self._generation))
        return bool(
            self.context.observe("wait_for_programs", lambda: b"\1" if wait_for_programs() else b"")
        )

    def _report_flows(self) -> bool:
        """
        Let the kernel report flows of the other generation; tell whether that was all.
        """
        fd = self.context.program_fd
        for _ in range(_RUNS):
            raw = self.context.observe(
                "report_traffic", lambda: _NUMBER.pack(run_program(fd("report_traffic")))
            )
            (reported,) = _NUMBER.unpack(raw)
            if reported != _AT_ONCE:
                return bool(reported < _AT_ONCE)
        return False

    # -- the rest of a module's life ----------------------------------------

    def surroundings(self, hook: str) -> Iterable[AbstractContextManager[object]]:
        """
        Let the iterator over sockets walk in each network namespace.
        """
        if hook == "existing_rest":
            return network_namespaces(self.context.proc_root)
        return super().surroundings(hook)

    def poke(self, hook: str) -> None:
        """
        Make the kernel show every socket, having told it who has which.
        """
        del hook
        show_sockets(self.context, ("udp", "udp6"))

    def steady(self, *, resync: bool) -> Iterable[Record]:
        """
        After a loss, look for sockets whose end was lost.
        """
        self._scanned = True
        if resync:
            self._table.compare(self.context.map("udp_open_sockets"))
        return ()

    def tick(self, now: int) -> Iterable[Record]:
        """
        Have traffic reported; end those that nobody has seen ending.
        """
        # What was reported in the ticks before has been handled by now.
        done = [closing for closing in self._closing.values() if self._cycles >= closing.until]
        at_once = max(_ENDED_AT_ONCE, len(done) // 2)
        records = [self._close(now, closing) for closing in islice(done, at_once)]
        if self._interval:
            self._report_traffic(now)
        self._check.tick(now)
        self._table.warn_of_forgotten(self.context)
        for socket in self._table.gone(now):
            if socket.socket_id not in self._closing:
                self._end_unseen(socket)
        return records
