# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import re
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kprobe_modules import kernelbtf
from kprobe_modules.errors import NotSupportedError
from kprobe_modules.kernelbtf import KernelBtf
from kprobe_modules.libbpf.provider import in_use
from kprobe_modules.libbpf.structs import TRACE_FENTRY
from tests.support.requirements import needs

INDEX = kernelbtf.Index


@pytest.fixture(params=["native", "pure"], autouse=True)
def search(request, monkeypatch):
    if request.param == "pure":
        monkeypatch.setattr(kernelbtf, "Index", None)
    else:
        needs.that(kernelbtf.Index, "the compiled index")
    return request.param


@pytest.fixture
def btf():
    needs.kernel_btf()
    return KernelBtf()


def test_what_every_kernel_has(btf):
    assert btf.available
    assert btf.has_tracepoint("sched_process_exit")
    assert btf.tracepoint_home("sched_process_exit") == "vmlinux"
    assert btf.has_iterator("task")
    assert btf.has_function("wake_up_new_task")
    assert btf.home("wake_up_new_task") == "vmlinux"


def test_names_are_exact(btf):
    assert not btf.has_tracepoint("sched_process_exi")
    assert not btf.has_tracepoint("btf_trace_sched_process_exit")
    assert not btf.has_iterator("tas")
    assert not btf.has_function("task_struct")  # a struct
    assert not btf.has_function("btf_trace_sched_process_exit")  # a typedef
    assert not btf.has_function("size_t")  # a typedef
    assert btf.home("km_nowhere") is None


def test_bpftool_agrees(btf):
    bpftool = needs.command("bpftool", "/usr/sbin/bpftool")
    command = [bpftool, "btf", "dump", "file", "/sys/kernel/btf/vmlinux"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kinds: dict[str, set[str]] = {}
    for kind, name in re.findall(r"^\[\d+\] (\w+) '(.+?)'", listed, re.MULTILINE):
        kinds.setdefault(name, set()).add(kind)
    # Every so many names: a few hundred functions, and as many that are something else.
    functions = [name for name, its in kinds.items() if "FUNC" in its][::149]
    others = [name for name, its in kinds.items() if "FUNC" not in its][::149]
    points = [name for name in kinds if name.startswith("btf_trace_")][::13]
    assert len(functions) > 53
    assert len(others) > 53
    assert len(points) > 7
    assert [name for name in functions if not btf.has_function(name)] == []
    assert [name for name in others if btf.has_function(name)] == []
    assert [name for name in points if not btf.has_tracepoint(name[len("btf_trace_") :])] == []


def test_answers_outlive_a_close_and_new_questions_open_again(btf):
    assert btf.has_function("wake_up_new_task")
    btf.close()
    btf.close()
    assert btf.has_function("wake_up_new_task")
    assert btf.has_iterator("task")


def test_a_kernel_without_btf(tmp_path):
    btf = KernelBtf(sys=tmp_path)
    assert not btf.available
    with pytest.raises(NotSupportedError, match="CONFIG_DEBUG_INFO_BTF"):
        btf.has_function("wake_up_new_task")


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\x9f\xeb\x01\x00",
        b"\x9f\xeb\x01\x00" + b"\xff" * 60,
        b"\xeb\x9f\x01\x00" + struct.pack("<IIIII", 24, 0, 0, 0, 0),
    ],
)
def test_damaged_btf_is_an_error(tmp_path, damaged):
    folder = tmp_path / "kernel" / "btf"
    folder.mkdir(parents=True)
    (folder / "vmlinux").write_bytes(damaged)
    with pytest.raises(NotSupportedError, match="BTF of vmlinux"):
        KernelBtf(sys=tmp_path).has_function("wake_up_new_task")


def btf_file(types: tuple[int, ...], names: bytes) -> bytes:
    body = struct.pack(f"<{len(types)}I", *types)
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(names))
    return header + body + names


def test_kernel_modules_are_looked_into(tmp_path):
    """
    A split BTF as ``/sys/kernel/btf`` has them: some names are its own, some its base's.
    """
    folder = tmp_path / "kernel" / "btf"
    folder.mkdir(parents=True)
    base = b"\0km_in_the_kernel\0km_shared\0"
    shared = base.index(b"km_shared")
    prototype = (0, 13 << 24 | 1, 0, 0, 0)
    (folder / "vmlinux").write_bytes(btf_file((*prototype, 1, 12 << 24, 1), base))
    own = len(base) + 1
    functions = (own, 12 << 24, 3, shared, 12 << 24 | 1, 3)
    (folder / "km_module").write_bytes(btf_file((*prototype, *functions), b"\0km_in_a_module\0"))
    (folder / "damaged").write_bytes(b"\x9f")
    btf = KernelBtf(sys=tmp_path)
    assert btf.home("km_in_the_kernel") == "vmlinux"
    assert btf.home("km_in_a_module") == "km_module"
    assert btf.home("km_shared") == "km_module"
    assert btf.has_function("km_in_a_module")
    assert btf.home("km_in_a") is None


def test_a_word_across_two_is_no_type(tmp_path):
    folder = tmp_path / "kernel" / "btf"
    folder.mkdir(parents=True)
    names = b"\0km_name\0"
    torn = struct.pack("<HIIH", 0, 1, 12 << 24, 0)
    (folder / "vmlinux").write_bytes(btf_file(struct.unpack("<3I", torn), names))
    assert KernelBtf(sys=tmp_path).home("km_name") is None


def test_ids_are_those_that_libbpf_finds(btf, search):
    library = in_use()
    for name in ("wake_up_new_task", "bpf_iter_task", "commit_creds"):
        expected = library.c.libbpf_find_vmlinux_btf_id(name.encode(), TRACE_FENTRY)
        assert btf.type_id(name) == (expected if search == "native" else None)
        assert btf.has_function(name)
    assert btf.type_id("km_nowhere") is None


def test_a_type_of_a_kind_to_come_hides_no_other(tmp_path):
    folder = tmp_path / "kernel" / "btf"
    folder.mkdir(parents=True)
    names = b"\0km_name\0"
    (folder / "vmlinux").write_bytes(btf_file((0, 31 << 24, 0, 7, 1, 12 << 24, 1), names))
    btf = KernelBtf(sys=tmp_path)
    assert btf.home("km_name") == "vmlinux"
    assert btf.type_id("km_name") is None


def test_reading_ahead_answers_the_same(btf):
    btf.read()
    assert btf.has_iterator("task")
    assert not btf.has_function("km_nowhere")


def contents(path):
    needs.that(INDEX, "the compiled index")
    with path.open("rb", buffering=0) as stream:
        return kernelbtf.Contents(stream.fileno())


def test_contents_are_those_of_the_file(tmp_path):
    path = tmp_path / "file"
    for data in (b"", b"x", b"xy" * 4999):
        path.write_bytes(data)
        assert bytes(contents(path)) == data
    # What sysfs does not let us map, and is shorter than it says.
    path = Path("/sys/kernel/uevent_seqnum")
    read = bytes(contents(path))
    assert read[-1:] == b"\n"
    assert read.strip().isdigit()
    assert len(read) < path.stat().st_size


def test_contents_of_the_kernel_are_whole():
    path = needs.kernel_btf()
    assert bytes(contents(path)) == path.read_bytes()


def test_contents_are_not_to_be_written(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"some")
    view = memoryview(contents(path))
    assert view.readonly
    with pytest.raises(TypeError):
        view[0] = 0


def test_contents_of_nothing_are_an_error(tmp_path):
    needs.that(INDEX, "the compiled index")
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        for wrong in (-1, folder):
            with pytest.raises(OSError, match=r"Bad file descriptor|Is a directory"):
                kernelbtf.Contents(wrong)
    finally:
        os.close(folder)


def index(types: tuple[int, ...], names: bytes, base=None, kinds=1 << 12):
    needs.that(INDEX, "the compiled index")
    data = struct.pack(f"<{len(types)}I", *types) + names
    place = 4 * len(types)
    return INDEX(data, (0, place), (place, len(data)), kinds, base)


def test_the_first_of_a_name_counts():
    names = b"\0one\0two\0one"  # the last runs to the end, without a NUL
    made = index((1, 12 << 24, 0, 9, 12 << 24, 0, 5, 12 << 24, 0, 1, 8 << 24, 0), names)
    assert made.whole
    assert made.find(b"one", 12) == 0
    assert made.find(b"two", 12) == 2
    assert made.find(b"", 12) == made.find(b"on", 12) == made.find(b"one\0", 12) == -1
    with pytest.raises(ValueError, match="types of kind 8 are not in this index"):
        made.find(b"one", 8)
    both = index((1, 8 << 24, 0, 1, 12 << 24, 0), names, kinds=1 << 8 | 1 << 12)
    assert [both.find(b"one", kind) for kind in (8, 12)] == [0, 1]


def test_an_index_goes_on_from_its_base():
    base = index((1, 12 << 24, 0), b"\0one\0")
    made = index((1, 12 << 24, 0, 6, 12 << 24, 0), b"\0two\0", base)
    beyond = index((99, 12 << 24, 0, 7, 12 << 24, 0), b"\0two\0", base)
    assert (made.find(b"one", 12), made.find(b"two", 12), base.find(b"two", 12)) == (0, 1, -1)
    assert [beyond.find(name, 12) for name in (b"one", b"two", b"wo")] == [-1, -1, 1]


@pytest.mark.parametrize(
    "types", [(1, 12 << 24), (1, 4 << 24 | 1, 0, 0, 0), (1, 0, 0), (1, 31 << 24, 0)]
)
def test_what_is_cut_or_unknown_ends_an_index(types):
    made = index((1, 12 << 24, 0, *types), b"\0one\0")
    assert not made.whole
    assert made.find(b"one", 12) == 0


def test_an_index_refuses_what_is_outside():
    needs.that(INDEX, "the compiled index")
    data = struct.pack("<3I", 1, 12 << 24, 1)
    for place in ((-1, 12), (0, 13), (12, 0)):
        for places in ((place, (0, 0)), ((0, 0), place)):
            with pytest.raises(ValueError, match="expected parts of 12 bytes"):
                INDEX(data, *places, 1 << 12)
    for wrong in (data, 7):
        with pytest.raises(TypeError, match="as base"):
            INDEX(data, (0, 12), (0, 0), 1 << 12, wrong)


@given(st.binary(max_size=200), st.binary(max_size=40))
def test_no_bytes_break_an_index(types, names):
    needs.that(INDEX, "the compiled index")
    data = types + names
    made = INDEX(data, (0, len(types)), (len(types), len(data)), 0xFFFFFFFF)
    for kind in range(20):
        assert made.find(b"one", kind) >= -1
