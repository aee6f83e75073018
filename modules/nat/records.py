# SPDX-License-Identifier: Apache-2.0
"""
What the nat module says: one record class for each thing that can happen.

The field names are a contract: they are the keys of the JSON output.  A connection is what
the kernel's connection tracking takes for one: also datagrams between the same two ends, or
a series of pings.  Source is who has sent the first packet.
"""

from __future__ import annotations

import attrs

from kprobe_modules.api import Record

__all__ = ["NatEnded", "NatRemapped", "NatTranslated"]


@attrs.define(eq=False, repr=False)
class _NatRecord(Record):
    """
    What every record about a connection has.
    """

    conntrack_id: int
    """Names one connection from its confirmation to its end."""
    netns: int
    """Inode number of the network namespace that translates it, as in ``/proc/PID/ns/net``;
    a packet that passes several is a connection in each."""
    zone: int
    """Conntrack zone; 0 where none was set."""
    family: str
    """``ipv4`` or ``ipv6``."""
    transport: str
    """``tcp``, ``udp``, ``icmp``, ``icmpv6``, ``sctp``, ``dccp``, ``udplite``, ``gre``, ``esp``,
    ``ah``, or the number of another protocol."""
    kind: str
    """What is translated: ``source`` (SNAT, masquerade), ``destination`` (DNAT, redirect) or
    ``both``."""
    source_address: str
    """The first packet's, as it was sent."""
    source_port: int | None
    """None for protocols without ports, as are the others."""
    destination_address: str
    destination_port: int | None
    translated_source_address: str
    """The same packet's, behind the translation."""
    translated_source_port: int | None
    translated_destination_address: str
    translated_destination_port: int | None


@attrs.define(eq=False, repr=False)
class NatTranslated(_NatRecord, module="nat"):
    """
    A connection that is translated was confirmed: its first packet has passed.

    First of the records of a connection.
    """

    existing: bool
    """Whether it was there before, rather than seen being confirmed."""


@attrs.define(eq=False, repr=False)
class NatEnded(_NatRecord, module="nat"):
    """
    The kernel has forgotten a connection: it was over, idle for too long, or deleted.

    Packets of it would be translated anew, perhaps otherwise.
    """

    duration: int | None
    """Nanoseconds since it was confirmed, suspend excluded; None if it was found, or its end
    was noticed late."""


@attrs.define(eq=False, repr=False)
class NatRemapped(Record, module="nat"):
    """
    A socket's peer knows it, or is known to it, by another address than it has.

    One for each socket and connection: the initiator's, the other side's, or both if both
    are on this machine.  Only while the module of the socket's kind is attached as well.
    """

    conntrack_id: int
    """The connection, as in `NatTranslated`."""
    socket_id: int
    """The socket, as in the records of tcp or udp."""
    pid: int | None
    """Process id (tgid) of the socket's owner in the initial PID namespace."""
    netns: int | None
    """The socket's network namespace, which may be another one than that which translates."""
    family: str
    transport: str
    """``tcp`` or ``udp``."""
    local_address: str
    """The ends as the socket has them."""
    local_port: int
    remote_address: str
    remote_port: int
    translated_local_address: str
    """The same ends on the other side of the translation, where the peer is."""
    translated_local_port: int
    translated_remote_address: str
    translated_remote_port: int
