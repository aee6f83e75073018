# SPDX-License-Identifier: Apache-2.0
"""
What of BPF a process holds, by the kernel's own ids, and whether it is gone.
"""

from __future__ import annotations

import re
from pathlib import Path

from kprobe_modules.libbpf import link_ids, map_ids, program_ids
from tests.support.libbpfs import wait_until

__all__ = ["Ids", "assert_gone", "held", "left"]

Ids = frozenset[tuple[str, int]]

_ID = re.compile(r"^(prog|map|link)_id:\t(\d+)$", re.MULTILINE)


def held(pid: int | str = "self") -> Ids:
    """
    Return kind and id of every program, map and link that a process has open.
    """
    found: set[tuple[str, int]] = set()
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            text = entry.read_text(encoding="ascii")
        except FileNotFoundError:
            continue  # the one that listed
        # A link's text also names the program behind it.
        found.update((kind, int(number)) for kind, number in _ID.findall(text))
    return frozenset(found)


def left(ids: Ids) -> Ids:
    """
    Return those that the kernel still knows.
    """
    alive = {
        *(("prog", each) for each in program_ids()),
        *(("map", each) for each in map_ids()),
        *(("link", each) for each in link_ids()),
    }
    return frozenset(ids & alive)


def assert_gone(ids: Ids, seconds: float = 20.0) -> None:
    """
    Check that the kernel forgets them; it frees on a worker, after a grace period.
    """
    assert ids, "nothing was held: there is nothing to compare"
    assert wait_until(lambda: not left(ids), seconds), f"left in the kernel: {sorted(left(ids))}"
