# SPDX-License-Identifier: Apache-2.0
"""
The object of the udp module: what it says, and that the running kernel takes it.
"""

from __future__ import annotations

import os
import socket
import struct

import pytest
from kprobe_modules.modules.udp import MODULE
from kprobe_modules.modules.udp.handler import ORIGINS

from kprobe_modules.architecture import machine_arch
from kprobe_modules.features import Support
from kprobe_modules.libbpf import BpfObject, test_run
from kprobe_modules.libbpf import map as bpf_map
from kprobe_modules.objectfile import read
from tests.support.loading import counters, make_ring_buffer, scan
from tests.support.requirements import needs

PROGRAMS = (
    *(program for hook in MODULE.hooks for each in hook.alternatives for program in each.programs),
    *MODULE.own_programs,
)
SURVEY = (
    "security_sk_alloc",
    "security_sk_free",
    "inet_release",
    "udp4_seq_show",
    "udp6_seq_show",
    "udp_send_skb",
    "udp_v6_send_skb",
    "ip_send_skb",
    "ip6_send_skb",
    "skb_consume_udp",
)
"""
Functions of the survey, each by fentry and by kprobe.  ``__skb_free_datagram_locked`` and
``skb_free_datagram_locked`` free no datagram of UDP (the module's README says why).
"""
TRACEPOINTS = (
    "consume_skb",
    "kmem_cache_free",
    "net_dev_queue",
    "sock_recv_length",
    "sock_send_length",
    "udp_fail_queue_rcv_skb",
)
AT_ONCE = 32
LOG = 62  # KM_DIAGNOSTIC_BPF_LOG
KEY = struct.Struct("<Q16s16sHHBB2x")
FLOW = struct.Struct("<5Q")
SOCKET = struct.Struct("<3QI20xQQ")
"""Of ``struct km_udp_open_socket``: id, start time, cgroup, process, datagrams and bytes sent."""


@pytest.fixture(params=["x86_64", "arm64"])
def spec(request):
    return read(MODULE.object_bytes(request.param), MODULE.name)


def test_messages(spec):
    assert {message.name: (message.id, message.layout.size) for message in spec.messages} == {
        "udp_new_socket": (1, 88),
        "udp_destroy_socket": (2, 144),
        "udp_stats": (3, 128),
    }


def test_the_handler_has_the_names_of_the_header(spec):
    (found,) = (each for each in spec.message("udp_stats").layout.fields if each.name == "origin")

    assert [value for _, value in found.enum_values] == list(range(len(ORIGINS)))
    assert [name.removeprefix("KM_UDP_").lower() for name, _ in found.enum_values] == list(ORIGINS)


def test_the_functions_of_the_survey_are_among_the_alternatives(spec):
    targets = {(program.kind, program.target) for program in spec.programs}

    for target in SURVEY:
        assert {("fentry", target), ("kprobe", target)} <= targets, target
    for target in ("udp_v4_get_port", "udp_v6_get_port"):
        assert {("fexit", target), ("kprobe", target), ("kretprobe", target)} <= targets
    assert {("tp_btf", each) for each in TRACEPOINTS} <= targets


def test_the_queues_hold_the_key_of_every_flow(spec):
    flows, even, odd = (spec.map(name) for name in ("udp_flows", "even_flows", "odd_flows"))

    assert flows.key_size == even.value_size == odd.value_size == KEY.size
    assert flows.value_size == FLOW.size
    assert flows.max_entries == even.max_entries == odd.max_entries


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
    ("program", "target"), [("existing_files", "task_file"), ("existing_udp", "udp")]
)
def test_a_scan_without_room_counts_every_socket_as_lost_and_remembers_none(
    program, target, features
):
    needs.that(features.iterator(target), f"needs iterators over {target}")
    data = MODULE.object_bytes(machine_arch())
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound,
        BpfObject.open(data, MODULE.name) as opened,
    ):
        bound.bind(("127.0.0.1", 0))
        for each in opened.programs.values():
            each.set_autoload(each.name == program)
        opened.load()
        # Nobody has put a ring into `events`, so every output fails.
        steps = scan(opened, program)
        emitted, lost = counters(opened, 1)
        remembered = list(bpf_map.keys(opened.maps["udp_open_sockets"].fd))

    assert steps == b"", "a step is written for a socket that was reported"
    assert emitted == lost >= 1
    assert remembered == [], "a scan must be able to report them again"


def test_a_full_table_refuses_a_socket_and_says_so(features):
    needs.that(features.iterator("task_file"), "needs iterators over files")
    data = MODULE.object_bytes(machine_arch())
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound,
        BpfObject.open(data, MODULE.name) as opened,
    ):
        bound.bind(("127.0.0.1", 0))
        for each in opened.programs.values():
            each.set_autoload(each.name == "existing_files")
        opened.maps["udp_open_sockets"].set_max_entries(1)
        opened.load()
        table = opened.maps["udp_open_sockets"]
        size = read(data, MODULE.name).map("udp_open_sockets").value_size
        bpf_map.update(table.fd, bytes(8), bytes(size))
        scan(opened, "existing_files")
        logged, _ = counters(opened, LOG)
        announced, _ = counters(opened, 1)
        remembered = list(bpf_map.keys(table.fd))

    assert logged >= 1
    assert announced == 0
    assert remembered == [bytes(8)]


def test_what_finds_no_room_in_the_ring_is_kept_for_another_time():
    """
    Flows of the generation that is not counted in are taken out, and put back.
    """
    data = MODULE.object_bytes(machine_arch())
    with BpfObject.open(data, MODULE.name) as opened:
        for each in opened.programs.values():
            each.set_autoload(each.name == "report_traffic")
        opened.load()
        flows, odd, even = (opened.maps[name] for name in ("udp_flows", "odd_flows", "even_flows"))
        for number in range(3):
            for queue, generation in ((even, 0), (odd, 1)):
                key = KEY.pack(number, bytes(16), bytes(16), 1, 2, 4, generation)
                bpf_map.update(flows.fd, key, FLOW.pack(0, 1, 10, 2, 20))
                bpf_map.update(queue.fd, None, key)  # type: ignore[arg-type]
        # One that has been taken out at the end of its socket left its key.
        gone = KEY.pack(0, bytes(16), bytes(16), 1, 2, 4, 1)
        bpf_map.delete(flows.fd, gone)
        before = set(bpf_map.keys(flows.fd))
        results = [test_run(opened.programs["report_traffic"].fd) for _ in range(3)]
        emitted, lost = counters(opened, 3)
        after = {key: bpf_map.lookup(flows.fd, key) for key in bpf_map.keys(flows.fd)}

    assert results == [AT_ONCE + 1] * 3, "it says that the ring is full"
    assert emitted == lost == 3
    assert set(after) == before
    assert set(after.values()) == {FLOW.pack(0, 1, 10, 2, 20)}


def test_what_finds_no_room_among_the_flows_is_told_at_once(features):
    """
    The totals have it as well, and a log says why.
    """
    needs.that(features.program("tp_btf", "net_dev_queue"), "needs tp_btf/net_dev_queue")
    data = MODULE.object_bytes(machine_arch())
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        BpfObject.open(data, MODULE.name) as opened,
    ):
        server.bind(("127.0.0.1", 0))
        client.bind(("127.0.0.1", 0))
        for each in opened.programs.values():
            each.set_autoload(each.name == "queue_btf")
        opened.maps["udp_flows"].set_max_entries(1)
        make_ring_buffer(opened, data)
        opened.load()
        bpf_map.update(opened.maps["udp_flows"].fd, bytes(KEY.size), bytes(FLOW.size))
        with opened.programs["queue_btf"].attach_trace():
            for size in (5, 7):
                client.sendto(bytes(size), server.getsockname())
        told, lost = counters(opened, 3)
        logged, _ = counters(opened, LOG)
        table = opened.maps["udp_open_sockets"].fd
        entries = [bpf_map.lookup(table, key) for key in bpf_map.keys(table)]
    # Others on this machine may send as well.
    ours = [SOCKET.unpack_from(entry) for entry in entries if entry]
    totals = [(datagrams, size) for *_, pid, datagrams, size in ours if pid == os.getpid()]

    assert totals == [(2, 12)]
    assert told >= 2
    assert lost == 0
    assert logged >= 1
