# SPDX-License-Identifier: Apache-2.0
"""
The libbpfs that tests run with, and what they leave behind.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kprobe_modules.libbpf import Library, candidates, find, link_ids, map_ids, program_ids
from kprobe_modules.libbpf import map as bpf_map
from kprobe_modules.libbpf.ids import link_info
from kprobe_modules.libbpf.program import prog_info
from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kprobe_modules.libbpf import BpfObject, Link

OBJECTS = Path(__file__).resolve().parents[1] / "bpf" / "objects"


def library_of(origin: str) -> Library:
    """
    Return the libbpf of one origin, ``system`` or ``pylibbpf``.
    """
    found = [each for each in candidates() if each.origin == origin and each.refusal is None]
    if not found:
        needs.unmet(f"needs a libbpf from {origin}")
    return find(found[0].path)


def wait_until(condition: Callable[[], object], seconds: float = 5.0) -> bool:
    """
    Ask until the answer is yes; say whether it came in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def descriptors() -> set[tuple[str, str]]:
    """
    Return number and target of every open descriptor of this process.
    """
    found = set()
    for entry in os.scandir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the scan's own descriptor
            found.add((entry.name, str(Path(entry.path).readlink())))
    return {(name, target) for name, target in found if "/proc/" not in target}


class Footprint:
    """
    The kernel's ids of what objects and links have made.

    Other users of the machine make programs, too, so ours are noted by id.
    """

    def __init__(self) -> None:
        self.programs: set[int] = set()
        self.maps: set[int] = set()
        self.links: set[int] = set()

    def note(self, opened: BpfObject, *links: Link) -> None:
        """
        Add a loaded object and links that are real links.
        """
        for program in opened.programs.values():
            if program.autoload:
                self.programs.add(prog_info(program.fd).id)
        self.maps.update(bpf_map.info(each.fd).id for each in opened.maps.values())
        self.links.update(link_info(link.fd).id for link in links)

    def left(self) -> set[tuple[str, int]]:
        """
        Return what is still in the kernel.
        """
        return {
            *(("program", each) for each in self.programs & set(program_ids())),
            *(("map", each) for each in self.maps & set(map_ids())),
            *(("link", each) for each in self.links & set(link_ids())),
        }


@contextlib.contextmanager
def nothing_left() -> Iterator[Footprint]:
    """
    Check that the body leaves no program, map, link or descriptor behind.
    """
    before = descriptors()
    footprint = Footprint()
    yield footprint
    assert footprint.programs, "nothing was noted"
    # The kernel may finish a release on a worker.
    assert wait_until(lambda: not footprint.left()), footprint.left()
    assert descriptors() - before == set()
