# SPDX-License-Identifier: Apache-2.0
"""
What procfs says about a process, read so that a reused pid is not taken for it.

Formats: proc(5), "/proc/pid/stat", "/proc/pid/cmdline".
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Procfs", "Stat", "split_arguments"]

NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

ARGUMENTS_SIZE = 4096
"""Bytes of a command line that are kept, as many as an exec message has."""

INITIAL_PID_NAMESPACE = "pid:[4026531836]"
"""Its inode number is fixed (PROC_PID_INIT_INO, include/linux/proc_ns.h)."""


@attrs.frozen
class Stat:
    """
    The fields of ``/proc/<pid>/stat`` that are used here.
    """

    comm: str
    state: str
    threads: int
    start_ticks: int
    """Clock ticks since boot."""
    status: int | None
    """Wait status of a zombie; None where the reader may not know."""

    @property
    def is_over(self) -> bool:
        """
        Whether the last thread is gone, and only the parent has not asked yet.
        """
        return self.state in "XZ" and self.threads <= 1


def split_arguments(raw: bytes) -> tuple[str, ...]:
    """
    Split NUL-terminated arguments, empty ones included; the last may be cut off.
    """
    if not raw:
        return ()
    if raw[-1] == 0:
        raw = raw[:-1]
    return tuple(raw.decode("utf-8", "replace").split("\0"))


def _look(_what: str, look: Callable[[], bytes]) -> bytes:
    return look()


def _privileged() -> bytes:
    return b"yes" if os.geteuid() == 0 else b"no"


class Procfs:
    """
    A mounted procfs.

    Args:
        root: where it is mounted.
        observe: through which it is read, see `kprobe_modules.api.Context`.
    """

    def __init__(
        self, root: Path, observe: Callable[[str, Callable[[], bytes]], bytes] = _look
    ) -> None:
        self._root = str(root)
        self._observe = observe
        self._privileged = self._seen("privileged", _privileged) == b"yes"

    def is_hosts(self) -> bool:
        """
        Tell whether its pids are those of the initial PID namespace, as the kernel's are.

        True when we are in that namespace ourselves, else when its first process is:
        then it is the host's procfs in a container.
        """
        return INITIAL_PID_NAMESPACE in (self._link("self/ns/pid"), self._link("1/ns/pid"))

    def pids(self) -> list[int]:
        """
        Return the pids there are.
        """
        try:
            names = os.listdir(self._root)  # noqa: PTH208 - names are all we want
        except OSError:
            return []
        return [int(name) for name in names if name.isdigit()]

    def stat(self, pid: int) -> Stat | None:
        """
        Return the status of a process, or None when there is none.
        """
        raw = self._read(pid, "stat", 1024)
        # The name may hold anything, parentheses and blanks included.
        head, _, tail = raw.rpartition(b")")
        fields = tail.split()
        try:
            return Stat(
                comm=head.partition(b"(")[2].decode("utf-8", "replace"),
                state=fields[0].decode("ascii", "replace"),
                threads=int(fields[17]),
                start_ticks=int(fields[19]),
                # The kernel shows 0 to those who may not trace the process.
                status=int(fields[49]) or (0 if self._privileged else None),
            )
        except (IndexError, ValueError):
            return None

    def find(self, pid: int, start_time: int) -> Stat | None:
        """
        Return the status of exactly that process, or None when it is gone.
        """
        stat = self.stat(pid)
        if stat is None or abs(stat.start_ticks - start_time // NS_PER_TICK) > 1:
            return None
        return stat

    def arguments(self, pid: int) -> tuple[str, ...]:
        """
        Return the command line as the process shows it now, empty when it is gone.
        """
        return split_arguments(self._read(pid, "cmdline", ARGUMENTS_SIZE))

    def executable(self, pid: int) -> str:
        """
        Return the path of the running program, empty when unknown.
        """
        return self._link(f"{pid}/exe")

    def _link(self, path: str) -> str:
        def look() -> bytes:
            return os.fsencode(os.readlink(f"{self._root}/{path}"))  # noqa: PTH115 - three times as fast

        return os.fsdecode(self._seen(path, look))

    def _read(self, pid: int, name: str, size: int) -> bytes:
        def look() -> bytes:
            fd = os.open(f"{self._root}/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.read(fd, size)
            finally:
                os.close(fd)

        return self._seen(f"{pid}/{name}", look)

    def _seen(self, what: str, look: Callable[[], bytes]) -> bytes:
        try:
            return self._observe(what, look)
        except OSError:
            return b""
