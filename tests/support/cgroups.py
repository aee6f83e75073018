# SPDX-License-Identifier: Apache-2.0
"""
Cgroups that come and go, and the truth about them: mkdir, rmdir, rename, stat, /proc.

Nothing here knows of BPF or of the module that is tested.
"""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING, Self

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "VERSION_1_OPTIONAL",
    "Cgroup",
    "Forest",
    "Root",
    "ShapeError",
    "own_cgroup_id",
    "version_1",
    "where",
    "where_number",
    "without_version_2",
]

VERSION_1_OPTIONAL = (6, 11)
"""The kernel since which memory controllers of version 1 can be left out (CONFIG_MEMCG_V1)."""


class ShapeError(Exception):
    """
    This kernel or machine cannot mount hierarchies that way.
    """


@attrs.frozen
class Root:
    """
    The hierarchy that counts: the memory controller's own, else version 2.
    """

    folder: Path
    """Where it is mounted."""
    number: int
    """As in ``/proc/PID/cgroup``."""


@attrs.define
class Cgroup:
    """
    What the workload knows of one of its cgroups.
    """

    cgroup_id: int
    parent_id: int
    path: str
    """From the root of the hierarchy."""
    born: int
    """CLOCK_MONOTONIC in ns, just before it was made."""
    made: int
    """The same, once it was there."""
    ending: int = 0
    """Before it was removed."""
    died: int = 0
    """The same, once it was removed; 0 while it is there."""


def where() -> Root:
    """
    Return the hierarchy that counts, by what procfs says.
    """
    number = where_number()
    return Root(_mounted(number), number)


def _mounted(number: int) -> Path:
    """
    Return where version 2 (0) or the memory controller's own hierarchy is mounted.
    """
    wanted = " - cgroup " if number else " - cgroup2 "
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        options = line.split()[-1].split(",")
        if wanted in line and (not number or "memory" in options):
            return Path(line.split()[4])
    raise ShapeError(f"hierarchy {number} is not mounted")  # noqa: TRY003, EM102


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ShapeError(f"mount {' '.join(arguments)}: {done.stderr.strip()}")  # noqa: TRY003, EM102


def _mount_version_1(folder: str, seconds: float = 20.0) -> None:
    """
    Mount the memory controller's hierarchy, which version 2 gives away only when it is unused.

    Cgroups that were removed use it until the last page that was charged to them is freed, so
    pages of files are dropped.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            _mount("-t", "cgroup", "-o", "memory", "cgroup", folder)
        except ShapeError as error:
            if "busy" not in str(error) or time.monotonic() > deadline:
                raise
        else:
            return
        Path("/proc/sys/vm/drop_caches").write_text("3")
        time.sleep(0.5)


def _unmount_version_1(folder: str, seconds: float = 120.0) -> None:
    """
    Unmount the memory controller's hierarchy until the controller is back where it was.

    The kernel looks but once, when it is unmounted, whether any cgroup was ever in it that is not
    freed yet, and if so keeps the hierarchy for the next mount (cgroup_kill_sb).  A cgroup that was
    removed is freed when the last page that was charged to it is, so pages of files are dropped.
    """
    deadline = time.monotonic() + seconds
    while True:
        subprocess.run(["umount", folder], check=True)
        again = time.monotonic() + 2
        while where_number() and time.monotonic() < again:
            time.sleep(0.05)
        if not where_number():
            return
        assert time.monotonic() < deadline, "the version 1 hierarchy stays after it was unmounted"
        Path("/proc/sys/vm/drop_caches").write_text("3")
        _mount_version_1(folder)


def own_cgroup_id() -> int:
    """
    Return the id of this process's cgroup in the hierarchy that counts.
    """
    lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    entries = [line.split(":", 2) for line in lines]
    for _number, controllers, path in entries:
        if "memory" in controllers.split(","):
            return Path(f"/sys/fs/cgroup/memory{path}").stat().st_ino
    path = next(path for number, _, path in entries if number == "0")
    return Path(f"/sys/fs/cgroup{path}").stat().st_ino


def where_number() -> int:
    """
    Return the number of the memory controller's own hierarchy, 0 without one.
    """
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        entry = line.split(":", 2)
        if "memory" in entry[1].split(","):
            return int(entry[0])
    return 0


@contextmanager
def version_1() -> Iterator[None]:
    """
    Give the memory controller a version 1 hierarchy beside version 2 while the body runs.

    It takes the kernel long to give such a hierarchy up, so make one for many tests.

    Raises:
        ShapeError: when that is not possible here.
    """
    if where_number():
        raise ShapeError("the machine has a version 1 hierarchy already")  # noqa: TRY003, EM101
    folder = tempfile.mkdtemp(prefix="km-memory-")
    try:
        _mount_version_1(folder)
        try:
            yield
        finally:
            _unmount_version_1(folder)
    finally:
        Path(folder).rmdir()


@contextmanager
def without_version_2() -> Iterator[None]:
    """
    Leave the hierarchy of version 2 unmounted while the body runs.
    """
    folder = _mounted(0)
    subprocess.run(["umount", "--lazy", folder], check=True)
    try:
        yield
    finally:
        _mount("-t", "cgroup2", "cgroup2", str(folder))


def _subtree_control(folder: Path) -> Path:
    return folder / "cgroup.subtree_control"


class Forest:
    """
    Cgroups of one test, below a folder of their own, gone at the end.

    Args:
        root: the hierarchy that they are made in.
        controller: what each of them shall have, in version 2.  Where nobody asks for any, as in
            a guest without an init system, cgroups of version 2 have none at all.
    """

    def __init__(self, root: Root, *, controller: str = "") -> None:
        self.root = root
        self.truth: list[Cgroup] = []
        """All that were ever made, in that order."""
        self._alive: dict[Path, Cgroup] = {}
        self._controller = controller
        self._granted = bool(controller) and self._grant(root.folder)
        self.top = self.make(root.folder, f"km-test-{os.getpid()}-{monotonic_ns()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for folder in sorted(self._alive, key=lambda each: len(each.parts), reverse=True):
            self.remove(folder)
        if self._granted:
            _subtree_control(self.root.folder).write_text(f"-{self._controller}")

    def _grant(self, parent: Path) -> bool:
        """
        Give what is below a cgroup of version 2 the controller; return whether it had none.
        """
        control = _subtree_control(parent)
        if self._controller in control.read_text().split():
            return False
        control.write_text(f"+{self._controller}")
        return True

    def of(self, folder: Path) -> Cgroup:
        """
        Return what is known of a cgroup that is there.
        """
        return self._alive[folder]

    def path(self, folder: Path) -> str:
        """
        Return the path from the root of the hierarchy.
        """
        return "/" + str(folder.relative_to(self.root.folder))

    def make(self, parent: Path, name: str) -> Path:
        """
        Make a cgroup.
        """
        folder = parent / name
        if self._controller:
            self._grant(parent)
        born = monotonic_ns()
        folder.mkdir()
        made = monotonic_ns()
        cgroup = Cgroup(folder.stat().st_ino, parent.stat().st_ino, self.path(folder), born, made)
        self.truth.append(cgroup)
        self._alive[folder] = cgroup
        return folder

    def remove(self, folder: Path) -> None:
        """
        Remove a cgroup; processes that were told to end may still be in it.
        """
        deadline = time.monotonic() + 20
        while True:
            ending = monotonic_ns()
            try:
                folder.rmdir()
                break
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        cgroup = self._alive.pop(folder)
        cgroup.ending, cgroup.died = ending, monotonic_ns()

    def rename(self, folder: Path, name: str) -> Path:
        """
        Rename a cgroup, with all below it.
        """
        renamed = folder.with_name(name)
        folder.rename(renamed)
        for old in [each for each in self._alive if each == folder or folder in each.parents]:
            cgroup = self._alive.pop(old)
            new = renamed / old.relative_to(folder)
            cgroup.path = self.path(new)
            self._alive[new] = cgroup
        return renamed

    def chain(self, name: str, depth: int) -> list[Path]:
        """
        Make cgroups one inside the other.
        """
        made: list[Path] = []
        parent = self.top
        for level in range(depth):
            parent = self.make(parent, f"{name}-{level}")
            made.append(parent)
        return made

    def churn(self, count: int, pause: float = 0.0) -> None:
        """
        Make and remove that many: chains of seven, some with the longest names there are.
        """
        done = 0
        while done < count:
            number = done // 7
            name = f"{number:04d}-" + ("n" * 248 if number % 5 == 0 else "short")
            chain = self.chain(name, min(7, count - done))
            done += len(chain)
            for folder in reversed(chain):
                self.remove(folder)
            if pause:
                time.sleep(pause)
