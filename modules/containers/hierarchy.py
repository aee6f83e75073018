# SPDX-License-Identifier: Apache-2.0
"""
The cgroup hierarchy that counts, as user space sees it.

That is its number, where it is mounted, and the folders in it.  The rule is that of
``km_task_cgroup`` in ``km/cgroup.h``: the hierarchy of the memory controller where that
has a version 1 hierarchy, else the default one.  Formats: cgroups(7) "/proc files",
proc_pid_mountinfo(5).

What is observed is what was found, packed, and not the files: a host has thousands of
mounts, and a walk meets thousands of folders, of which an id and a name are wanted.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from struct import Struct
from time import time_ns
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Cgroupfs", "Folder", "Hierarchy", "Walk"]

INITIAL_CGROUP_NAMESPACE = "cgroup:[4026531835]"
"""Its inode number is fixed (PROC_CGROUP_INIT_INO, include/linux/proc_ns.h)."""

_OCTAL = re.compile(r"\\([0-7]{3})")


_TIME = Struct("<Q")
_FOLDER = Struct("<QQH")
"""Id, the one above, bytes of the name behind."""


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
class Walk:
    """
    The folders there are.
    """

    time: int
    """When it began, in nanoseconds since the epoch."""
    folders: tuple[Folder, ...]
    """Those above first."""

    def to_bytes(self) -> bytes:
        """
        Return it as an observation holds it.
        """
        parts = [_TIME.pack(self.time)]
        for each in self.folders:
            parts += (
                _FOLDER.pack(each.cgroup_id, each.parent_cgroup_id, len(each.name)),
                each.name,
            )
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, raw: bytes, mount_point: str) -> Walk:
        """
        Return what `to_bytes` was called on.

        Args:
            raw: what it returned.
            mount_point: the path of the topmost folder.

        Raises:
            struct.error: it did not return that.
        """
        (time,) = _TIME.unpack_from(raw)
        paths = {0: mount_point}
        folders: list[Folder] = []
        position = _TIME.size
        while position < len(raw):
            cgroup_id, above, size = _FOLDER.unpack_from(raw, position)
            position += _FOLDER.size + size
            name = raw[position - size : position]
            path = paths.get(above, mount_point)
            paths[cgroup_id] = f"{path}/{os.fsdecode(name)}" if name else path
            folders.append(Folder(cgroup_id, above, name, paths[cgroup_id]))
        return cls(time, tuple(folders))


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

    def to_bytes(self) -> bytes:
        """
        Return it as an observation holds it.
        """
        return b"%d %d %s" % (self.number, self.is_whole, os.fsencode(self.mount_point or ""))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Hierarchy:
        """
        Return what `to_bytes` was called on.

        Raises:
            ValueError: it did not return that.
        """
        number, whole, where = raw.split(b" ", 2)
        return cls(int(number), os.fsdecode(where) or None, is_whole=whole == b"1")


NOTHING = Hierarchy(0, None, is_whole=False)


def _look(_what: str, look: Callable[[], bytes]) -> bytes:
    return look()


class Cgroupfs:
    """
    The hierarchy that counts, wherever it is mounted.

    Args:
        proc_root: where procfs is mounted.
        observe: through which everything is read, see `kprobe_modules.api.Context`.
    """

    def __init__(
        self, proc_root: Path, observe: Callable[[str, Callable[[], bytes]], bytes] = _look
    ) -> None:
        self._proc_root = proc_root
        self._observe = observe

    def number(self) -> int | None:
        """
        Return the number of the hierarchy that counts now, None where procfs does not say.
        """

        def look() -> bytes:
            said = _read(self._proc_root / "self" / "cgroup")
            return b"%d" % _number(said) if said else b""

        try:
            raw = self._observe("hierarchy number", look)
        except OSError:  # only in a replay, of what was not asked then
            return None
        return int(raw) if raw else None

    def find(self) -> Hierarchy:
        """
        Return the hierarchy that counts now.
        """
        try:
            raw = self._observe("hierarchy", lambda: _find(self._proc_root).to_bytes())
        except OSError:  # as above
            return NOTHING
        return Hierarchy.from_bytes(raw)

    def walk(self, hierarchy: Hierarchy) -> Walk:
        """
        Return every folder of a hierarchy.  What goes away meanwhile is left out.
        """
        where = hierarchy.mount_point
        if where is None:
            return Walk(0, ())

        def look() -> bytes:
            return Walk(time_ns(), tuple(_folders(where))).to_bytes()

        try:
            raw = self._observe("folders", look)
        except OSError:  # as above
            return Walk(0, ())
        return Walk.from_bytes(raw, where)

    def holds(self, hierarchy: Hierarchy, path: str, cgroup_id: int) -> bool:
        """
        Tell whether the cgroup of that path is there and has that id.
        """

        def look() -> bytes:
            try:
                found = Path(f"{hierarchy.mount_point}{path}").stat().st_ino
            except OSError:
                return b"no"
            return b"yes" if found == cgroup_id else b"no"

        try:
            return self._observe(f"cgroup {cgroup_id}", look) == b"yes"
        except OSError:  # as above
            return False


def _folders(mount_point: str) -> Iterator[Folder]:
    try:
        top = Folder(Path(mount_point).stat().st_ino, 0, b"", mount_point)
    except OSError:
        return
    below = [top]
    while below:
        folder = below.pop()
        yield folder
        below += _within(folder)


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


def _find(proc_root: Path) -> Hierarchy:
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
