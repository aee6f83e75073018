# SPDX-License-Identifier: Apache-2.0
"""
From messages about sockets to records, with the table that remembers between them.

What the messages promise is written in ``lifetime.h``: every socket is announced at
least once and its end comes once.  The table turns "at least once" into once, and when a
ring was full and something is missing, it makes the sequence whole again: whatever is
heard first of a socket starts it.
"""
# ruff: noqa: PLR0913, PLR0917 - a message method takes the fields of its message

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar, TypeVar

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
from kprobe_modules.modules.tcp.table import Socket, SocketTable

from kprobe_modules.api import (
    Handler,
    format_address,
    network_namespaces,
    run_program,
    show_sockets,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager

    from kprobe_modules.api import Context, Record

    _Said = tuple[
        int | None, int | None, int | None, int | None, int,
        str, str, int, str | None, int | None, str | None,
    ]  # fmt: skip
    _Counted = tuple[
        int | None, int | None, int | None, int | None, int | None, int | None, int | None,
        int | None, int | None, int | None, str | None, int | None, int | None, int | None,
        int | None,
    ]  # fmt: skip

__all__ = ["CONGESTION_STATES", "DIRECTIONS", "REASONS", "ROLES", "SIDES", "STATES", "TcpHandler"]

STATES = (
    "", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT",
    "CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV",
)  # fmt: skip
"""``include/net/tcp_states.h``."""

ROLES = (None, "connect", "accept", "listen")
"""``enum km_tcp_role``."""

SIDES = (None, "local", "remote")
"""``enum km_tcp_side``."""

DIRECTIONS = ("sent", "received")
"""``enum km_tcp_direction``."""

REASONS = (
    None, "not_specified", "no_socket", "tcp_invalid_ack_sequence", "tcp_rfc7323_paws",
    "tcp_too_old_ack", "tcp_ack_unsent_data", "tcp_flags", "tcp_old_ack",
    "tcp_abort_on_data", "tcp_timewait_socket", "invalid_syn", "tcp_abort_on_close",
    "tcp_abort_on_linger", "tcp_abort_on_memory", "tcp_state", "tcp_keepalive_timeout",
    "tcp_disconnect_with_data", "mptcp_rst_eunspec", "mptcp_rst_emptcp",
    "mptcp_rst_eresource", "mptcp_rst_eprohibit", "mptcp_rst_ewq2big",
    "mptcp_rst_ebadperf", "mptcp_rst_emiddlebox", "error",
)  # fmt: skip
"""``enum km_tcp_reason``."""

CONGESTION_STATES = ("open", "disorder", "cwr", "recovery", "loss")
"""``enum tcp_ca_state`` of <linux/tcp.h>."""

_CLOSE = STATES.index("CLOSE")
_ESTABLISHED = STATES.index("ESTABLISHED")
_SYN_RECV = STATES.index("SYN_RECV")

_AT_ONCE = 32
"""``KM_TCP_AT_ONCE``: how many sockets one run of ``report_active`` reports."""

_RUNS = 32
"""Of which there are so many in a tick, that rings have time to be drained."""

_Name = TypeVar("_Name", str, "str | None")

_NOTHING_COUNTED: _Counted = (None,) * 15


def _named(names: Sequence[_Name], number: int) -> _Name:
    """
    Return the name of one of the kernel's or our numbers; of a newer one itself, as text.
    """
    return names[number] if number < len(names) else str(number)


def _said(socket: Socket) -> _Said:
    """
    Return the fields that every record about a socket has, but for the time.
    """
    return (
        socket.socket_id,
        socket.pid,
        socket.start_time,
        socket.cgroup_id,
        socket.netns,
        socket.family,
        socket.local_address,
        socket.local_port,
        socket.remote_address,
        socket.remote_port,
        socket.role,
    )


def _said_without(heard: Socket, role: str | None) -> _Said:
    """
    Return the same of what has no socket of its own, but at most a listener's.
    """
    said = _said(heard)
    return (heard.socket_id or None, *said[1:-1], role)


def _socket(
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
    role: int,
    state: int,
) -> Socket:
    """
    Make a socket of what a message says of it.
    """
    listens = _named(ROLES, role) == "listen"
    return Socket(
        socket_id,
        pid or None,
        start_time or None,
        cgroup_id or None,
        netns,
        f"ipv{family}",
        format_address(family, local_address),
        local_port,
        None if listens else format_address(family, remote_address),
        None if listens else remote_port,
        _named(ROLES, role),
        _named(STATES, state),
    )


def _counted(
    role: int,
    bytes_sent: int,
    bytes_acked: int,
    bytes_received: int,
    segments_sent: int,
    segments_received: int,
    retransmits: int,
    out_of_order: int,
    srtt_us: int,
    rttvar_us: int,
    cwnd: int,
    congestion_state: int,
    unacked: int,
    receive_queue: int,
    accept_queue: int,
    accept_queue_limit: int,
) -> _Counted:
    """
    Return the fields that records with counters have, without what means nothing.
    """
    if _named(ROLES, role) == "listen":
        return (*_NOTHING_COUNTED[:-2], accept_queue, accept_queue_limit)
    return (
        bytes_sent,
        bytes_acked,
        bytes_received,
        segments_sent,
        segments_received,
        retransmits,
        out_of_order,
        srtt_us or None,
        rttvar_us if srtt_us else None,
        cwnd,
        _named(CONGESTION_STATES, congestion_state),
        unacked,
        receive_queue,
        None,
        None,
    )


class TcpHandler(Handler):
    """
    Handles the messages of ``messages.h``.
    """

    tick_interval: ClassVar[float] = 0.25

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._table = SocketTable()
        self._report_at = 0
        """When active sockets are to be reported."""
        context.provide("socket_table", self._table)

    # -- messages -----------------------------------------------------------

    def on_new_sock_created(
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
        role: int,
        state: int,
        existing: int,
        listener_id: int,
        handshake_us: int,
    ) -> Iterable[Record]:
        """
        Enter a socket, unless it is known already.
        """
        if self._table.get(socket_id) or self._table.ended(socket_id):
            return ()
        socket = _socket(
            socket_id, start_time, cgroup_id, pid, netns, local_address, remote_address,
            local_port, remote_port, family, role, state,
        )  # fmt: skip
        socket.existing = bool(existing)
        records = [self._open(time, socket, listener_id)]
        if socket.role == "accept" and not existing and state != _SYN_RECV:
            records.append(TcpEstablished(time, *_said(socket), handshake_us * 1000 or None))
        return records

    def on_set_state_ipv4(
        self,
        time: int,
        socket_id: int,
        start_time: int,
        cgroup_id: int,
        pid: int,
        netns: int,
        local_address: int,
        remote_address: int,
        local_port: int,
        remote_port: int,
        role: int,
        state: int,
        old_state: int,
        handshake: int,
    ) -> Iterable[Record]:
        """
        Change the state of a socket with IPv4 addresses.
        """
        heard = _socket(
            socket_id, start_time, cgroup_id, pid, netns, local_address.to_bytes(4, "big"),
            remote_address.to_bytes(4, "big"), local_port, remote_port, 4, role, state,
        )  # fmt: skip
        return self._change(time, heard, old_state, state, handshake)

    def on_set_state_ipv6(
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
        role: int,
        state: int,
        old_state: int,
        handshake: int,
    ) -> Iterable[Record]:
        """
        Change the state of a socket with IPv6 addresses.
        """
        heard = _socket(
            socket_id, start_time, cgroup_id, pid, netns, local_address, remote_address,
            local_port, remote_port, 6, role, state,
        )  # fmt: skip
        return self._change(time, heard, old_state, state, handshake)

    def on_rtt_estimator(
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
        role: int,
        state: int,
        bytes_sent: int,
        bytes_acked: int,
        bytes_received: int,
        segments_sent: int,
        segments_received: int,
        retransmits: int,
        out_of_order: int,
        srtt_us: int,
        rttvar_us: int,
        cwnd: int,
        congestion_state: int,
        unacked: int,
        receive_queue: int,
        accept_queue: int,
        accept_queue_limit: int,
    ) -> Iterable[Record]:
        """
        Report the traffic of a socket that was active.
        """
        heard = _socket(
            socket_id, start_time, cgroup_id, pid, netns, local_address, remote_address,
            local_port, remote_port, family, role, state,
        )  # fmt: skip
        socket, before = self._known(time, heard)
        if socket is None:
            return ()
        counted = _counted(
            role, bytes_sent, bytes_acked, bytes_received, segments_sent, segments_received,
            retransmits, out_of_order, srtt_us, rttvar_us, cwnd, congestion_state, unacked,
            receive_queue, accept_queue, accept_queue_limit,
        )  # fmt: skip
        return (*before, TcpMetrics(time, *(*_said(socket), *counted), _named(STATES, state)))

    on_reset_tcp_counters = on_rtt_estimator

    def on_tcp_syn_timeout(
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
        role: int,
        state: int,
        retransmits: int,
    ) -> Iterable[Record]:
        """
        Report a SYN that was not answered.
        """
        heard = _socket(
            socket_id, start_time, cgroup_id, pid, netns, local_address, remote_address,
            local_port, remote_port, family, role, state,
        )  # fmt: skip
        socket, before = self._known(time, heard)
        if socket is None:
            return ()
        return (*before, TcpSynTimeout(time, *_said(socket), retransmits))

    def on_tcp_synack_timeout(
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
        state: int,
        retransmits: int,
    ) -> Record:
        """
        Report a SYN-ACK that was not acknowledged: there is no socket of its own yet.
        """
        heard = _socket(
            socket_id, start_time, cgroup_id, pid, netns, local_address, remote_address,
            local_port, remote_port, family, 0, state,
        )  # fmt: skip
        return TcpSynackTimeout(time, *_said_without(heard, "listen"), retransmits)

    def on_tcp_reset(
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
        role: int,
        state: int,
        direction: int,
        reason: int,
    ) -> Iterable[Record]:
        """
        Report a reset, of a socket or in answer to what belongs to none.
        """
        listens = _named(ROLES, role) == "listen"
        heard = _socket(
            socket_id, start_time, cgroup_id, pid, netns, local_address, remote_address,
            local_port, remote_port, family, 0 if listens else role, state,
        )  # fmt: skip
        what = _named(DIRECTIONS, direction), _named(REASONS, reason), _named(STATES, state) or None
        if not socket_id or listens:
            return (TcpReset(time, *_said_without(heard, _named(ROLES, role)), *what),)
        ended = self._table.ended(socket_id)
        if ended is not None:
            # A socket that is cut off ends before the reset is sent.
            return (TcpReset(time, *_said(ended), *what),)
        socket, before = self._known(time, heard)
        if socket is None:
            return ()
        return (*before, TcpReset(time, *_said(socket), *what))

    def on_close_sock_info(
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
        role: int,
        state: int,
        existing: int,
        bytes_sent: int,
        bytes_acked: int,
        bytes_received: int,
        segments_sent: int,
        segments_received: int,
        retransmits: int,
        out_of_order: int,
        srtt_us: int,
        rttvar_us: int,
        cwnd: int,
        congestion_state: int,
        unacked: int,
        receive_queue: int,
        accept_queue: int,
        accept_queue_limit: int,
        duration: int,
        error: int,
        closed_first: int,
        missed: int,
    ) -> Iterable[Record]:
        """
        End a socket.
        """
        if missed:
            known = self._table.get(socket_id)
            return (self._end_unseen(time, known),) if known is not None else ()
        heard = _socket(
            socket_id, start_time, cgroup_id, pid, netns, local_address, remote_address,
            local_port, remote_port, family, role, state,
        )  # fmt: skip
        socket, before = self._known(time, heard)
        if socket is None:
            return ()
        self._table.end(socket)
        counted = _counted(
            role, bytes_sent, bytes_acked, bytes_received, segments_sent, segments_received,
            retransmits, out_of_order, srtt_us, rttvar_us, cwnd, congestion_state, unacked,
            receive_queue, accept_queue, accept_queue_limit,
        )  # fmt: skip
        closed = TcpClosed(
            time,
            *(*_said(socket), *counted),
            _named(STATES, state),
            None if existing else duration,
            _named(SIDES, closed_first),
            errno.errorcode.get(error, str(error)) if error else None,
        )
        return (*before, *self._changed(time, socket, state, _CLOSE), closed)

    # -- the table ----------------------------------------------------------

    def _open(self, time: int, socket: Socket, listener_id: int) -> Record:
        """
        Enter a socket.
        """
        if socket.role == "accept" and not listener_id and not socket.existing:
            listener = self._table.listener(socket.netns, socket.local_port)
            if listener is not None:
                listener_id = listener.socket_id
                if self.context.live.get("accept") == "accept_btf":
                    socket.pid, socket.start_time = listener.pid, listener.start_time
                    socket.cgroup_id = listener.cgroup_id
        self._table.add(socket)
        return TcpOpened(time, *_said(socket), socket.state, socket.existing, listener_id or None)

    def _known(self, time: int, heard: Socket) -> tuple[Socket | None, tuple[Record, ...]]:
        """
        Return the socket of a message, started first if its start was lost.

        None when the message is about a socket that has ended for us.
        """
        known = self._table.get(heard.socket_id)
        if known is None:
            if self._table.ended(heard.socket_id) is not None:
                return None, ()
            heard.existing = True
            return heard, (self._open(time, heard, 0),)
        known.state = heard.state
        if heard.pid is not None and heard.pid != known.pid:
            # It was found in the queue of its listener, and has been accepted since.
            known.pid, known.start_time = heard.pid, heard.start_time
            known.cgroup_id = heard.cgroup_id
        if heard.local_port and known.local_port != heard.local_port:
            # The kernel has chosen one since.
            self._table.set_port(known, heard.local_port)
        return known, ()

    def _change(
        self, time: int, heard: Socket, old_state: int, new_state: int, handshake: int
    ) -> Iterable[Record]:
        socket, before = self._known(time, heard)
        if socket is None:
            return ()
        records = [*before, *self._changed(time, socket, old_state, new_state)]
        if new_state == _ESTABLISHED and socket.role == "connect":
            records.append(TcpEstablished(time, *_said(socket), handshake or None))
        return records

    def _changed(self, time: int, socket: Socket, old: int, new: int) -> Iterable[Record]:
        if self.context.tunables["state_changes"]:
            yield TcpStateChanged(time, *_said(socket), _named(STATES, old), _named(STATES, new))

    def _report_active(self) -> bool:
        """
        Let the kernel report sockets that were active; tell whether that was all.
        """
        fd = self.context.program_fd
        for _ in range(_RUNS):
            reported = self.context.observe(
                "report_active", lambda: run_program(fd("report_active")).to_bytes(4, "little")
            )
            if int.from_bytes(reported, "little") < _AT_ONCE:
                return True
        return False

    def _end_unseen(self, time: int, socket: Socket) -> Record:
        """
        End a socket whose end was missed.
        """
        self._table.end(socket)
        said = *_said(socket), *_NOTHING_COUNTED
        return TcpClosed(time, *said, socket.state, None, None, None)

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
        show_sockets(self.context, ("tcp", "tcp6"))

    def steady(self, *, resync: bool) -> Iterable[Record]:
        """
        After a loss, look for sockets whose end was lost.
        """
        if resync:
            self._table.compare(self.context.map("tcp_open_sockets"))
        return ()

    def tick(self, now: int) -> Iterable[Record]:
        """
        Have active sockets reported; end those that nobody has seen ending.
        """
        interval = self.context.tunables["metrics_interval_ms"] * 1_000_000
        if interval and now >= self._report_at and self._report_active():
            self._report_at = now + interval
        self._table.warn_of_forgotten(self.context)
        return [self._end_unseen(now, socket) for socket in self._table.gone(now)]
