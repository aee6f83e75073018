# SPDX-License-Identifier: Apache-2.0
"""
What the udp module says: one record class for each thing that can happen.

The field names are a contract: they are the keys of the JSON output.  A socket is
named by ``socket_id``, which is not used again while the machine is up.  Datagrams
and bytes are those that a process sent or read, and bytes are payload.
"""

from __future__ import annotations

import attrs

from kprobe_modules.api import Record

__all__ = ["UdpClosed", "UdpDropped", "UdpOpened", "UdpTraffic"]


@attrs.define(eq=False, repr=False)
class _UdpRecord(Record):
    """
    What every record about a socket has.
    """

    socket_id: int
    """Names one socket from its first port to its end, whatever it is bound and connected to
    meanwhile."""
    pid: int | None
    """Process id (tgid) of the owner in the initial PID namespace: who bound the socket, by
    bind, connect or the first send, or, if it was found, who holds it.  None if no process
    does, as of the kernel's own."""
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
    """What the socket is bound to, such as ``0.0.0.0``; in a `UdpTraffic` the address that the
    datagrams came from or went to, a group's if that is where they were sent."""
    local_port: int
    remote_address: str | None
    """The peer: in a `UdpTraffic` whose datagrams these are, else whom the socket is connected
    to.  None without one, as is ``remote_port``."""
    remote_port: int | None


@attrs.define(eq=False, repr=False)
class UdpOpened(_UdpRecord, module="udp"):
    """
    A socket got its port; or one was found, or seen in use, that has one.

    First of the records of a socket.
    """

    existing: bool
    """Whether it was there before, rather than seen being opened: what it has carried and
    dropped until then is in none of its records."""


@attrs.define(eq=False, repr=False)
class UdpTraffic(_UdpRecord, module="udp"):
    """
    Datagrams between a socket and one peer in one direction, since the last such record.

    Once per interval, which is the tunable ``traffic_interval_ms``, and before `UdpClosed`.
    """

    direction: str
    """``sent`` or ``received``."""
    datagrams: int
    """How many.  What was sent or read in one piece and is several (UDP_SEGMENT, UDP_GRO)
    counts as several.  A look with MSG_PEEK is not counted."""
    bytes: int
    """Their payload, also what recv cut off."""


@attrs.define(eq=False, repr=False)
class UdpDropped(_UdpRecord, module="udp"):
    """
    Datagrams came for a socket and were dropped, since the last such record.

    Its queue was full, or a checksum wrong; ``/proc/net/udp`` counts the same.
    """

    drops: int


@attrs.define(eq=False, repr=False)
class UdpClosed(_UdpRecord, module="udp"):
    """
    A socket has come to its end.

    That is when the last process has closed it, or some milliseconds later.
    The counts are of its whole life, or since it was found.
    """

    duration: int | None
    """Nanoseconds since it was opened, suspend excluded; None if it was found, or its end was
    noticed late."""
    datagrams_sent: int | None
    """None, as are the others, if a message that was lost had told of its end."""
    bytes_sent: int | None
    datagrams_received: int | None
    bytes_received: int | None
    drops: int | None
