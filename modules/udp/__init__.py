# SPDX-License-Identifier: Apache-2.0
"""
UDP sockets: opened, their traffic with each peer, drops, closed.

Reports every socket that is given a port while the module is attached, and those that had
one before, in all network namespaces, exactly once each, with its owner and all that it
sends and reads, by peer and interval.
"""

from __future__ import annotations

from kprobe_modules.modules.udp.records import UdpClosed, UdpDropped, UdpOpened, UdpTraffic

from kprobe_modules.api import Alternative, Hook, Manifest

__all__ = ["MODULE"]

_EARLY = "what a scan has met while it was being closed ends when its memory is used again"
_SLABS = "looks at everything that the kernel gives back to its slabs"
_USED = "a socket is told when it first sends or reads, not when it gets its port"
_OTHERS = "looks at every packet that is sent"
_QUEUED = (
    "the addresses are those after translation (NAT), and what a firewall drops before is not "
    "counted; behind a translation of the source port nothing is"
)
_LENGTHS = (
    "without the peer of sockets that are not connected where the kernel frees what was read "
    "elsewhere (6.18); then what UDP_GRO has put together counts as one, and of what recv cuts "
    "off only the rest counts"
)
_ALONE = "without the slot udp_received for other modules"
_IPV4 = "before Linux 6.10, drops over IPv6 are told with the next traffic, or at the end"

MODULE = Manifest(
    name="udp",
    package="kprobe_modules.modules.udp",
    handler="kprobe_modules.modules.udp.handler:UdpHandler",
    summary="UDP sockets: opened, traffic with each peer, drops, closed",
    version="1",
    common_maps=("events", "seen_inodes", "tail_calls"),
    own_programs=("report_traffic", "check_open"),
    exports=("udp_open_sockets",),
    records=(UdpOpened, UdpTraffic, UdpDropped, UdpClosed),
    hooks=(
        Hook(
            "end",
            "END",
            (
                Alternative("end_fentry", companions=("end_free_f",)),
                Alternative("end_kprobe", companions=("end_free_k",)),
                Alternative("end_release_f", note=_EARLY),
                Alternative("end_release_k", note=_EARLY),
                Alternative("end_slab_btf", companions=("end_again_btf",), note=_SLABS),
            ),
            notices="a socket has come to its end",
        ),
        Hook(
            "create",
            "START",
            ("create_fentry", "create_kprobe"),
            required=False,
            notices="a socket is made, so that another one at its address is gone",
        ),
        Hook(
            "bind",
            "START",
            (
                Alternative("bind4_fexit", companions=("bind6_fexit",)),
                Alternative(
                    "bind4_return", companions=("bind4_entry", "bind6_entry", "bind6_return")
                ),
                Alternative("used_send_btf", companions=("used_recv_btf",), note=_USED),
            ),
            # Whatever sends or reads is told of, without any of these.
            required=False,
            notices="a socket is given a port",
        ),
        Hook(
            "send",
            "TELEMETRY",
            (
                Alternative("send4_fentry", companions=("send6_fentry",)),
                Alternative("send4_kprobe", companions=("send6_kprobe",), calls=("udp_sent",)),
                Alternative("whole4_fentry", companions=("whole6_fentry",)),
                Alternative("whole4_kprobe", companions=("whole6_kprobe",)),
                Alternative("queue_btf", note=f"{_OTHERS}; {_QUEUED}"),
            ),
            notices="a socket sends",
        ),
        Hook(
            "receive",
            "TELEMETRY",
            (
                "receive_fentry",
                Alternative("receive_kprobe", calls=("udp_received",)),
                Alternative("receive_alone_k", note=_ALONE),
                Alternative("receive_btf", companions=("consumed_btf",), note=_LENGTHS),
            ),
            notices="a process reads",
        ),
        Hook(
            "drop",
            "TELEMETRY",
            (Alternative("drop_btf", note=_IPV4),),
            required=False,
            notices="a datagram finds no room in its socket's queue",
        ),
        Hook(
            "existing",
            "EXISTING",
            (
                "existing_files",
                # A tracing program cannot be attached twice before 5.13 (f3a95075549e),
                # as a second scan does.
                Alternative(
                    "existing4_kpro",
                    companions=("existing6_kpro",),
                    fields_missing=("udp_opened.start_time", "udp_opened.cgroup_id"),
                ),
                Alternative(
                    "existing4_fent",
                    companions=("existing6_fent",),
                    fields_missing=("udp_opened.start_time", "udp_opened.cgroup_id"),
                ),
            ),
            notices="sockets that were there before, and who has them",
        ),
        Hook(
            "existing_rest",
            "EXISTING",
            ("existing_udp",),
            required=False,
            notices="sockets that were there before and no process has",
        ),
    ),
)
