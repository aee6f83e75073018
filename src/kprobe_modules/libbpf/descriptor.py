# SPDX-License-Identifier: Apache-2.0
"""
Owning a file descriptor, and what a failed system call raises.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from kprobe_modules.errors import KprobeModulesError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["ENOTSUPP", "Descriptor", "KernelError", "expect", "name_of", "symbol_of"]

#: An error number internal to the kernel, which bpf(2) returns all the same.
ENOTSUPP = 524


class KernelError(KprobeModulesError, OSError):
    """
    The kernel refused an operation on something that already exists.

    Attributes:
        errno: the error number.
        what: what was asked for, for people.
    """

    def __init__(self, code: int, what: str) -> None:
        super().__init__(code, what)
        self.errno = code
        self.what = what

    def __str__(self) -> str:
        return f"{self.what}: {name_of(self.errno or 0)}"


def name_of(code: int) -> str:
    """
    Return an error number as people read it: ``no such file (ENOENT)``.
    """
    if code == ENOTSUPP:
        return "not supported (ENOTSUPP)"
    sentence = os.strerror(code)
    sentence = sentence[:1].lower() + sentence[1:]
    return f"{sentence} ({symbol_of(code)})"


def symbol_of(code: int) -> str:
    """
    Return an error number as the kernel's sources spell it: ``ENOENT``.
    """
    if code == errno.EOPNOTSUPP:
        return "EOPNOTSUPP"  # Python knows it by its other name, ENOTSUP
    if code == ENOTSUPP:
        return "ENOTSUPP"
    return errno.errorcode.get(code, str(code))


def expect(fd: int, kind: str) -> None:
    """
    Check that a descriptor is of a BPF object of one kind.

    The kernel answers questions about any of them with one call, and fills in
    another kind's struct without complaint.

    Args:
        fd: the descriptor.
        kind: ``bpf-map``, ``bpf-prog`` or ``bpf_link``, the kernel's own names.

    Raises:
        KernelError: it is of another kind (EINVAL), or none (EBADF).
    """
    try:
        target = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 - hot enough
    except FileNotFoundError:
        if not os.path.exists("/proc/self/fd"):  # noqa: PTH110
            return  # without procfs nothing can be told
        raise KernelError(errno.EBADF, f"descriptor {fd}: information as {kind}") from None
    if target != f"anon_inode:{kind}":
        raise KernelError(errno.EINVAL, f"descriptor {fd}: information as {kind}")


class Descriptor:
    """
    Own one file descriptor; closing twice is fine.

    Not thread-safe against a concurrent :meth:`close`; using :attr:`fd` from
    several threads is fine.
    """

    __slots__ = ("_fd", "what")

    def __init__(self, fd: int, what: str) -> None:
        self._fd = fd
        self.what = what

    @property
    def fd(self) -> int:
        """
        The descriptor.

        Raises:
            KernelError: it has been closed.
        """
        if self._fd < 0:
            raise KernelError(errno.EBADF, f"{self.what}: already closed")
        return self._fd

    def fileno(self) -> int:
        """
        Return :attr:`fd`, for select and its kin.
        """
        return self.fd

    @property
    def closed(self) -> bool:
        """
        Whether :meth:`close` has been called.
        """
        return self._fd < 0

    def close(self) -> None:
        """
        Close the descriptor, once.
        """
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

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
        state = "closed" if self.closed else self._fd
        return f"<Descriptor {self.what}: {state}>"
