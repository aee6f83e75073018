# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import time
from pathlib import Path

import pytest

from kprobe_modules.errors import RingError
from kprobe_modules.libbpf import (
    BpfObject,
    KernelError,
    count_attached,
    enable_stats,
    open_bpf_output,
    prog_info,
    test_run,
)
from kprobe_modules.libbpf import map as bpf_map
from tests.support.requirements import needs

KERNEL = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))
RAW_TRACEPOINT = 17
INGRESS = 0
PERF_RECORD_SAMPLE = 9


@pytest.fixture
def loaded(selftest, library):
    with BpfObject.open(selftest, "selftest", library) as opened:
        for program in opened.programs.values():
            program.set_autoload(program.section == "raw_tp")
        opened.load()
        yield opened


def test_a_program_runs_on_the_chosen_cpu(loaded):
    needs.cpus(2)
    fd = loaded.programs["which_cpu"].fd
    for cpu in (1, 0, 1):
        assert test_run(fd, cpu) == cpu
    assert test_run(fd) in os.sched_getaffinity(0)


def test_a_program_sees_its_arguments(loaded):
    fd = loaded.programs["second_word"].fd
    assert test_run(fd, 0, struct.pack("<QQ", 1, 1009)) == 1009
    with pytest.raises(KernelError, match=r"EINVAL"):
        test_run(fd, 0, struct.pack("<Q", 1))


def test_an_offline_cpu_is_an_error(loaded):
    with pytest.raises(KernelError, match="on CPU 4095") as caught:
        test_run(loaded.programs["answer"].fd, 4095)
    assert caught.value.errno in {errno.ENXIO, errno.EINVAL}


def test_information_is_the_kernels(loaded):
    about = prog_info(loaded.programs["answer"].fd)
    assert about.name == "answer"
    assert about.type == RAW_TRACEPOINT
    assert about.uid == os.getuid()
    assert about.translated_size > 0
    assert about.verified_instructions > 0 or KERNEL < (5, 16)
    assert 0 < about.load_time <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert about.id != prog_info(loaded.programs["output"].fd).id


def test_statistics_have_an_owner():
    needs.root()
    with enable_stats() as owner:
        assert not os.get_inheritable(owner.fd)
    owner.close()
    with pytest.raises(KernelError, match="already closed"):
        _ = owner.fd


def test_runs_are_counted_while_statistics_are_on(selftest, library):
    with BpfObject.open(selftest, "selftest", library) as opened:
        for program in opened.programs.values():
            program.set_autoload(program.name == "exit_btf")
        opened.load()
        program = opened.programs["exit_btf"]
        with program.attach_trace(), enable_stats():
            for _ in range(3):
                os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
            about = prog_info(program.fd)
        assert about.run_cnt >= 3
        assert about.run_time_ns > about.run_cnt
        assert about.recursion_misses >= 0


def test_only_programs_have_program_information(loaded):
    for fd in (-1, loaded.maps["shared"].fd):
        with pytest.raises(KernelError, match="information"):
            prog_info(fd)


def test_output_arrives_in_the_ring_of_its_cpu(loaded):
    needs.cpus(2)
    page = mmap.PAGESIZE
    fd = open_bpf_output(1, wakeup_watermark=64)
    try:
        assert not os.get_inheritable(fd)
        ring = mmap.mmap(fd, 9 * page)
        bpf_map.update(loaded.maps["events"].fd, struct.pack("<i", 1), struct.pack("<i", fd))
        assert test_run(loaded.programs["output"].fd, 1) == 0
        # CPU 0 has no ring, and the program is told so (ENOENT).
        assert test_run(loaded.programs["output"].fd, 0) == (1 << 32) - errno.ENOENT
        head = struct.unpack_from("<Q", ring, 1024)[0]
        kind, _, size = struct.unpack_from("<IHH", ring, page)
        raw = struct.unpack_from("<I", ring, page + 8)[0]
        assert kind == PERF_RECORD_SAMPLE
        assert head == size
        assert raw >= 16
        assert struct.unpack_from("<QQ", ring, page + 12) == (0x1122334455667788, 7)
        ring.close()
    finally:
        os.close(fd)


def test_the_event_is_a_perf_event():
    needs.root()
    fd = open_bpf_output(0, wakeup_watermark=0)
    try:
        fcntl.ioctl(fd, 0x2401, 0)  # PERF_EVENT_IOC_DISABLE: a perf event it is
    finally:
        os.close(fd)


def test_no_event_on_a_cpu_that_does_not_exist():
    needs.root()
    with pytest.raises(RingError, match="CPU 4095") as caught:
        open_bpf_output(4095, wakeup_watermark=0)
    assert caught.value.errno in {errno.ENODEV, errno.EINVAL}


def test_what_is_attached_to_a_cgroup_is_counted(library):
    needs.root()
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    folders = [fields[1] for fields in mounts if fields[2] == "cgroup2"]
    needs.that(folders, "needs a version 2 cgroup hierarchy")
    folder = os.open(folders[0], os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert count_attached(folder, INGRESS, library=library) >= 0
    finally:
        os.close(folder)
    reader, writer = os.pipe()
    try:
        with pytest.raises(KernelError, match=f"descriptor {reader}: .*EBADF"):
            count_attached(reader, INGRESS, library=library)
    finally:
        os.close(reader)
        os.close(writer)
