# SPDX-License-Identifier: Apache-2.0
"""
A program of an object: whether to load it, and where to attach it.
"""

from __future__ import annotations

import ctypes
import errno
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kprobe_modules.libbpf import refusal, structs
from kprobe_modules.libbpf.descriptor import KernelError
from kprobe_modules.libbpf.link import Link

if TYPE_CHECKING:
    from kprobe_modules.libbpf.provider import Library

__all__ = ["BpfProgram", "Owner"]

#: Present exactly if perf_event_open can place kprobes.  Without it libbpf
#: would write to tracefs instead, which outlives a killed process.
_KPROBE_PMU = Path("/sys/bus/event_source/devices/kprobe/type")


class Owner(Protocol):
    """
    The open object that a program or map belongs to.
    """

    library: Library
    name: str
    has_kernel_btf: bool
    """Whether libbpf has read the kernel's BTF for it."""

    def check(self) -> None:
        """
        Raise if the object is closed and its pointers are dangling.
        """


class BpfProgram:
    """
    One program of an open :class:`~kprobe_modules.libbpf.object.BpfObject`.

    Unusable once its object is closed; links outlive the object.  Not
    thread-safe against the object's close.

    Attributes:
        name: the C function.
        section: e.g. ``fentry/cgroup_exit``.
    """

    def __init__(self, owner: Owner, pointer: int) -> None:
        self._owner = owner
        self._c = owner.library.c
        self._pointer = pointer
        self.name: str = self._c.bpf_program__name(pointer).decode()
        self.section: str = self._c.bpf_program__section_name(pointer).decode()

    def __repr__(self) -> str:
        return f"<BpfProgram {self.name} {self.section}>"

    @property
    def type(self) -> int:
        """
        Its type, a number of ``enum bpf_prog_type``.
        """
        self._owner.check()
        value: int = self._c.bpf_program__type(self._pointer)
        return value

    @property
    def fd(self) -> int:
        """
        Its descriptor, owned by the object.

        Raises:
            KernelError: it is not loaded.
        """
        self._owner.check()
        fd: int = self._c.bpf_program__fd(self._pointer)
        if fd < 0:
            raise KernelError(errno.ENOENT, f"program {self.name}: not loaded")
        return fd

    @property
    def autoload(self) -> bool:
        """
        Whether the object's load loads it.
        """
        self._owner.check()
        return bool(self._c.bpf_program__autoload(self._pointer))

    def set_autoload(self, load: bool) -> None:  # noqa: FBT001 (the C name's meaning)
        """
        Choose, before the object is loaded, whether this program will be.

        Raises:
            LoadError: the object is loaded already.
        """
        self._owner.check()
        with self._owner.library.messages.listen() as lines:
            code = self._c.bpf_program__set_autoload(self._pointer, load)
        if code < 0:
            what = f"program {self.name}: choice to load"
            raise refusal.of_object(self._owner.name, what, -code, lines)

    def find_target(self) -> None:
        """
        Look up now what the program attaches to, by BTF, instead of in the object's load.

        For the first program of an object libbpf reads the kernel's BTF, which takes
        some 15 ms, in which other threads run.  It keeps that for the load, whose CO-RE
        relocations want it too.

        Raises:
            LoadError: the kernel has no such target, or the object is loaded already.
        """
        self._owner.check()
        target = self.section.partition("/")[2]
        self._owner.has_kernel_btf = True
        with self._owner.library.messages.listen() as lines:
            code = self._c.bpf_program__set_attach_target(self._pointer, 0, target.encode())
        if code < 0:
            what = f"program {self.name}: target {target}"
            raise refusal.of_object(self._owner.name, what, -code, lines)

    def attach_kprobe(self, function: str, retprobe: bool = False) -> Link:  # noqa: FBT001, FBT002
        """
        Attach to the entry, or the return, of a kernel function by exact name.

        Raises:
            AttachError: with ``errno`` and the reason.
        """
        how = f"{'kretprobe' if retprobe else 'kprobe'} {function}"
        if not _KPROBE_PMU.exists():
            raise refusal.of_attach(self.name, how, errno.EOPNOTSUPP)
        return self._attach(how, "attach_kprobe", retprobe, function.encode())

    def attach_trace(self) -> Link:
        """
        Attach a BTF tracepoint, fentry or fexit program to what it names.

        Raises:
            AttachError: with ``errno`` and the reason.
        """
        return self._attach(self.section.replace("/", " ", 1), "attach_trace")

    def attach_raw_tracepoint(self, name: str) -> Link:
        """
        Attach to a raw tracepoint.

        Raises:
            AttachError: with ``errno`` and the reason.
        """
        return self._attach(f"raw_tp {name}", "attach_raw_tracepoint", name.encode())

    def attach_tracepoint(self, category: str, name: str) -> Link:
        """
        Attach to a classic tracepoint, e.g. ``sched``, ``sched_process_exec``.

        Closing such a link takes the kernel some 70 ms.

        Raises:
            AttachError: with ``errno`` and the reason.
        """
        how = f"tracepoint {category}:{name}"
        return self._attach(how, "attach_tracepoint", category.encode(), name.encode())

    def attach_iter(self, link_info: bytes = b"") -> Link:
        """
        Attach an iterator; :meth:`Link.create_iter` then starts each pass.

        Args:
            link_info: ``union bpf_iter_link_info`` of <linux/bpf.h>, for iterators
                that want to know what to walk.

        Raises:
            AttachError: with ``errno`` and the reason.
        """
        how = self.section.replace("/", " ", 1)
        if not link_info:
            return self._attach(how, "attach_iter", None)
        options = structs.IterAttachOptions(
            sz=ctypes.sizeof(structs.IterAttachOptions),
            link_info=ctypes.cast(ctypes.c_char_p(link_info), ctypes.c_void_p),
            link_info_len=len(link_info),
        )
        return self._attach(how, "attach_iter", ctypes.byref(options))

    def _attach(self, how: str, function: str, *arguments: object) -> Link:
        _ = self.fd  # libbpf's answer for a program that is not loaded misleads
        library = self._owner.library
        with library.messages.listen() as lines:
            attach = getattr(self._c, f"bpf_program__{function}")
            pointer = attach(self._pointer, *arguments)
            code = ctypes.get_errno()
        if not pointer:
            raise refusal.of_attach(self.name, how, code, lines)
        return Link(library, pointer, f"{self.name} at {how}")
