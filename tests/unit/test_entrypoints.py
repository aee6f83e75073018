# SPDX-License-Identifier: Apache-2.0
"""
Entry points as `importlib.metadata` finds them.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

from kprobe_modules.entrypoints import EntryPoint, find

if TYPE_CHECKING:
    from pathlib import Path

METADATA = "Metadata-Version: 2.1\nName: Door.Watcher\nVersion: 1.2\n\nName: no header\n"
ENTRY_POINTS = """\
[other]
doors = wrong:WRONG

[ group ]
doors = wrong:WRONG

[group]
# a comment
; another
doors = door_watcher.inside : Outer.MODULE [extra]
plain=door_watcher

[console_scripts]
doors = wrong:WRONG
"""


def library(group: str) -> set[tuple[str, str, str, str]]:
    found = set()
    for point in importlib.metadata.entry_points(group=group):
        assert point.dist is not None
        target = point.value.partition("[")[0].strip()
        found.add((point.name, target, point.dist.name, point.dist.version))
    return found


def ours(group: str) -> set[tuple[str, str, str, str]]:
    return {(each.name, each.target, each.distribution, each.version) for each in find(group)}


@pytest.mark.parametrize("group", ["console_scripts", "pytest11", "kprobe_modules.modules", "no"])
def test_of_this_environment(group: str) -> None:
    assert ours(group) == library(group)


def test_what_a_file_may_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("first", "second"):
        information = tmp_path / place / "Door_Watcher-1.2.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(METADATA, encoding="utf-8")
        (information / "entry_points.txt").write_text(ENTRY_POINTS, encoding="utf-8")
    (tmp_path / "first" / "broken.egg-info").write_text("a file\n", encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path / name) for name in ("first", "no", "second")])
    assert find("group") == [
        EntryPoint("doors", "door_watcher.inside : Outer.MODULE", "Door.Watcher", "1.2"),
        EntryPoint("plain", "door_watcher", "Door.Watcher", "1.2"),
    ]
    package = tmp_path / "first" / "door_watcher"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "inside.py").write_text("class Outer: MODULE = 31\n", encoding="utf-8")
    loaded = [point.load() for point in find("group")]
    assert loaded[0] == 31
    assert loaded[1] is sys.modules.pop("door_watcher")
    del sys.modules["door_watcher.inside"]


def test_an_archive_on_the_path(tmp_path: Path) -> None:
    path = tmp_path / "doors.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("door_watcher-1.2.dist-info/METADATA", METADATA)
        archive.writestr("door_watcher-1.2.dist-info/entry_points.txt", "[group]\na = b:C\n")
    # In a process of its own: the library keeps archives open.
    program = "from kprobe_modules.entrypoints import find; print(*find('group'))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(EntryPoint("a", "b:C", "Door.Watcher", "1.2"))


def test_a_finder_of_distributions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    information = tmp_path / "door_watcher-1.2.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(METADATA, encoding="utf-8")
    (information / "entry_points.txt").write_text("[group]\na = b:C\n", encoding="utf-8")

    class Finder(importlib.metadata.DistributionFinder):
        def find_spec(self, *_: object) -> None:
            return None

        def find_distributions(
            self, _context: object = None
        ) -> list[importlib.metadata.Distribution]:
            return [importlib.metadata.PathDistribution(information)]

    assert find("group") == []
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    assert find("group") == [EntryPoint("a", "b:C", "Door.Watcher", "1.2")]
