# SPDX-License-Identifier: Apache-2.0
"""
Trying out what a kernel allows, with the smallest program there is.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING

from kprobe_modules.libbpf import structs
from kprobe_modules.libbpf.descriptor import KernelError
from kprobe_modules.libbpf.program import test_run
from kprobe_modules.libbpf.provider import in_use

if TYPE_CHECKING:
    from kprobe_modules.libbpf.provider import Library

__all__ = ["FENTRY_CANDIDATES", "has_ring_buffer", "try_fentry", "try_run_on_cpu"]

#: ``r0 = 0; exit`` (struct bpf_insn: code, registers, offset, immediate).
_RETURN_ZERO = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)

#: Functions to try fentry with: the first is there for such tests and never called
#: otherwise; the others are called rarely.
FENTRY_CANDIDATES = ("bpf_fentry_test1", "cgroup_attach_task", "commit_creds")


def _load(
    library: Library | None, kind: int, name: bytes, attach_type: int = 0, btf_id: int = 0
) -> int:
    """
    Load ``return 0``; give its descriptor or a negative error number.
    """
    library = library or in_use()
    options = structs.ProgramLoadOptions(
        sz=ctypes.sizeof(structs.ProgramLoadOptions),
        expected_attach_type=attach_type,
        attach_btf_id=btf_id,
    )
    with library.messages.listen():
        fd: int = library.c.bpf_prog_load(
            kind,
            name,
            b"GPL",
            _RETURN_ZERO,
            len(_RETURN_ZERO) // 8,
            ctypes.byref(options),
        )
    return fd


def try_fentry(function: str, library: Library | None = None, *, type_id: int | None = None) -> int:
    """
    Attach an fentry program to a function of the kernel's BTF for a moment.

    Args:
        function: its name.
        library: the libbpf to use.
        type_id: of the function, where known: libbpf parses all of the BTF to find it.

    Returns:
        0 if it worked, the error number if not.
    """
    library = library or in_use()
    if type_id is None:
        with library.messages.listen():
            type_id = library.c.libbpf_find_vmlinux_btf_id(function.encode(), structs.TRACE_FENTRY)
    if type_id < 0:
        return -type_id
    fd = _load(library, structs.PROG_TYPE_TRACING, b"km_probe", structs.TRACE_FENTRY, type_id)
    if fd < 0:
        return -fd
    try:
        link: int = library.c.bpf_raw_tracepoint_open(None, fd)
    finally:
        os.close(fd)
    if link < 0:
        return -link
    os.close(link)
    return 0


def try_run_on_cpu(library: Library | None = None) -> int:
    """
    Run a raw tracepoint program on the first CPU that this process may use.

    Returns:
        0 if it worked, the error number if not.
    """
    fd = _load(library, structs.PROG_TYPE_RAW_TRACEPOINT, b"km_probe")
    if fd < 0:
        return -fd
    try:
        test_run(fd, min(os.sched_getaffinity(0)), library=library)
    except KernelError as error:
        return error.errno or 0
    finally:
        os.close(fd)
    return 0


def has_ring_buffer(library: Library | None = None) -> bool:
    """
    Say whether a BPF ring buffer can be made; needs CAP_BPF to be true.
    """
    library = library or in_use()
    with library.messages.listen():
        return bool(library.c.libbpf_probe_bpf_map_type(structs.MAP_TYPE_RINGBUF, None) > 0)
