# SPDX-License-Identifier: Apache-2.0
"""
TCP sockets: opened, established, their state and traffic, timeouts, resets, closed.

Reports every socket that connects, listens or is accepted while the module is attached,
and those that did before, in all network namespaces, exactly once each, with its owner
and, at its end, all that was counted.
"""

from __future__ import annotations

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

from kprobe_modules.api import Alternative, Hook, Manifest

__all__ = ["MODULE"]

_LATE = (
    "the end comes when the socket is freed, after its process has closed it; what was cut off "
    "with SO_LINGER has lost its counters by then"
)
_EARLY = "the end comes when the process closes: what is acknowledged later is not counted"
_NO_PORT = "told when the connection is made or has failed, or the SYN is sent again"
_NO_BIND = "without the port, if the process lets the kernel choose it"
_NO_ACCEPT = "told when the connection is made, with the owner of a listener of its port"
_UNACCEPTED = "a connection that nobody has accepted when it ends is not told of"
_GIVE_UP = "also reports the last expiry, when the kernel gives up"
_NO_SYN = "what answers a SYN that comes again is not told of; also reports the last expiry"
_STRAY = "before Linux 6.10, resets that answer what belongs to no socket are not told of"
_READERS = "only of sockets that receive data"

MODULE = Manifest(
    name="tcp",
    package="kprobe_modules.modules.tcp",
    handler="kprobe_modules.modules.tcp.handler:TcpHandler",
    summary="TCP sockets: opened, state, traffic, timeouts, resets, closed",
    version="1",
    common_maps=("events", "seen_inodes"),
    own_programs=("report_active",),
    records=(
        TcpOpened,
        TcpEstablished,
        TcpStateChanged,
        TcpMetrics,
        TcpSynTimeout,
        TcpSynackTimeout,
        TcpReset,
        TcpClosed,
    ),
    hooks=(
        Hook(
            "end",
            "END",
            (
                Alternative("end_state_btf", companions=("end_destroy_btf",)),
                Alternative("end_state_f", companions=("end_free_f",)),
                Alternative("end_state_k", companions=("end_free_k",)),
                Alternative("end_late_f", fields_missing=("tcp_closed.error",), note=_LATE),
                Alternative("end_late_k", fields_missing=("tcp_closed.error",), note=_LATE),
                Alternative("end_release_f", fields_missing=("tcp_closed.error",), note=_EARLY),
                Alternative("end_release_k", fields_missing=("tcp_closed.error",), note=_EARLY),
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
            "connect",
            "START",
            # The tracepoint comes last, as it comes before the port is chosen.
            ("connect_fentry", "connect_kprobe", Alternative("connect_btf", note=_NO_PORT)),
            notices="a process connects",
        ),
        Hook(
            "listen",
            "START",
            (
                "listen_fexit",
                Alternative("listen_btf", note=_NO_BIND),
                Alternative("listen_kprobe", note=_NO_BIND),
            ),
            notices="a process listens",
        ),
        Hook(
            "accept",
            "START",
            # At the entry of functions that do not sleep.  The kernel frees the trampoline of
            # a function that sleeps under it before 5.12 (e21aa341785c), so that comes behind.
            (
                Alternative("accept_fentry", companions=("child_fentry",)),
                Alternative("accept_kprobe", companions=("child_kprobe",)),
                Alternative("accept_fexit", note=_UNACCEPTED),
                Alternative("accept_btf", note=_NO_ACCEPT),
            ),
            notices="a process accepts a connection",
        ),
        Hook(
            "state",
            "TELEMETRY",
            ("state_btf", "state_fentry", "state_kprobe"),
            notices="a socket changes its state",
        ),
        Hook(
            "metrics",
            "TELEMETRY",
            (
                "metrics_btf",
                "metrics_fentry",
                "metrics_kprobe",
                Alternative("metrics_read_btf", note=_READERS),
                Alternative("metrics_data_f", note=_READERS),
                Alternative("metrics_data_k", note=_READERS),
            ),
            required=False,
            notices="a socket is active",
        ),
        Hook(
            "syn_timeout",
            "TELEMETRY",
            (
                "syn_timeout_btf",
                Alternative("syn_timeout_f", note=_GIVE_UP),
                Alternative("syn_timeout_k", note=_GIVE_UP),
            ),
            required=False,
            notices="a SYN is not answered",
        ),
        Hook(
            "synack_timeout",
            "TELEMETRY",
            (
                "synack_btf",
                "synack_fentry",
                "synack_kprobe",
                Alternative("synack_timer_f", note=_NO_SYN),
                Alternative("synack_timer_k", note=_NO_SYN),
            ),
            required=False,
            notices="a SYN-ACK is not acknowledged",
        ),
        Hook(
            "reset_received",
            "TELEMETRY",
            ("reset_rx_btf", "reset_rx_fentry", "reset_rx_kprobe"),
            required=False,
            notices="a reset comes",
        ),
        Hook(
            "reset_sent",
            "TELEMETRY",
            (
                # The functions come first, as before 6.10 the tracepoint does not see all.
                Alternative("reset_tx_fentry", companions=("answer4_fentry", "answer6_fentry")),
                Alternative("reset_tx_btf", note=_STRAY),
                Alternative(
                    "reset_tx_kprobe",
                    companions=("answer4_kprobe", "answer6_kprobe"),
                    fields_missing=("tcp_reset.reason",),
                ),
            ),
            required=False,
            notices="a reset is sent",
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
                    fields_missing=("tcp_opened.start_time", "tcp_opened.cgroup_id"),
                ),
                Alternative(
                    "existing4_fent",
                    companions=("existing6_fent",),
                    fields_missing=("tcp_opened.start_time", "tcp_opened.cgroup_id"),
                ),
            ),
            notices="sockets that were there before, and who has them",
        ),
        Hook(
            "existing_rest",
            "EXISTING",
            ("existing_tcp",),
            required=False,
            notices="sockets that were there before and no process has",
        ),
    ),
)
