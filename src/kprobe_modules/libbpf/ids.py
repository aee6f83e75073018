# SPDX-License-Identifier: Apache-2.0
"""
The kernel's own lists of programs, maps and links, and what is attached to something.
"""

from __future__ import annotations

import ctypes
import errno
from typing import TYPE_CHECKING

import attrs

from kprobe_modules.errors import PrivilegeError
from kprobe_modules.libbpf import structs
from kprobe_modules.libbpf.descriptor import KernelError, expect
from kprobe_modules.libbpf.provider import in_use

if TYPE_CHECKING:
    from collections.abc import Callable

    from kprobe_modules.libbpf.provider import Library

__all__ = [
    "LinkInfo",
    "count_attached",
    "link_ids",
    "link_info",
    "map_ids",
    "open_link",
    "open_map",
    "open_program",
    "program_ids",
]

_CAPABILITY = "CAP_SYS_ADMIN"
_CAPABILITY_OF_NETWORKS = "CAP_NET_ADMIN"


@attrs.frozen
class LinkInfo:
    """
    What the kernel says of a link: its id, its type, and its program's id.
    """

    id: int
    type: int
    program_id: int


def program_ids(*, library: Library | None = None) -> list[int]:
    """
    Return the ids of all programs of the machine, ascending.

    Raises:
        PrivilegeError: CAP_SYS_ADMIN is missing.
    """
    return _walk((library or in_use()).c.bpf_prog_get_next_id, "programs")


def map_ids(*, library: Library | None = None) -> list[int]:
    """
    Return the ids of all maps of the machine; as :func:`program_ids`.
    """
    return _walk((library or in_use()).c.bpf_map_get_next_id, "maps")


def link_ids(*, library: Library | None = None) -> list[int]:
    """
    Return the ids of all links of the machine; as :func:`program_ids`.

    Kprobes and tracepoints are not links on kernels before 5.15.
    """
    return _walk((library or in_use()).c.bpf_link_get_next_id, "links")


def open_program(identity: int, *, library: Library | None = None) -> int | None:
    """
    Open a program by its id; None if it is gone.  The caller closes it.
    """
    return _opened((library or in_use()).c.bpf_prog_get_fd_by_id(identity), "program", identity)


def open_map(identity: int, *, library: Library | None = None) -> int | None:
    """
    Open a map by its id; None if it is gone.  The caller closes it.
    """
    return _opened((library or in_use()).c.bpf_map_get_fd_by_id(identity), "map", identity)


def open_link(identity: int, *, library: Library | None = None) -> int | None:
    """
    Open a link by its id; None if it is gone.  The caller closes it.
    """
    return _opened((library or in_use()).c.bpf_link_get_fd_by_id(identity), "link", identity)


def link_info(fd: int, *, library: Library | None = None) -> LinkInfo:
    """
    Ask the kernel about a link.

    Raises:
        KernelError: not a link (EINVAL), or not a descriptor (EBADF).
    """
    expect(fd, "bpf_link")
    found = structs.LinkInfo()
    size = ctypes.c_uint32(ctypes.sizeof(found))
    c = (library or in_use()).c
    code = c.bpf_obj_get_info_by_fd(fd, ctypes.byref(found), ctypes.byref(size))
    if code < 0:
        raise KernelError(-code, f"link descriptor {fd}: information")
    return LinkInfo(found.id, found.type, found.prog_id)


def count_attached(fd: int, attach_type: int, *, library: Library | None = None) -> int:
    """
    Return how many programs are attached to what a descriptor stands for.

    Args:
        fd: of a cgroup's folder, a network namespace, and the like.
        attach_type: a value of ``enum bpf_attach_type`` of <linux/bpf.h>; it says what
            *fd* must be of.
        library: the libbpf to ask with.

    Raises:
        PrivilegeError: CAP_NET_ADMIN is missing.
        KernelError: *fd* is of something else (EBADF, EINVAL).
    """
    count = ctypes.c_uint32(0)
    c = (library or in_use()).c
    code = c.bpf_prog_query(fd, attach_type, 0, None, None, ctypes.byref(count))
    if code in {-errno.EPERM, -errno.EACCES}:
        raise PrivilegeError(_CAPABILITY_OF_NETWORKS, f"to ask what is attached to {fd}")
    if code < 0:
        raise KernelError(-code, f"descriptor {fd}: programs attached to it")
    return count.value


def _walk(advance: Callable[[int, object], int], what: str) -> list[int]:
    found: list[int] = []
    following = ctypes.c_uint32(0)
    while True:
        code = advance(following.value, ctypes.byref(following))
        if code == -errno.ENOENT:
            return found
        if code in {-errno.EPERM, -errno.EACCES}:
            raise PrivilegeError(_CAPABILITY, f"to list the {what} of the kernel")
        if code < 0:
            raise KernelError(-code, f"list of {what}")
        found.append(following.value)


def _opened(fd: int, what: str, identity: int) -> int | None:
    if fd == -errno.ENOENT:
        return None
    if fd in {-errno.EPERM, -errno.EACCES}:
        raise PrivilegeError(_CAPABILITY, f"to open {what} {identity}")
    if fd < 0:
        raise KernelError(-fd, f"{what} {identity}: open")
    return fd
