# SPDX-License-Identifier: Apache-2.0
"""
The object of the containers module: what it says, and that the running kernel takes it.
"""

from __future__ import annotations

import os
import struct

import pytest
from kprobe_modules.modules.containers import MODULE

from kprobe_modules.architecture import machine_arch
from kprobe_modules.features import Features, Support
from kprobe_modules.libbpf import BpfObject
from kprobe_modules.libbpf import map as bpf_map
from kprobe_modules.objectfile import read
from tests.support.cgroups import where_number

PROGRAMS = tuple(
    program for hook in MODULE.hooks for each in hook.alternatives for program in each.programs
)


@pytest.fixture(params=["x86_64", "arm64"])
def spec(request):
    return read(MODULE.object_bytes(request.param), MODULE.name)


def test_messages(spec):
    assert {message.name: (message.id, message.layout.size) for message in spec.messages} == {
        "css_populate_dir": (1, 40),
        "kill_css": (2, 40),
        "existing_cgroup_probe": (3, 40),
        "cgroup_attach_task": (4, 64),
        "cgroup_rename": (5, 40),
    }
    tailed = {message.name for message in spec.messages if message.layout.tail}
    assert tailed == {"css_populate_dir", "kill_css", "existing_cgroup_probe", "cgroup_rename"}


def test_the_functions_of_the_survey_are_among_the_alternatives(spec):
    targets = {(program.kind, program.target) for program in spec.programs}

    assert targets >= {
        ("kprobe", "css_populate_dir"),
        ("kprobe", "cgroup_populate_dir"),
        ("kprobe", "kill_css"),
        ("kprobe", "cgroup_destroy_locked"),
        ("kprobe", "cgroup_control"),
        ("kretprobe", "cgroup_get_from_fd"),
        ("kprobe", "cgroup_clone_children_read"),
        ("kprobe", "cgroup_attach_task"),
    }


@pytest.mark.parametrize("transport", ["perf", "ringbuf"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_verifier_accepts(name, transport, features):
    data = MODULE.object_bytes(machine_arch())
    spec = read(data, MODULE.name)
    program = spec.program(name)
    with BpfObject.open(data, MODULE.name) as opened:
        answer = features.program(program.kind, program.target)
        if program.kind in ("fentry", "fexit", "tp_btf", "iter") and answer.support is Support.NO:
            # The kernel looks these up at load. The hook must have another way then.
            assert another_way(program.hook, features), answer
            return
        for each in opened.programs.values():
            each.set_autoload(each.name == name)
        if transport == "ringbuf":
            make_ring_buffer(opened, data)
        opened.load()
        assert opened.programs[name].fd >= 0


def another_way(hook: str, features: Features) -> bool:
    spec = read(MODULE.object_bytes(machine_arch()), MODULE.name)
    for alternative in MODULE.hook(hook).alternatives:
        programs = [spec.program(name) for name in alternative.programs]
        if alternative.source or all(features.program(one.kind, one.target) for one in programs):
            return True
    return False


def make_ring_buffer(opened: BpfObject, data: bytes) -> None:
    events = opened.maps["events"]
    events.set_type(27)
    events.set_key_size(0)
    events.set_value_size(0)
    events.set_max_entries(1 << 16)
    (tunable,) = (item for item in read(data, MODULE.name).tunables if item.name == "km_transport")
    constants = bytearray(opened.maps[".rodata"].initial_value())
    constants[tunable.offset] = 1
    opened.maps[".rodata"].set_initial_value(bytes(constants))


def counters(opened: BpfObject, message: int) -> tuple[int, int]:
    values = bpf_map.lookup_percpu(opened.maps["km_counters"].fd, struct.pack("<I", message))
    emitted, lost = zip(*(struct.unpack("<QQ", value) for value in values), strict=True)
    return sum(emitted), sum(lost)


def test_a_scan_without_room_counts_every_cgroup_as_lost_and_remembers_none(features):
    if not features.iterator("cgroup"):
        assert another_way("existing", features)
        return
    (iterator, *_) = MODULE.hook("existing").alternatives
    data = MODULE.object_bytes(machine_arch())
    with BpfObject.open(data, MODULE.name) as opened:
        for each in opened.programs.values():
            each.set_autoload(each.name == iterator.program)
        opened.load()
        # Nobody has put a ring into `events`, so every output fails.
        with opened.programs[iterator.program].attach_iter(iterator.link_info) as link:
            fd = link.create_iter()
            try:
                steps = os.read(fd, 4096)
            finally:
                os.close(fd)
        emitted, lost = counters(opened, 3)
        remembered = list(bpf_map.keys(opened.maps["known_cgroups"].fd))
        now = bpf_map.lookup(opened.maps["pass"].fd, bytes(4), 16)

    assert steps == b"", "a step is written for a cgroup that was reported"
    assert emitted == lost
    assert (emitted > 0) == (where_number() == 0), "the iterator walks version 2"
    assert remembered == [], "a scan must be able to report them again"
    assert now is not None
    assert struct.unpack("<QQ", now) == (0, 0)
