# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from kprobe_modules.libbpf import BpfObject, KernelError, possible_cpus, test_run
from kprobe_modules.libbpf import map as bpf_map
from kprobe_modules.maps import CommonMaps
from tests.support.requirements import needs


@pytest.fixture
def maps(selftest, library):
    with BpfObject.open(selftest, "selftest", library) as opened:
        for program in opened.programs.values():
            program.set_autoload(program.name == "which_cpu")
        opened.load()
        yield opened


def u32(number):
    return struct.pack("<I", number)


def u64(number):
    return struct.pack("<Q", number)


def test_entries_come_and_go(maps):
    fd = maps.maps["shared"].fd
    assert bpf_map.lookup(fd, u32(1)) is None
    assert bpf_map.update(fd, u32(1), u64(11))
    assert bpf_map.lookup(fd, u32(1), 8) == u64(11)
    assert not bpf_map.update(fd, u32(1), u64(12), bpf_map.NEW)
    assert not bpf_map.update(fd, u32(2), u64(12), bpf_map.EXISTS)
    assert bpf_map.update(fd, u32(2), u64(12), bpf_map.NEW)
    assert bpf_map.update(fd, u32(1), u64(13), bpf_map.EXISTS)
    assert sorted(bpf_map.keys(fd)) == [u32(1), u32(2)]
    assert dict(bpf_map.items(fd)) == {u32(1): u64(13), u32(2): u64(12)}
    assert bpf_map.delete(fd, u32(1))
    assert not bpf_map.delete(fd, u32(1))
    assert list(bpf_map.keys(fd)) == [u32(2)]


def test_a_full_map_is_an_error(maps):
    fd = maps.maps["shared"].fd
    for number in range(4):
        bpf_map.update(fd, u32(number), u64(0))
    with pytest.raises(KernelError, match=r"update: .*\(E2BIG\)") as caught:
        bpf_map.update(fd, u32(5), u64(0))
    assert caught.value.errno == errno.E2BIG
    assert isinstance(caught.value, OSError)


def test_values_are_read_whole_or_in_part(maps):
    """
    In bulk those of a hash, and one by one those of an array.
    """
    shared = maps.maps["shared"].fd
    assert list(bpf_map.values(shared)) == []
    for number in range(4):
        bpf_map.update(shared, u32(number), u64(number << 32 | 7))

    assert sorted(bpf_map.values(shared)) == [u64(number << 32 | 7) for number in range(4)]
    assert list(bpf_map.values(shared, 4)) == [u32(7)] * 4
    assert list(bpf_map.values(shared, 9)) == list(bpf_map.values(shared))
    # libbpf has made the constants an array of one.
    constants = next(each.fd for name, each in maps.maps.items() if name.endswith(".rodata"))
    assert list(bpf_map.values(constants, 4)) == [bpf_map.lookup(constants, u32(0))[:4]]


def test_values_of_more_than_one_reading(library):
    with CommonMaps(library) as common:
        fd = common.fd("tgid_info_table")
        for number in range(bpf_map.BATCH + 5):
            bpf_map.update(fd, u32(number), u64(number) * 2)

        found = [struct.unpack("<Q", value)[0] for value in bpf_map.values(fd, 8)]

    assert sorted(found) == list(range(bpf_map.BATCH + 5))


def test_deleting_while_walking_ends(maps):
    fd = maps.maps["shared"].fd
    for number in range(4):
        bpf_map.update(fd, u32(number), u64(0))
    for key in bpf_map.keys(fd):
        bpf_map.delete(fd, key)
        bpf_map.update(fd, key, u64(1))


def test_each_possible_cpu_has_its_value(maps):
    needs.cpus(2)
    fd = maps.maps["percpu"].fd
    for _ in range(3):
        test_run(maps.programs["which_cpu"].fd, 1)
    values = bpf_map.lookup_percpu(fd, u32(1), 4)
    assert len(values) == possible_cpus()
    counts = [struct.unpack("<I", each)[0] for each in values]
    assert counts[1] == 3
    assert sum(counts) == 3
    assert bpf_map.lookup_percpu(fd, u32(9)) is None
    assert bpf_map.info(fd).percpu
    assert not bpf_map.info(maps.maps["shared"].fd).percpu


def test_the_number_of_possible_cpus_is_the_kernels(library):
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    last = text.split(",")[-1].split("-")[-1]
    assert possible_cpus(library=library) == int(last) + 1
    assert possible_cpus() >= os.cpu_count()


def test_information_is_the_kernels(maps):
    about = bpf_map.info(maps.maps["shared"].fd)
    assert (about.name, about.type, about.key_size, about.value_size) == ("shared", 1, 4, 8)
    assert (about.max_entries, about.flags) == (4, 0)
    assert about.id > 0
    assert about.btf_id > 0
    assert about.btf_key_type_id > 0
    assert about.btf_value_type_id > 0


def test_other_descriptors_are_refused(library):
    with open(os.devnull, "rb") as other:  # noqa: PTH123 - any file
        for use in (
            lambda fd: bpf_map.info(fd, library=library),
            lambda fd: bpf_map.lookup(fd, u32(0), 4, library=library),
            lambda fd: bpf_map.update(fd, u32(0), u32(0), library=library),
            lambda fd: bpf_map.delete(fd, u32(0), library=library),
            lambda fd: list(bpf_map.keys(fd, library=library)),
            lambda fd: list(bpf_map.values(fd, library=library)),
        ):
            with pytest.raises(KernelError, match="descriptor"):
                use(other.fileno())


def test_clearing(maps):
    """
    Entries of a hash are deleted, those of an array become zero, on every CPU.
    """
    shared, percpu = maps.maps["shared"].fd, maps.maps["percpu"].fd
    for number in range(4):
        bpf_map.update(shared, u32(number), u64(number + 1))
    bpf_map.update(percpu, u32(1), u64(7) * possible_cpus())
    assert any(map(any, bpf_map.lookup_percpu(percpu, u32(1), 4)))
    for fd in (shared, percpu):
        bpf_map.clear(fd)
    assert list(bpf_map.keys(shared)) == []
    assert not any(map(any, bpf_map.lookup_percpu(percpu, u32(1), 4)))
