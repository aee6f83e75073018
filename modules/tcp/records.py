# SPDX-License-Identifier: Apache-2.0
"""
What the tcp module says: one record class for each thing that can happen.

The field names are a contract: they are the keys of the JSON output.  A socket is
named by ``socket_id``, which is not used again while the machine is up.
"""

from __future__ import annotations

import attrs

from kprobe_modules.api import Record

__all__ = [
    "TcpClosed",
    "TcpEstablished",
    "TcpMetrics",
    "TcpOpened",
    "TcpReset",
    "TcpStateChanged",
    "TcpSynTimeout",
    "TcpSynackTimeout",
]


@attrs.define(eq=False, repr=False)
class _TcpRecord(Record):
    """
    What every record about a socket has.
    """

    socket_id: int | None
    """Names one connection, or one listener, from its beginning to its end: a socket that is
    connected again after that gets another one.  None in a `TcpReset` and a
    `TcpSynackTimeout` that belong to no socket that was told of."""
    pid: int | None
    """Process id (tgid) of the owner in the initial PID namespace: who called connect,
    listen or accept, or, if it was found, who holds it.  None if no process has it."""
    start_time: int | None
    """When the owner started, in nanoseconds since boot: names it, with ``pid``."""
    cgroup_id: int | None
    """Id of the owner's cgroup, as in the records of processes."""
    netns: int | None
    """Inode number of the network namespace, as in ``/proc/PID/ns/net``."""
    family: str
    """``ipv4`` or ``ipv6``, by the addresses: IPv4 addresses that an AF_INET6 socket maps
    (``::ffff:192.0.2.1``) are told as ``ipv4`` and ``192.0.2.1``."""
    local_address: str
    local_port: int
    remote_address: str | None
    """None for a listener, as is ``remote_port``."""
    remote_port: int | None
    role: str | None
    """``connect``, ``accept`` or ``listen``.  None in a `TcpReset` that belongs to no socket."""


@attrs.define(eq=False, repr=False)
class _Counted(_TcpRecord):
    """
    What is known of the traffic of a socket, from its beginning.

    None for a listener, but for the last two.
    """

    bytes_sent: int | None
    """What the process has written: acknowledged, on its way, or waiting to be sent."""
    bytes_acked: int | None
    """How much of that the other side has acknowledged."""
    bytes_received: int | None
    """What has arrived in order, read by the process or not."""
    segments_sent: int | None
    """Retransmitted ones and those without data included."""
    segments_received: int | None
    retransmits: int | None
    """Segments that were sent again, SYNs included."""
    out_of_order: int | None
    """Segments that arrived before an earlier one."""
    srtt_us: int | None
    """Smoothed round-trip time in microseconds; None before the first measurement, as
    is ``rttvar_us``."""
    rttvar_us: int | None
    """Its mean deviation in microseconds."""
    cwnd: int | None
    """Congestion window in segments."""
    congestion_state: str | None
    """``open``, ``disorder``, ``cwr``, ``recovery`` or ``loss``."""
    unacked: int | None
    """Segments that were sent and not acknowledged."""
    receive_queue: int | None
    """Bytes that have arrived in order and were not read."""
    accept_queue: int | None
    """Connections that wait to be accepted; None unless it listens."""
    accept_queue_limit: int | None
    """How many of them the listener lets wait."""


@attrs.define(eq=False, repr=False)
class TcpOpened(_TcpRecord, module="tcp"):
    """
    A process connects, listens, or has accepted; or such a socket was found.

    First of the records of a socket.
    A connection that no process has accepted when it ends is told at its end, with no
    owner.
    """

    state: str
    """State at this moment, such as ``SYN_SENT``, ``ESTABLISHED`` or ``LISTEN``."""
    existing: bool
    """Whether it was found rather than seen being opened.  A `TcpMetrics` with what was
    counted until then follows, for all but listeners."""
    listener_id: int | None
    """For an accepted one the socket that listens, if that is known."""


@attrs.define(eq=False, repr=False)
class TcpEstablished(_TcpRecord, module="tcp"):
    """
    A handshake is complete.

    For an accepted socket this follows `TcpOpened`: it is told when a process accepts,
    and no change of state to ``ESTABLISHED`` is.
    """

    handshake: int | None
    """Nanoseconds: for ``connect`` from the call to the answer, for ``accept`` from our
    SYN-ACK to its acknowledgement (rounded to microseconds; None if it was sent twice)."""


@attrs.define(eq=False, repr=False)
class TcpStateChanged(_TcpRecord, module="tcp"):
    """
    The state of a socket that was told as opened has changed.

    Told of every change, also those that have a record of their own, which follows;
    unless the tunable ``state_changes`` is 0.  ``TIME_WAIT`` never comes: the kernel
    replaces the socket, which closes.
    """

    old_state: str
    new_state: str


@attrs.define(eq=False, repr=False)
class TcpMetrics(_Counted, module="tcp"):
    """
    Counters and gauges of a socket that was active, once per interval.

    The interval is the tunable ``metrics_interval_ms``.
    """

    state: str


@attrs.define(eq=False, repr=False)
class TcpSynTimeout(_TcpRecord, module="tcp"):
    """
    A SYN was not answered in time, and is sent again.
    """

    retransmits: int
    """How many times, this one included."""


@attrs.define(eq=False, repr=False)
class TcpSynackTimeout(_TcpRecord, module="tcp"):
    """
    A SYN-ACK was not acknowledged in time, and is sent again.

    There is no connection yet: ``socket_id`` and owner are the listener's, ``role`` is
    ``listen``, the addresses are those of the connection that is being made.
    """

    retransmits: int
    """How many times, this one included."""


@attrs.define(eq=False, repr=False)
class TcpReset(_TcpRecord, module="tcp"):
    """
    A connection was reset; or a segment that belongs to none was answered with a reset.

    What a process cuts off has ended before its reset is sent: then this follows
    `TcpClosed`.  An answer to a segment that a listener cannot use bears the listener's
    ``socket_id``, owner and role, and the addresses of the segment.
    """

    direction: str
    """``sent`` or ``received``."""
    reason: str | None
    """The kernel's name of its reason, in lower case, such as ``no_socket`` or
    ``tcp_abort_on_data``.  None if the kernel gives none (before 6.10; received)."""
    state: str | None
    """State before the reset; None if it belongs to no socket."""


@attrs.define(eq=False, repr=False)
class TcpClosed(_Counted, module="tcp"):
    """
    A connection, a try to connect, or a listener has come to its end.

    That is when the state becomes ``CLOSE``: everything that was written is acknowledged
    by then, or given up, though the process may have closed its socket long ago.
    """

    state: str
    """State before."""
    duration: int | None
    """Nanoseconds since it was opened (accepted ones: since the last ACK of the handshake,
    waiting to be accepted included), suspend excluded; None if it was found."""
    closed_first: str | None
    """``local`` or ``remote``: who sent the first FIN or reset.  None if neither, as for
    what timed out, or if that was before it was found."""
    error: str | None
    """The error that ended it, such as ``ECONNREFUSED``, ``ECONNRESET``, ``ETIMEDOUT``."""
