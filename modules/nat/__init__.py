# SPDX-License-Identifier: Apache-2.0
"""
Network address translation: which connections the kernel translates, and to what.

Reports every connection and flow whose source or destination the kernel translates while
the module is attached, and those that it translated before, in all network namespaces,
exactly once each, and which sockets they belong to.
"""

from __future__ import annotations

from kprobe_modules.modules.nat.records import NatEnded, NatRemapped, NatTranslated

from kprobe_modules.api import Alternative, Hook, Manifest

__all__ = ["MODULE"]

_CONNTRACK = "nf_conntrack"

_REFERENCES = "an end is told when the last packet of the connection is gone"
_PORTS = "finds those of protocols with ports, and pings"
_EVENTS = (
    "a connection without events (nf_conntrack_events is 0, or it was there before) is looked at "
    "every three seconds, and a new network namespace is found as late"
)
_DUMPED = "the end of what was found is told some seconds late"

MODULE = Manifest(
    name="nat",
    package="kprobe_modules.modules.nat",
    handler="kprobe_modules.modules.nat.handler:NatHandler",
    summary="network address translation: which connections, to what, whose",
    version="1",
    common_maps=("events",),
    records=(NatTranslated, NatRemapped, NatEnded),
    hooks=(
        Hook(
            "end",
            "END",
            (
                Alternative("end_fentry", companions=("end_destroy_f",)),
                Alternative("end_kprobe", companions=("end_destroy_k",)),
                # nf_ct_destroy() came with 5.17.
                Alternative("end_count_k", companions=("end_delete_k",)),
                Alternative("end_cleanup_f", note=_REFERENCES),
                Alternative("end_cleanup_k", note=_REFERENCES),
                Alternative(source="ctnetlink", note=_EVENTS),
            ),
            notices="a connection is forgotten",
            awaits=_CONNTRACK,
        ),
        Hook(
            "start",
            "START",
            (
                Alternative("start_fexit", companions=("insert_fexit",)),
                Alternative(
                    "start_return", companions=("start_entry", "insert_entry", "insert_return")
                ),
                Alternative(source="ctnetlink", note=_EVENTS),
            ),
            notices="a connection that is translated is confirmed",
            awaits=_CONNTRACK,
        ),
        Hook(
            "existing",
            "EXISTING",
            (
                # A tracing program cannot be attached twice before 5.13 (f3a95075549e),
                # as a second scan does.
                "existing_kprobe",
                "ex_tuples_k",
                "ex_tuples_f",
                "ex_ip_k",
                "ex_ip_f",
                Alternative("ex_port_k", companions=("ex_icmp_k", "ex_icmpv6_k"), note=_PORTS),
                Alternative("ex_port_f", companions=("ex_icmp_f", "ex_icmpv6_f"), note=_PORTS),
                Alternative(source="ctnetlink", note=_DUMPED),
            ),
            notices="connections that were translated before",
            awaits=_CONNTRACK,
        ),
    ),
)
