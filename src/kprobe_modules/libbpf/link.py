# SPDX-License-Identifier: Apache-2.0
"""
Attachments: a link keeps a program attached until it is closed.
"""

from __future__ import annotations

import ctypes
import errno
import threading
from typing import TYPE_CHECKING

from kprobe_modules.libbpf import structs
from kprobe_modules.libbpf.descriptor import KernelError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from kprobe_modules.libbpf.provider import Library

__all__ = ["Link"]

_PERF_EVENT = 7
"""BPF_LINK_TYPE_PERF_EVENT of linux/bpf.h."""

_KPROBES = (3, 4)
"""BPF_PERF_EVENT_KPROBE and BPF_PERF_EVENT_KRETPROBE."""


class Link:
    """
    Own one attachment; closing twice, from any thread, is fine.

    Attributes:
        what: what it attached to, for people.
    """

    def __init__(self, library: Library, pointer: int, what: str) -> None:
        self._library = library
        self._pointer = pointer
        self._lock = threading.Lock()
        self._missed = 0
        self.what = what

    @property
    def fd(self) -> int:
        """
        Descriptor of the link, owned by it.

        On kernels before 5.15 that of a kprobe or tracepoint is a perf event.

        Raises:
            KernelError: the link is closed.
        """
        if not self._pointer:
            raise KernelError(errno.EBADF, f"link {self.what}: already closed")
        fd: int = self._library.c.bpf_link__fd(self._pointer)
        return fd

    @property
    def closed(self) -> bool:
        """
        Whether :meth:`close` has been called.
        """
        return not self._pointer

    @property
    def missed(self) -> int:
        """
        How often the kernel passed over a kprobe, as it was hit inside of another one.

        Once the link is closed, what it was then.  0 for links of other kinds, and before 6.7.
        """
        with self._lock:
            return self._ask_missed() if self._pointer else self._missed

    def _ask_missed(self) -> int:
        found = structs.KprobeLinkInfo()
        size = ctypes.c_uint32(ctypes.sizeof(found))
        c = self._library.c
        fd = c.bpf_link__fd(self._pointer)
        if c.bpf_obj_get_info_by_fd(fd, ctypes.byref(found), ctypes.byref(size)) < 0:
            return 0  # it is a perf event
        known = found.type == _PERF_EVENT and found.perf_type in _KPROBES
        return int(found.missed) if known else 0

    def create_iter(self) -> int:
        """
        Start one pass of an iterator.

        Returns:
            a descriptor to read to its end, owned by the caller; close-on-exec.

        Raises:
            KernelError: the link is not of an iterator program.
        """
        fd: int = self._library.c.bpf_iter_create(self.fd)
        if fd < 0:
            raise KernelError(-fd, f"link {self.what}: start of an iteration")
        return fd

    def close(self) -> None:
        """
        Detach.  A run of the program in progress may still be ending.
        """
        with self._lock:
            if self._pointer:
                self._missed = self._ask_missed()
            pointer, self._pointer = self._pointer, 0
        if pointer:
            with self._library.messages.listen():
                self._library.c.bpf_link__destroy(pointer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Link {self.what}{' closed' if self.closed else ''}>"
