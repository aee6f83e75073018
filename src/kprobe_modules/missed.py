# SPDX-License-Identifier: Apache-2.0
"""
Runs of programs that the kernel left out.

It counts them in two places: a program's, where it, or another kprobe's, or a call of bpf(2) was
active on that CPU; and a kprobe's, where it was hit inside of another one.  The latter count ends
with the link, and is kept here.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from kprobe_modules.libbpf import prog_info

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kprobe_modules.libbpf import Library, Link

__all__ = ["MissedRuns"]


class MissedRuns:
    """
    What the kernel left out of one module's programs, since they were loaded.
    """

    def __init__(self) -> None:
        self._links: list[tuple[str, Link]] = []
        self._past: Counter[str] = Counter()

    def watch(self, program: str, link: Link) -> None:
        """
        Count what is missed through a link from now on; it stays the caller's.
        """
        self._settle()
        self._links.append((program, link))

    def counts(self, programs: Mapping[str, int], library: Library | None = None) -> Counter[str]:
        """
        Return the runs left out, by program.

        Args:
            programs: descriptors of those that are loaded, by name.
            library: the libbpf to ask with.

        Raises:
            KernelError: when the kernel does not tell.
        """
        self._settle()
        found = self._past.copy()
        for program, link in self._links:
            found[program] += link.missed
        for program, fd in programs.items():
            found[program] += prog_info(fd, library=library).recursion_misses
        return found

    def _settle(self) -> None:
        """
        Keep the counts of links that are closed, and nothing else of them.
        """
        for program, link in self._links:
            if link.closed:
                self._past[program] += link.missed
        self._links = [each for each in self._links if not each[1].closed]
