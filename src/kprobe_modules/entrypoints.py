# SPDX-License-Identifier: Apache-2.0
"""
Entry points of installed distributions, without the price of `importlib.metadata`.

Importing it and having it read every distribution's metadata costs a quarter of the
time to the first record.  What it is for here is little: directories named
``*.dist-info`` or ``*.egg-info`` on the path, and in them ``entry_points.txt``, as
the Python packaging user guide's "Entry points specification" has them.  Where a
distribution can lie elsewhere (in an archive on the path, or behind an import
hook that finds distributions) it is asked after all.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from kprobe_modules.byfields import ByFields

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["EntryPoint", "find"]

_KINDS: Final = (".dist-info", ".egg-info")


@attrs.frozen(eq=False, repr=False)
class EntryPoint(ByFields):
    """
    One line of a distribution's ``entry_points.txt``; nothing is imported yet.
    """

    name: str
    target: str
    """``package.module:attribute``."""
    distribution: str
    version: str

    def load(self) -> object:
        """
        Import the module and return the attribute.

        Raises:
            Exception: whatever the import does.
        """
        module, _, attribute = self.target.partition(":")
        found: object = import_module(module.strip())
        for name in filter(None, attribute.strip().split(".")):
            found = getattr(found, name)
        return found


def find(group: str) -> list[EntryPoint]:
    """
    Return the entry points of a group, in the order of the path.

    Of a distribution that is there more than once the first counts, as in
    `importlib.metadata`.
    """
    if _must_ask():
        return _ask(group)
    found: list[EntryPoint] = []
    seen: set[str] = set()
    for folder in _distributions(sys.path):
        key = folder.stem.partition("-")[0].lower().replace("-", "_").replace(".", "_")
        if key not in seen:
            seen.add(key)
            found += _read(folder, group)
    return found


def _must_ask() -> bool:
    return any(Path(entry).is_file() for entry in sys.path) or any(
        hasattr(finder, "find_distributions")
        for finder in sys.meta_path
        if getattr(finder, "__name__", "") != "PathFinder"
    )


def _ask(group: str) -> list[EntryPoint]:
    from importlib.metadata import entry_points

    return [
        EntryPoint(
            point.name,
            _without_extras(point.value),
            point.dist.name if point.dist else "unknown distribution",
            point.dist.version if point.dist else "",
        )
        for point in entry_points(group=group)
    ]


def _distributions(path: Iterable[str]) -> Iterator[Path]:
    """
    Yield the metadata directories on a path.
    """
    for entry in path:
        try:
            yield from [each for each in Path(entry).iterdir() if each.suffix in _KINDS]
        except OSError:
            continue  # there may be anything on the path


def _read(folder: Path, group: str) -> list[EntryPoint]:
    text = _text(folder, "entry_points.txt")
    if group not in text:
        return []
    headers = _text(folder, "METADATA") or _text(folder, "PKG-INFO")
    known = dict(_pairs(headers.partition("\n\n")[0], ":"))
    name, version = known.get("Name", folder.stem.partition("-")[0]), known.get("Version", "")
    return [
        EntryPoint(key, _without_extras(value), name, version)
        for key, value in _pairs(_section(text, group), "=")
    ]


def _text(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _section(text: str, wanted: str) -> str:
    """
    Return the lines below ``[wanted]``.
    """
    lines = []
    inside = False
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            inside = line == f"[{wanted}]"
        elif inside and not line.startswith(("#", ";")):
            lines.append(line)
    return "\n".join(lines)


def _pairs(text: str, separator: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        key, found, value = line.partition(separator)
        if found:
            yield key.strip(), value.strip()


def _without_extras(value: str) -> str:
    return value.partition("[")[0].strip()
