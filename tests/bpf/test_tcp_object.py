# SPDX-License-Identifier: Apache-2.0
"""
The object of the tcp module: what it says, and that the running kernel takes it.
"""

from __future__ import annotations

import socket

import pytest
from kprobe_modules.modules.tcp import MODULE
from kprobe_modules.modules.tcp.handler import DIRECTIONS, REASONS, ROLES, SIDES

from kprobe_modules.architecture import machine_arch
from kprobe_modules.features import Support
from kprobe_modules.libbpf import BpfObject
from kprobe_modules.libbpf import map as bpf_map
from kprobe_modules.objectfile import read
from tests.support.loading import counters, make_ring_buffer, scan
from tests.support.requirements import needs

PROGRAMS = (
    *(program for hook in MODULE.hooks for each in hook.alternatives for program in each.programs),
    *MODULE.own_programs,
)
SURVEY = (
    "tcp_init_sock",
    "security_sk_free",
    "inet_release",
    "tcp4_seq_show",
    "tcp6_seq_show",
    "tcp_connect",
    "tcp_rcv_established",
    "tcp_event_data_recv",
    "tcp_retransmit_timer",
    "tcp_syn_ack_timeout",
    "tcp_reset",
    "tcp_send_active_reset",
)
"""
Functions of the survey, each by fentry and by kprobe.  ``tcp_rtt_estimator`` exists nowhere, and
TCP's answers do not come by ``ip_send_skb`` and ``ip6_send_skb`` (the module's README says why).
"""
TRACEPOINTS = (
    "inet_sock_set_state",
    "tcp_destroy_sock",
    "tcp_retransmit_skb",
    "tcp_retransmit_synack",
    "tcp_send_reset",
    "tcp_receive_reset",
    "tcp_probe",
    "tcp_rcv_space_adjust",
)


@pytest.fixture(params=["x86_64", "arm64"])
def spec(request):
    return read(MODULE.object_bytes(request.param), MODULE.name)


def test_messages(spec):
    assert {message.name: (message.id, message.layout.size) for message in spec.messages} == {
        "new_sock_created": (1, 104),
        "close_sock_info": (2, 176),
        "set_state_ipv4": (3, 72),
        "set_state_ipv6": (4, 96),
        "rtt_estimator": (5, 160),
        "reset_tcp_counters": (6, 160),
        "tcp_syn_timeout": (7, 96),
        "tcp_synack_timeout": (8, 96),
        "tcp_reset": (9, 96),
    }


@pytest.mark.parametrize(
    ("message", "field", "prefix", "names"),
    [
        ("tcp_reset", "reason", "KM_TCP_REASON_", REASONS),
        ("tcp_reset", "direction", "KM_TCP_", DIRECTIONS),
        ("tcp_reset", "role", "KM_TCP_", ROLES),
        ("close_sock_info", "closed_first", "KM_TCP_", SIDES),
    ],
)
def test_the_handler_has_the_names_of_the_header(spec, message, field, prefix, names):
    (found,) = (each for each in spec.message(message).layout.fields if each.name == field)
    said = [name.removeprefix(prefix).lower() for name, _ in found.enum_values]

    assert [value for _, value in found.enum_values] == list(range(len(names)))
    assert [name for name in names if name is not None] == said[-len([n for n in names if n]) :]


def test_the_functions_of_the_survey_are_among_the_alternatives(spec):
    targets = {(program.kind, program.target) for program in spec.programs}

    for target in SURVEY:
        assert {("fentry", target), ("kprobe", target)} <= targets, target
    # Never at the return of what sleeps, unless by fexit.
    assert ("fexit", "inet_csk_accept") in targets
    assert {("tp_btf", each) for each in TRACEPOINTS} <= targets
    assert not any(kind == "kretprobe" for kind, _ in targets)


@pytest.mark.parametrize("transport", ["perf", "ringbuf"])
def test_the_verifier_accepts_all_programs(transport, features):
    """
    All at once: one after the other takes minutes in a guest.
    """
    data = MODULE.object_bytes(machine_arch())
    spec = read(data, MODULE.name)
    # The kernel looks the targets of these up at load.
    absent = {
        each.name
        for each in spec.programs
        if each.kind in ("fentry", "fexit", "tp_btf", "iter")
        and features.program(each.kind, each.target).support is Support.NO
    }
    with BpfObject.open(data, MODULE.name) as opened:
        for each in opened.programs.values():
            each.set_autoload(each.name not in absent)
        if transport == "ringbuf":
            make_ring_buffer(opened, data)
        opened.load()
        for name in set(PROGRAMS) - absent:
            assert opened.programs[name].fd >= 0
    for hook in MODULE.hooks:
        if hook.required:
            assert any(not absent & set(each.programs) for each in hook.alternatives), hook.name


@pytest.mark.parametrize(
    ("program", "target"), [("existing_files", "task_file"), ("existing_tcp", "tcp")]
)
def test_a_scan_without_room_counts_every_socket_as_lost_and_remembers_none(
    program, target, features
):
    needs.that(features.iterator(target), f"needs iterators over {target}")
    data = MODULE.object_bytes(machine_arch())
    with socket.create_server(("127.0.0.1", 0)), BpfObject.open(data, MODULE.name) as opened:
        for each in opened.programs.values():
            each.set_autoload(each.name == program)
        opened.load()
        # Nobody has put a ring into `events`, so every output fails.
        steps = scan(opened, program)
        emitted, lost = counters(opened, 1)
        remembered = list(bpf_map.keys(opened.maps["tcp_open_sockets"].fd))

    assert steps == b"", "a step is written for a socket that was reported"
    assert emitted == lost >= 1
    assert remembered == [], "a scan must be able to report them again"


def test_a_full_table_refuses_a_socket_and_says_so(features):
    needs.that(features.iterator("task_file"), "needs iterators over files")
    data = MODULE.object_bytes(machine_arch())
    log = 62  # KM_DIAGNOSTIC_BPF_LOG
    with socket.create_server(("127.0.0.1", 0)), BpfObject.open(data, MODULE.name) as opened:
        for each in opened.programs.values():
            each.set_autoload(each.name == "existing_files")
        opened.maps["tcp_open_sockets"].set_max_entries(1)
        opened.load()
        table = opened.maps["tcp_open_sockets"]
        size = read(data, MODULE.name).map("tcp_open_sockets").value_size
        bpf_map.update(table.fd, bytes(8), bytes(size))
        scan(opened, "existing_files")
        logged, _ = counters(opened, log)
        announced, _ = counters(opened, 1)
        remembered = list(bpf_map.keys(table.fd))

    assert logged >= 1
    assert announced == 0
    assert remembered == [bytes(8)]
