# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import errno
import os
import struct
import subprocess
import threading
from pathlib import Path

import pytest

from kprobe_modules.errors import AttachError
from kprobe_modules.libbpf import BpfObject, KernelError
from kprobe_modules.libbpf import map as bpf_map
from kprobe_modules.libbpf.ids import link_info, open_link, open_map, open_program
from kprobe_modules.libbpf.program import prog_info
from tests.support.libbpfs import nothing_left, wait_until

KPROBE_PMU = Path("/sys/bus/event_source/devices/kprobe/type")
TRACEPOINT = Path("/sys/kernel/tracing/events/sched/sched_process_exit/id")

RAW, BTF, CLASSIC, KPROBE = (struct.pack("<I", number) for number in (1, 2, 3, 4))


@pytest.fixture
def loaded(selftest, library):
    """
    An object with all programs that load on every kernel.
    """
    with BpfObject.open(selftest, "selftest", library) as opened:
        for name in ("nowhere", "start_fentry"):
            opened.programs[name].set_autoload(False)
        opened.load()
        yield opened


def seen(opened, key):
    value = bpf_map.lookup(opened.maps["shared"].fd, key)
    return struct.unpack("<Q", value)[0] if value else 0


def exits(count):
    for _ in range(count):
        subprocess.run(["true"], check=True)


@pytest.mark.parametrize(
    ("program", "attach", "key"),
    [
        ("exit_btf", lambda program: program.attach_trace(), BTF),
        ("exit_raw", lambda program: program.attach_raw_tracepoint("sched_process_exit"), RAW),
    ],
)
def test_a_program_runs_while_its_link_is_open(loaded, program, attach, key):
    link = attach(loaded.programs[program])
    exits(3)
    assert seen(loaded, key) >= 3
    link.close()
    after = seen(loaded, key)
    exits(3)
    assert seen(loaded, key) == after


def test_a_link_is_what_the_kernel_says_it_is(loaded):
    with loaded.programs["exit_btf"].attach_trace() as link:
        about = link_info(link.fd)
        program = prog_info(loaded.programs["exit_btf"].fd)
        assert about.program_id == program.id
        assert program.name == "exit_btf"
        assert not os.get_inheritable(link.fd)
        for opening, identity in (
            (open_link, about.id),
            (open_program, program.id),
            (open_map, bpf_map.info(loaded.maps["shared"].fd).id),
        ):
            fd = opening(identity)
            assert fd is not None
            os.close(fd)
    assert wait_until(lambda: open_link(about.id) is None)


def test_a_link_outlives_its_object_and_ends_with_its_close(selftest, library):
    with nothing_left() as footprint:
        opened = BpfObject.open(selftest, "selftest", library)
        for program in opened.programs.values():
            program.set_autoload(program.name == "exit_btf")
        opened.load()
        link = opened.programs["exit_btf"].attach_trace()
        footprint.note(opened, link)
        opened.close()
        kinds = {kind for kind, _ in footprint.left()}
        assert kinds == {"link", "program", "map"}
        link.close()
        link.close()
        assert link.closed
        with pytest.raises(KernelError, match="already closed"):
            _ = link.fd


def test_an_iterator_visits_every_task(loaded):
    asleep = threading.Event()
    thread = threading.Thread(target=asleep.wait)
    thread.start()
    child = subprocess.Popen(["sleep", "60"])
    try:
        with loaded.programs["tasks"].attach_iter() as link:
            for _ in range(2):  # each pass starts anew
                fd = link.create_iter()
                assert not os.get_inheritable(fd)
                with open(fd, "rb") as passing:  # noqa: PTH123 - a descriptor
                    data = passing.read()
                found = struct.unpack(f"<{len(data) // 4}I", data)
                assert {os.getpid(), thread.native_id, child.pid} <= set(found)
                assert len(found) == len(set(found))
    finally:
        child.kill()
        child.wait()
        asleep.set()
        thread.join()


def test_only_iterators_iterate(loaded):
    with (
        loaded.programs["exit_btf"].attach_trace() as link,
        pytest.raises(KernelError, match="start of an iteration"),
    ):
        link.create_iter()


def test_an_unknown_tracepoint_is_an_attach_error(loaded):
    with pytest.raises(AttachError) as caught:
        loaded.programs["exit_raw"].attach_raw_tracepoint("km_nowhere")
    assert caught.value.errno == errno.ENOENT
    [(how, reason)] = caught.value.tried
    assert how == "raw_tp km_nowhere"
    assert "ENOENT" in reason


def test_a_program_of_another_type_is_an_attach_error(loaded):
    with pytest.raises(AttachError, match="of another type") as caught:
        loaded.programs["exit_btf"].attach_iter()
    assert caught.value.errno == errno.EINVAL


def test_a_program_that_is_not_loaded_says_so(loaded):
    with pytest.raises(KernelError, match="nowhere: not loaded"):
        loaded.programs["nowhere"].attach_trace()


def test_kprobes_count_calls_or_the_kernel_has_none(loaded):
    program = loaded.programs["start_kprobe"]
    for retprobe in (False, True):
        if not KPROBE_PMU.exists():
            with pytest.raises(AttachError, match=r"this kernel has no k(ret)?probes") as caught:
                program.attach_kprobe("wake_up_new_task", retprobe)
            assert caught.value.errno == errno.EOPNOTSUPP
            continue
        before = seen(loaded, KPROBE)
        with program.attach_kprobe("wake_up_new_task", retprobe):
            exits(3)
            assert seen(loaded, KPROBE) >= before + 3
        with pytest.raises(AttachError, match="km_no_such_function") as caught:
            program.attach_kprobe("km_no_such_function", retprobe)
        assert caught.value.errno in {errno.ENOENT, errno.EINVAL, errno.EADDRNOTAVAIL}


def test_classic_tracepoints_count_events_or_tracefs_is_named(loaded):
    program = loaded.programs["exit_classic"]
    if TRACEPOINT.exists():
        with program.attach_tracepoint("sched", "sched_process_exit"):
            exits(3)
            assert seen(loaded, CLASSIC) >= 3
    else:
        with pytest.raises(AttachError, match="or tracefs is not mounted"):
            program.attach_tracepoint("sched", "sched_process_exit")


def test_a_missing_classic_tracepoint_says_where_to_look(loaded):
    with pytest.raises(AttachError, match="no such tracepoint, or tracefs") as caught:
        loaded.programs["exit_classic"].attach_tracepoint("sched", "km_nowhere")
    assert caught.value.errno == errno.ENOENT
