# SPDX-License-Identifier: Apache-2.0
"""
The network namespaces that there are, as far as procfs shows them.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kprobe_modules.libbpf import network_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

__all__ = ["network_namespaces", "pids_by_namespace"]

_OCTAL = re.compile(r"\\([0-7]{3})")
"""How mountinfo writes a blank in a path."""


def pids_by_namespace(proc_root: Path) -> dict[int, str]:
    """
    Return a process of each network namespace that has one, by the namespace's inode.
    """
    found: dict[int, str] = {}
    for process in proc_root.iterdir():
        if process.name.isdecimal():
            try:
                inode = (process / "ns/net").stat().st_ino
            except OSError:
                continue  # it has ended, or is a zombie
            found.setdefault(inode, process.name)
    return found


def _mounted(proc_root: Path) -> Iterator[str]:
    """
    Iterate over the files that network namespaces are mounted on, as `ip netns` does.
    """
    try:
        lines = (proc_root / "self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split()
        if fields[3].startswith("net:["):
            yield _OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[4])


def network_namespaces(proc_root: Path) -> Iterator[AbstractContextManager[None]]:
    """
    Iterate over context managers, each of which enters another network namespace.

    Those that neither a process is in nor anything is mounted on are not found.
    """
    seen: set[int] = set()
    nsfs = Path("/proc/self/ns/net").stat().st_dev
    pids = pids_by_namespace(proc_root).values()
    paths = [str(proc_root / pid / "ns/net") for pid in pids]
    for path in (*paths, *_mounted(proc_root)):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # the process has ended
        found = os.fstat(fd)
        # What was mounted there may be gone, and the file below it not yet.
        if found.st_dev != nsfs or found.st_ino in seen:
            os.close(fd)
            continue
        seen.add(found.st_ino)
        yield _inside(fd)


@contextmanager
def _inside(fd: int) -> Iterator[None]:
    # Opened before, as the process may end before it is entered.
    try:
        with network_namespace(Path(f"/proc/self/fd/{fd}")):
            yield
    finally:
        os.close(fd)
