# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import subprocess

import pytest

from kprobe_modules.errors import NotSupportedError
from kprobe_modules.libbpf import KernelBtf
from tests.support.requirements import needs


@pytest.fixture
def btf(library):
    needs.kernel_btf()
    with KernelBtf(library) as opened:
        yield opened


def test_what_every_kernel_has(btf):
    assert btf.available
    assert btf.has_tracepoint("sched_process_exit")
    assert btf.has_iterator("task")
    assert btf.has_function("wake_up_new_task")
    assert btf.home("wake_up_new_task") == "vmlinux"
    assert btf.has_struct("task_struct")
    assert btf.function_id("wake_up_new_task") > 0


def test_names_are_exact(btf):
    assert not btf.has_tracepoint("sched_process_exi")
    assert not btf.has_tracepoint("btf_trace_sched_process_exit")
    assert not btf.has_iterator("tas")
    assert not btf.has_function("task_struct")  # a struct
    assert not btf.has_struct("wake_up_new_task")  # a function
    assert btf.home("km_nowhere") is None
    assert btf.function_id("km_nowhere") is None
    assert btf.func_params("km_nowhere") is None


def test_parameters_are_counted(btf):
    assert btf.func_params("wake_up_new_task") == 1
    assert btf.func_params("security_sock_graft") == 2
    assert btf.func_params("tcp_sendmsg") == 3


def test_bpftool_agrees(btf):
    bpftool = needs.command("bpftool", "/usr/sbin/bpftool")
    command = [bpftool, "btf", "dump", "file", "/sys/kernel/btf/vmlinux"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"\n[{btf.function_id('wake_up_new_task')}] FUNC 'wake_up_new_task'" in listed


def test_answers_outlive_a_close_and_new_questions_open_again(btf):
    assert btf.has_function("wake_up_new_task")
    btf.close()
    btf.close()
    assert btf.has_function("wake_up_new_task")
    assert btf.has_iterator("task")


def test_a_kernel_without_btf(library, tmp_path):
    btf = KernelBtf(library, sys=tmp_path)
    assert not btf.available
    with pytest.raises(NotSupportedError, match="CONFIG_DEBUG_INFO_BTF"):
        btf.has_function("wake_up_new_task")
    btf.close()


def test_damaged_btf_is_an_error(library, tmp_path):
    folder = tmp_path / "kernel" / "btf"
    folder.mkdir(parents=True)
    (folder / "vmlinux").write_bytes(b"\x9f\xeb\x01\x00" + b"\xff" * 60)
    with (
        KernelBtf(library, sys=tmp_path) as btf,
        pytest.raises(NotSupportedError, match="BTF of vmlinux"),
    ):
        btf.has_function("wake_up_new_task")


def test_kernel_modules_are_looked_into(btf, tmp_path):
    """
    A split BTF as ``/sys/kernel/btf`` has them, built on this kernel's own.
    """
    needs.root()
    folder = tmp_path / "kernel" / "btf"
    folder.mkdir(parents=True)
    vmlinux = needs.kernel_btf().read_bytes()
    (folder / "vmlinux").write_bytes(vmlinux)
    strings_size = int.from_bytes(vmlinux[20:24], "little")
    types = _types(btf)
    # FUNC_PROTO returning void with one parameter, and a FUNC of that type.
    names = b"\0km_in_a_module\0"
    name = strings_size + 1
    body = b"".join(
        number.to_bytes(4, "little") for number in (0, 13 << 24 | 1, 0, 0, 0, name, 12 << 24, types)
    )
    header = b"\x9f\xeb\x01\x00" + b"".join(
        number.to_bytes(4, "little") for number in (24, 0, len(body), len(body), len(names))
    )
    (folder / "km_module").write_bytes(header + body + names)
    with KernelBtf(btf._library, sys=tmp_path) as both:
        assert both.home("km_in_a_module") == "km_module"
        assert both.has_function("km_in_a_module")
        assert both.func_params("km_in_a_module") == 1
        assert both.function_id("km_in_a_module") is None
        assert both.home("wake_up_new_task") == "vmlinux"
        assert both.home("km_nowhere") is None


def _types(btf):
    btf.has_function("wake_up_new_task")
    return btf._library.c.btf__type_cnt(btf._vmlinux)
