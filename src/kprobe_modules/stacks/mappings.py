# SPDX-License-Identifier: Apache-2.0
"""
Which file lies where in the memory of a process, from /proc/PID/maps.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

__all__ = ["Mapping", "find", "open_file", "read_mappings"]

_DELETED: Final = " (deleted)"
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


@attrs.frozen
class Mapping:
    """
    One range of executable memory.
    """

    start: int
    end: int
    offset: int
    """Bytes from the beginning of the file to what lies at *start*."""
    inode: int
    path: str
    """As the process sees it; ``[vdso]`` and the like are no files."""
    deleted: bool = False


def read_mappings(process: Path) -> tuple[Mapping, ...]:
    """
    Return the executable memory of a process, by address; nothing if it is gone.

    Args:
        process: its folder in procfs.
    """
    try:
        text = (process / "maps").read_bytes()
    except OSError:
        return ()
    found = []
    for line in text.split(b"\n"):
        parts = line.split(None, 5)
        # Newlines in names are escaped, so that a line is a mapping.
        if len(parts) < 5 or b"x" not in parts[1]:  # noqa: PLR2004 - the sixth is the name
            continue
        start, _, end = parts[0].partition(b"-")
        path = parts[5].decode("utf-8", "surrogateescape") if len(parts) > 5 else ""  # noqa: PLR2004
        name = path.removesuffix(_DELETED)
        found.append(
            Mapping(
                int(start, 16),
                int(end, 16),
                int(parts[2], 16),
                int(parts[4]),
                _ESCAPE.sub(lambda code: chr(int(code[1], 8)), name),
                name != path,
            )
        )
    return tuple(found)


def find(mappings: tuple[Mapping, ...], address: int) -> Mapping | None:
    """
    Return the mapping that an address lies in.
    """
    return next((each for each in mappings if each.start <= address < each.end), None)


def open_file(process: Path, mapping: Mapping) -> BinaryIO | None:
    """
    Open the file of a mapping, in whatever mount namespace its process lives.

    ``map_files`` leads to the very file, also when it was deleted or replaced, and
    takes CAP_SYS_ADMIN or, from 5.9, CAP_CHECKPOINT_RESTORE.  The path under
    ``root`` may meanwhile be another file: it has to have the inode.

    Returns:
        None when it cannot be reached; the caller closes it otherwise.
    """
    if not mapping.path.startswith("/"):
        return None
    exact = process / "map_files" / f"{mapping.start:x}-{mapping.end:x}"
    named = f"{process}/root{mapping.path}"
    for path, checked in ((str(exact), False), (named, True)):
        try:
            opened = open(path, "rb")  # noqa: SIM115, PTH123 - handed to the caller
        except OSError:
            continue
        if not checked or os.fstat(opened.fileno()).st_ino == mapping.inode:
            return opened
        opened.close()
    return None
