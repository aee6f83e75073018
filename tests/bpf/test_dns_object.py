# SPDX-License-Identifier: Apache-2.0
"""
The object of the dns module: what it says, and that the running kernel takes it.
"""

from __future__ import annotations

import os
import socket
import struct

import pytest
from kprobe_modules.modules.dns import MODULE
from kprobe_modules.modules.dns.handler import DIRECTIONS, TRANSPORTS

from kprobe_modules.architecture import machine_arch
from kprobe_modules.features import Support
from kprobe_modules.libbpf import BpfObject
from kprobe_modules.libbpf import map as bpf_map
from kprobe_modules.libbpf.program import prog_info
from kprobe_modules.objectfile import read
from tests.support.requirements import needs

PROGRAMS = (
    *(program for hook in MODULE.hooks for each in hook.alternatives for program in each.programs),
)
SURVEY = (
    "security_sk_free",
    "inet_release",
    "udp_send_skb",
    "udp_v6_send_skb",
    "ip_send_skb",
    "ip6_send_skb",
    "skb_consume_udp",
    "tcp_sendmsg",
    "skb_copy_datagram_iter",
)
"""
Each by fentry and by kprobe.  UDP comes by no other function that frees datagrams since 4.10.
"""
TRACEPOINTS = (
    "net_dev_queue",
    "netif_receive_skb",
    "sk_data_ready",
    "sock_recv_length",
    "tcp_sendmsg_locked",
    "skb_copy_datagram_iovec",
)

EMULATED = 80_000
"""Instructions that the verifier may look at, per program: more takes too long in a guest."""


@pytest.fixture(params=["x86_64", "arm64"])
def spec(request):
    return read(MODULE.object_bytes(request.param), MODULE.name)


def test_messages(spec):
    assert {message.name: (message.id, message.layout.size) for message in spec.messages} == {
        "dns_packet": (1, 120),
        "dns_socket_closed": (2, 24),
    }
    assert spec.message("dns_packet").layout.tail.name == "payload"


@pytest.mark.parametrize(("field", "names"), [("direction", DIRECTIONS), ("transport", TRANSPORTS)])
def test_the_handler_has_the_names_of_the_header(spec, field, names):
    (found,) = (each for each in spec.message("dns_packet").layout.fields if each.name == field)

    assert [(name.removeprefix("KM_DNS_").lower(), value) for name, value in found.enum_values] == [
        (name, value) for value, name in enumerate(names)
    ]


def test_the_functions_of_the_survey_are_among_the_alternatives(spec):
    targets = {(program.kind, program.target) for program in spec.programs}

    for target in SURVEY:
        assert {("fentry", target), ("kprobe", target)} <= targets, target
    assert {("tp_btf", each) for each in TRACEPOINTS} <= targets
    # Never at the return of what sleeps.
    assert not {kind for kind, _ in targets} & {"kretprobe", "fexit"}


def test_eight_ports_can_be_chosen_and_the_first_is_that_of_dns(spec):
    ports = {each.name: each.default for each in spec.tunables if each.name.startswith("port_")}

    assert ports == {"port_1": 53, **{f"port_{number}": 0 for number in range(2, 9)}}


def absent(spec, features):
    """
    Return the programs whose targets the kernel looks up at load and does not have.
    """
    return {
        each.name
        for each in spec.programs
        if each.kind in ("fentry", "fexit", "tp_btf")
        and features.program(each.kind, each.target).support is Support.NO
    }


@pytest.mark.parametrize("transport", ["perf", "ringbuf"])
def test_the_verifier_accepts_all_programs(transport, features):
    """
    All at once: one after the other takes minutes in a guest.
    """
    data = MODULE.object_bytes(machine_arch())
    spec = read(data, MODULE.name)
    missing = absent(spec, features)
    with BpfObject.open(data, MODULE.name) as opened:
        for each in opened.programs.values():
            each.set_autoload(each.name not in missing)
        if transport == "ringbuf":
            make_ring_buffer(opened, data)
        opened.load()
        for name in set(PROGRAMS) - missing:
            info = prog_info(opened.programs[name].fd)
            assert info.verified_instructions < EMULATED, name
    for hook in MODULE.hooks:
        if hook.required:
            assert any(not missing & set(each.programs) for each in hook.alternatives), hook.name


def make_ring_buffer(opened: BpfObject, data: bytes) -> None:
    events = opened.maps["events"]
    events.set_type(27)
    events.set_key_size(0)
    events.set_value_size(0)
    events.set_max_entries(1 << 16)
    set_constant(opened, data, "km_transport", b"\1")


def set_constant(opened: BpfObject, data: bytes, name: str, value: bytes) -> None:
    (tunable,) = (item for item in read(data, MODULE.name).tunables if item.name == name)
    constants = bytearray(opened.maps[".rodata"].initial_value())
    constants[tunable.offset : tunable.offset + len(value)] = value
    opened.maps[".rodata"].set_initial_value(bytes(constants))


def counters(opened: BpfObject, message: int) -> tuple[int, int]:
    values = bpf_map.lookup_percpu(opened.maps["km_counters"].fd, struct.pack("<I", message))
    emitted, lost = zip(*(struct.unpack("<QQ", value) for value in values), strict=True)
    return sum(emitted), sum(lost)


TABLE = 4


def send_to(port: int, count: int) -> None:
    """
    Send a datagram from each of so many sockets, which live together.
    """
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
    for each in sockets:
        each.sendto(bytes(12), ("127.0.0.1", port))
    for each in sockets:
        each.close()


def test_a_full_table_makes_room_by_the_oldest_and_says_so(features):
    """
    Nobody has put a ring into `events`, so that only what is counted can be seen.
    """
    needs.that(features.program("tp_btf", "net_dev_queue"), "needs tp_btf")
    data = MODULE.object_bytes(machine_arch())
    log, port, many = 62, 20000 + os.getpid() % 10000, 11
    with BpfObject.open(data, MODULE.name) as opened:
        for each in opened.programs.values():
            each.set_autoload(each.name == "sent_btf")
        opened.maps["dns_sockets"].set_max_entries(TABLE)
        opened.maps["insertions"].set_max_entries(2 * TABLE)
        set_constant(opened, data, "port_1", struct.pack("<H", port))
        opened.load()
        with opened.programs["sent_btf"].attach_trace():
            send_to(port, many)
            send_to(port + 1, many)
        remembered = list(bpf_map.keys(opened.maps["dns_sockets"].fd))
        told, closed, logged = (counters(opened, number)[0] for number in (1, 2, log))

    assert told == many
    assert len(remembered) == TABLE
    assert closed == many - TABLE
    assert logged >= 1
