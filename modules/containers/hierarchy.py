# SPDX-License-Identifier: Apache-2.0
"""
The cgroup hierarchy that counts, as user space sees it.

That is its number, where it is mounted, and the folders in it.  The rule is that of
``km_task_cgroup`` in ``km/cgroup.h``: the hierarchy of the memory controller where that
has a version 1 hierarchy, else the default one.  Formats: cgroups(7) "/proc files",
proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Folder", "Hierarchy", "find"]

INITIAL_CGROUP_NAMESPACE = "cgroup:[4026531835]"
"""Its inode number is fixed (PROC_CGROUP_INIT_INO, include/linux/proc_ns.h)."""

_OCTAL = re.compile(r"\\([0-7]{3})")


@attrs.frozen
class Folder:
    """
    A cgroup as its folder shows it.
    """

    cgroup_id: int
    parent_cgroup_id: int
    """0 for the topmost folder."""
    name: bytes
    """Empty for the topmost."""
    path: str
    """Where it is mounted."""


@attrs.frozen
class Hierarchy:
    """
    A cgroup hierarchy.
    """

    number: int
    """As in ``/proc/PID/cgroup``: 0 is version 2."""
    mount_point: str | None
    """Where its topmost folder is; None if it is not mounted here."""
    is_whole: bool
    """Whether what is mounted is all of it, and not what a cgroup namespace shows."""

    def folders(self) -> Iterator[Folder]:
        """
        Yield every folder, those above first.  What goes away meanwhile is left out.
        """
        if self.mount_point is None:
            return
        try:
            top = Folder(Path(self.mount_point).stat().st_ino, 0, b"", self.mount_point)
        except OSError:
            return
        below = [top]
        while below:
            folder = below.pop()
            yield folder
            below += _within(folder)

    def holds(self, path: str, cgroup_id: int) -> bool:
        """
        Tell whether the cgroup of that path is there and has that id.
        """
        try:
            return Path(f"{self.mount_point}{path}").stat().st_ino == cgroup_id
        except OSError:
            return False


def _within(folder: Folder) -> list[Folder]:
    found = []
    try:
        with os.scandir(folder.path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    name = os.fsencode(entry.name)
                    found.append(Folder(entry.inode(), folder.cgroup_id, name, entry.path))
    except OSError:
        pass  # it was removed
    return found


def find(proc_root: Path) -> Hierarchy:
    """
    Return the hierarchy that counts now.

    Args:
        proc_root: where procfs is mounted.
    """
    number = _number(_read(proc_root / "self" / "cgroup"))
    kind, option = ("cgroup", "memory") if number else ("cgroup2", "")
    for line in _read(proc_root / "self" / "mountinfo").splitlines():
        head, _, tail = line.partition(" - ")
        fields, described = head.split(" "), tail.split(" ")
        if len(fields) < 5 or len(described) < 3 or described[0] != kind:  # noqa: PLR2004
            continue
        if fields[3] == "/" and (not option or option in described[2].split(",")):
            where = _OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[4])
            return Hierarchy(number, where, _in_initial_namespace(proc_root))
    return Hierarchy(number, None, is_whole=False)


def _number(text: str) -> int:
    """
    Return the number of the hierarchy that counts, from ``/proc/PID/cgroup``.
    """
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        if "memory" in rest.partition(":")[0].split(","):
            return int(number)
    return 0


def _in_initial_namespace(proc_root: Path) -> bool:
    try:
        shown = (proc_root / "self" / "ns" / "cgroup").readlink()
    except OSError:
        return False
    return str(shown) == INITIAL_CGROUP_NAMESPACE


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
