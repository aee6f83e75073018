# SPDX-License-Identifier: Apache-2.0
"""
What the dns module says: one record class for each thing that can happen.

The field names are a contract: they are the keys of the JSON output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from kprobe_modules.api import Record

if TYPE_CHECKING:
    from kprobe_modules.modules.dns.message import Answer

__all__ = ["DnsQuery", "DnsResponse", "DnsTimeout"]


@attrs.define(eq=False, repr=False)
class _DnsRecord(Record):
    """
    What every record about a query has: which it is, and which socket it came by.

    A resolver that asks another one on behalf of a client sees two queries: as ``server`` the
    client's and as ``client`` its own.
    """

    socket_id: int
    """Names the socket; it is not used again while the module is attached."""
    pid: int | None
    """Process id (tgid) in the initial PID namespace of who has sent or received the message,
    or had the socket last; None if that is not known, as are the next two."""
    start_time: int | None
    """When that process started, in nanoseconds since boot: names it, with ``pid``."""
    cgroup_id: int | None
    """Id of that process's cgroup, as in the records of processes."""
    netns: int
    """Inode number of the network namespace, as in ``/proc/PID/ns/net``."""
    family: str
    """``ipv4`` or ``ipv6``, by the addresses: IPv4 addresses that an AF_INET6 socket maps
    (``::ffff:192.0.2.1``) are told as ``ipv4`` and ``192.0.2.1``."""
    local_address: str
    local_port: int
    remote_address: str
    remote_port: int
    role: str
    """``client`` for who sends the query, ``server`` for who receives it."""
    transport: str
    """``udp`` or ``tcp``."""
    query_id: int
    """The number that the client has given to the query."""
    opcode: str
    """``QUERY``, ``NOTIFY``, ``UPDATE`` …, or ``OPCODE7``."""
    question_name: str | None
    r"""Of the first question, as it was spelled, without the dot at its end; the root is ``.``.
    What is special or not printable is escaped as in zone files: ``\.``, ``\032``.  None if the
    message has no question, as are the next two."""
    question_type: str | None
    """Such as ``AAAA``, or ``TYPE65280``."""
    question_class: str | None
    """Such as ``IN``, or ``CLASS32``."""


@attrs.define(eq=False, repr=False)
class DnsQuery(_DnsRecord, module="dns"):
    """
    A client has sent a query, or a server has received one.
    """

    retries: int
    """How many times the same query had come by before without being answered."""
    recursion_desired: bool


@attrs.define(eq=False, repr=False)
class DnsResponse(_DnsRecord, module="dns"):
    """
    A client has received a response, or a server has sent one.
    """

    response_code: str
    """``NOERROR``, ``NXDOMAIN``, ``SERVFAIL`` …, or ``RCODE12``."""
    answers: tuple[Answer, ...]
    """The resource records of the answer section; none for a negative answer."""
    authoritative: bool
    truncated: bool
    """The response did not fit (TC): the client has to ask again over TCP."""
    incomplete: bool
    """Answers may be missing: the response has more bytes than the module looks at, or is not
    as it should be."""
    latency: int | None
    """Nanoseconds since the query came by, the last time if there were retries; None if the
    query was not seen, or was forgotten, as is ``retries``."""
    retries: int | None
    """How many times the query was repeated."""
    duplicate: bool
    """The query had been answered before."""
    late: bool
    """The query had been told as timed out before."""


@attrs.define(eq=False, repr=False)
class DnsTimeout(_DnsRecord, module="dns"):
    """
    A query was not answered for so long, or for as long as there was its socket.
    """

    duration: int
    """Nanoseconds since the query came by, the last time if there were retries."""
    retries: int
    """How many times the query was repeated."""
    socket_closed: bool
    """The socket was closed; else the time is over (the tunable ``timeout_ms``)."""
