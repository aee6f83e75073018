# SPDX-License-Identifier: Apache-2.0
"""
The object of the nat module: what it says, and that the running kernel takes it.
"""

from __future__ import annotations

import pytest
from kprobe_modules.modules.nat import MODULE
from kprobe_modules.modules.nat.table import KINDS, TRANSLATED_COUNT

from kprobe_modules.architecture import machine_arch
from kprobe_modules.features import Support
from kprobe_modules.libbpf import BpfObject
from kprobe_modules.objectfile import read
from tests.support.loading import make_ring_buffer

EITHER_WAY = (
    "nf_ct_delete",
    "nf_ct_destroy",
    "nf_nat_cleanup_conntrack",
    "ctnetlink_dump_tuples",
    "ctnetlink_dump_tuples_ip",
    "nf_ct_port_tuple_to_nlattr",
    "icmp_tuple_to_nlattr",
    "icmpv6_tuple_to_nlattr",
)
"""Functions of the survey and more, each by fentry and by kprobe."""
CONFIRMING = ("__nf_conntrack_confirm", "nf_conntrack_hash_check_insert")


@pytest.fixture(params=["x86_64", "arm64"])
def spec(request):
    return read(MODULE.object_bytes(request.param), MODULE.name)


def test_messages(spec):
    assert {message.name: (message.id, message.layout.size) for message in spec.messages} == {
        "nf_conntrack_alter_reply": (1, 112),
        "nf_nat_cleanup_conntrack": (2, 128),
        "existing_conntrack_tuple": (3, 112),
    }


def test_the_handler_has_the_names_of_the_header(spec):
    layout = spec.message("nf_conntrack_alter_reply").layout
    (found,) = (each for each in layout.fields if each.name == "kind")

    assert [value for _, value in found.enum_values] == list(range(len(KINDS)))
    assert [name.removeprefix("KM_NAT_").lower() for name, _ in found.enum_values] == list(KINDS)


def test_the_handler_keeps_as_many_as_the_table(spec):
    assert spec.map("seen_conntracks").max_entries == TRANSLATED_COUNT


def test_the_functions_of_the_survey_are_among_the_alternatives(spec):
    targets = {(program.kind, program.target) for program in spec.programs}

    for target in EITHER_WAY:
        assert {("fentry", target), ("kprobe", target)} <= targets, target
    for target in CONFIRMING:
        assert {("fexit", target), ("kprobe", target), ("kretprobe", target)} <= targets
    assert {("kprobe", "nf_conntrack_destroy"), ("kprobe", "ctnetlink_fill_info")} <= targets


@pytest.mark.parametrize("transport", ["perf", "ringbuf"])
def test_the_verifier_accepts_all_programs(transport, features):
    """
    All at once: one after the other takes minutes in a guest.

    Those of fentry can be loaded only where their functions are: with conntrack.
    """
    data = MODULE.object_bytes(machine_arch())
    spec = read(data, MODULE.name)
    absent = {
        each.name
        for each in spec.programs
        if each.kind in ("fentry", "fexit")
        and features.program(each.kind, each.target).support is Support.NO
    }
    with BpfObject.open(data, MODULE.name) as opened:
        for each in opened.programs.values():
            each.set_autoload(each.name not in absent)
        if transport == "ringbuf":
            make_ring_buffer(opened, data)
        opened.load()
        for each in spec.programs:
            assert each.name in absent or opened.programs[each.name].fd >= 0
