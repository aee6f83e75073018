# SPDX-License-Identifier: Apache-2.0
"""
Making the kernel show every socket, where it has no iterators.

Reading a file such as ``/proc/PID/net/tcp`` calls a function of the kernel for each socket
of a network namespace.  The program there knows a socket's inode, and asks ``seen_inodes`` for a
process that holds it, which has been filled from ``/proc/PID/fd`` before.
"""

from __future__ import annotations

import time
from contextlib import suppress
from struct import Struct
from typing import TYPE_CHECKING

from kprobe_modules.namespaces import pids_by_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from kprobe_modules.handler import Context, MapAccess

__all__ = ["SocketScan", "show_sockets"]

_INODE = Struct("<I")
_SEEN = Struct("<II")
"""``struct km_seen_inode``."""
_EPOCH = Struct("<I")
_FIRST = bytes(4)


def _inodes(descriptors: Path) -> Iterator[int]:
    """
    Iterate over the sockets among the files of a process.
    """
    with suppress(OSError):  # it has ended
        for entry in descriptors.iterdir():
            try:
                link = str(entry.readlink())
            except OSError:
                continue  # it was closed
            if link.startswith("socket:["):
                yield int(link[len("socket:[") : -1]) & 0xFFFFFFFF


def _read(path: Path) -> None:
    # The process may have ended, and the kernel may have no IPv6.
    with suppress(OSError), path.open("rb", buffering=0) as file:
        while file.read(1 << 16):
            pass


class SocketScan:
    """
    One scan.

    Other modules may scan at the same time: entries bear the time since when they are
    good, and only older ones are replaced.
    """

    def __init__(
        self,
        proc_root: Path,
        seen_inodes: MapAccess,
        scan_epoch: MapAccess,
        shown_by: Sequence[str],
    ) -> None:
        """
        Begin a scan.

        Args:
            proc_root: where procfs is mounted.
            seen_inodes: the common map.
            scan_epoch: the module's own array of one, which tells its programs since when
                entries of *seen_inodes* count.
            shown_by: names of the files in ``/proc/PID/net`` that show the sockets.
        """
        self._proc_root = proc_root
        self._shown_by = shown_by
        self._seen = seen_inodes
        self._epoch = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000 & 0xFFFFFFFF
        scan_epoch.update(_FIRST, _EPOCH.pack(self._epoch))

    def run(self) -> int:
        """
        Do it; return for how many sockets there was no room in ``seen_inodes``.
        """
        entered: set[int] = set()
        unseen = 0
        for process in self._proc_root.iterdir():
            if not process.name.isdecimal():
                continue
            for inode in _inodes(process / "fd"):
                if inode not in entered:
                    entered.add(inode)
                    unseen += not self._enter(inode, int(process.name))
        for pid in pids_by_namespace(self._proc_root).values():
            for name in self._shown_by:
                _read(self._proc_root / pid / "net" / name)
        for inode in entered:
            self._leave(_INODE.pack(inode))
        return unseen

    def _enter(self, inode: int, pid: int) -> bool:
        key = _INODE.pack(inode)
        if self._is_newer(self._seen.lookup(key)):
            return True
        try:
            self._seen.update(key, _SEEN.pack(pid, self._epoch))
        except OSError:
            return False
        return True

    def _leave(self, key: bytes) -> None:
        value = self._seen.lookup(key)
        if value is not None and not self._is_newer(value):
            self._seen.delete(key)

    def _is_newer(self, value: bytes | None) -> bool:
        """
        Tell whether an entry is a later scan's; the clock of 32 bits may come round.
        """
        if value is None:
            return False
        epoch: int = _SEEN.unpack(value)[1]
        return 0 < (epoch - self._epoch & 0xFFFFFFFF) < 1 << 31


def show_sockets(context: Context, shown_by: Sequence[str]) -> None:
    """
    Scan for a module, which has an array of one ``scan_epoch``; log what found no room.

    Args:
        context: the module's.
        shown_by: names of the files in ``/proc/PID/net`` that show the sockets.
    """
    maps = context.map("seen_inodes"), context.map("scan_epoch")
    unseen = SocketScan(context.proc_root, *maps, shown_by).run()
    if unseen:
        context.log.warning("%d sockets found no room in seen_inodes", unseen)
