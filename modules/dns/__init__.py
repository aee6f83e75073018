# SPDX-License-Identifier: Apache-2.0
"""
DNS: queries, responses with their latency, and what was never answered.

Looks at the datagrams and connections of the ports where DNS is spoken, of every process
in every network namespace, when they are sent and when they are taken.
"""

from __future__ import annotations

from kprobe_modules.modules.dns.records import DnsQuery, DnsResponse, DnsTimeout

from kprobe_modules.api import Alternative, Hook, Manifest

__all__ = ["MODULE"]

_WHOLE = "the datagram is told of when its headers are complete"
_DEVICE = "told of when the datagram is handed to a device, if no filter drops it before"
_ARRIVAL = (
    "told of when the datagram arrives, whether it is taken or not, with the process that has used "
    "the socket last; of several that a card hands over in one go only the last is told"
)

MODULE = Manifest(
    name="dns",
    package="kprobe_modules.modules.dns",
    handler="kprobe_modules.modules.dns.handler:DnsHandler",
    summary="DNS: queries, responses, timeouts",
    version="1",
    records=(DnsQuery, DnsResponse, DnsTimeout),
    imports={"udp_open_sockets": "udp"},
    hooks=(
        Hook(
            "closed",
            "END",
            (
                Alternative("released_fentry", companions=("closed_fentry",)),
                Alternative("released_kprobe", companions=("closed_kprobe",)),
            ),
            required=False,
            notices="a socket is gone, and its queries with it",
        ),
        Hook(
            "udp_sent",
            "TELEMETRY",
            (
                Alternative("sent_slot", slot="udp_sent"),
                Alternative("sent4_fentry", companions=("sent6_fentry",)),
                Alternative("sent4_kprobe", companions=("sent6_kprobe",)),
                Alternative("sent4_ip_fentry", companions=("sent6_ip_fentry",), note=_WHOLE),
                Alternative("sent4_ip_kprobe", companions=("sent6_ip_kprobe",), note=_WHOLE),
                Alternative("sent_btf", note=_DEVICE),
            ),
            notices="a process sends a datagram",
        ),
        Hook(
            "udp_received",
            "TELEMETRY",
            (
                Alternative("received_slot", slot="udp_received"),
                "received_fentry",
                "received_kprobe",
                Alternative(
                    "received_btf", companions=("arriving_btf", "reader_btf"), note=_ARRIVAL
                ),
            ),
            notices="a process takes a datagram",
        ),
        Hook(
            "tcp_sent",
            "TELEMETRY",
            ("written_fentry", "written_kprobe", "written_btf"),
            required=False,
            notices="a process writes to a connection",
        ),
        Hook(
            "tcp_received",
            "TELEMETRY",
            ("read_btf", "read_fentry", "read_kprobe"),
            required=False,
            notices="a process reads from a connection",
        ),
    ),
)
