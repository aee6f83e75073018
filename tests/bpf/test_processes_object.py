# SPDX-License-Identifier: Apache-2.0
"""
The object of the processes module: what it says, and that the running kernel takes it.
"""

from __future__ import annotations

import os
import struct
from importlib.resources import files

import pytest
from kprobe_modules.modules.processes import MODULE

from kprobe_modules.architecture import machine_arch
from kprobe_modules.features import Support
from kprobe_modules.libbpf import BpfObject
from kprobe_modules.libbpf import map as bpf_map
from kprobe_modules.libbpf import program as bpf_program
from kprobe_modules.objectfile import read
from tests.support.requirements import needs

PROGRAMS = tuple(
    program for hook in MODULE.hooks for each in hook.alternatives for program in each.programs
)


@pytest.fixture(params=["x86_64", "arm64"])
def spec(request):
    return read(MODULE.object_bytes(request.param), MODULE.name)


def test_messages(spec):
    assert {message.name: (message.id, message.layout.size) for message in spec.messages} == {
        "pid_info": (1, 64),
        "pid_close": (2, 80),
        "pid_set_comm": (3, 80),
        "pid_exit": (4, 72),
        "cgroup_attach_task": (5, 64),
        "pid_exec": (6, 72),
    }
    assert [message.name for message in spec.messages if message.layout.tail] == ["pid_exec"]


def test_the_functions_of_the_survey_are_among_the_alternatives(spec):
    targets = {(program.kind, program.target) for program in spec.programs}

    assert targets >= {
        ("kprobe", "wake_up_new_task"),
        ("kprobe", "taskstats_exit"),
        ("kprobe", "cgroup_exit"),
        ("kretprobe", "get_pid_task"),
        ("kprobe", "__set_task_comm"),
        ("kprobe", "cgroup_attach_task"),
    }


@pytest.mark.parametrize("transport", ["perf", "ringbuf"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_verifier_accepts(name, transport, features):
    data = MODULE.object_bytes(machine_arch())
    program = read(data, MODULE.name).program(name)
    with BpfObject.open(data, MODULE.name) as opened:
        answer = features.program(program.kind, program.target)
        if program.kind in ("fentry", "fexit", "tp_btf", "iter") and answer.support is Support.NO:
            # The kernel looks these up at load. The hook must have another way then.
            hook = MODULE.hook(program.hook)
            others = [read(data, MODULE.name).program(each.program) for each in hook.alternatives]
            assert any(features.program(each.kind, each.target) for each in others), answer
            return
        for each in opened.programs.values():
            each.set_autoload(each.name == name)
        if transport == "ringbuf":
            make_ring_buffer(opened, data)
        opened.load()
        assert opened.programs[name].fd >= 0


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


def test_a_scan_without_room_counts_every_process_as_lost_and_remembers_none(features):
    needs.that(features.iterator("task"), "needs task iterators")
    data = MODULE.object_bytes(machine_arch())
    with BpfObject.open(data, MODULE.name) as opened:
        for each in opened.programs.values():
            each.set_autoload(each.name == "existing_iter")
        opened.load()
        # Nobody has put a ring into `events`, so every output fails.
        with opened.programs["existing_iter"].attach_iter() as link:
            fd = link.create_iter()
            try:
                steps = os.read(fd, 4096)
            finally:
                os.close(fd)
        emitted, lost = counters(opened, 1)
        remembered = list(bpf_map.keys(opened.maps["tgid_info_table"].fd))

    assert steps == b"", "a step is written for a process that was reported"
    assert emitted == lost > 2
    assert remembered == [], "a scan must be able to report them again"


def test_the_scratch_slots_run_out_and_come_back():
    needs.root()
    data = files("tests.bpf.objects").joinpath(f"generator.{machine_arch()}.bpf.o").read_bytes()
    ragged = 7
    with BpfObject.open(data, "generator") as opened:
        for each in opened.programs.values():
            each.set_autoload(each.name == "exhaust_scratch")
        opened.load()
        program = opened.programs["exhaust_scratch"]
        for turn in range(1, 4):
            assert bpf_program.test_run(program.fd) == 4, "all slots were free"
            assert counters(opened, ragged) == (turn, turn), "and the one more was counted as lost"
