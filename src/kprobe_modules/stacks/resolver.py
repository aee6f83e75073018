# SPDX-License-Identifier: Apache-2.0
"""
Stacks to frames, with what was read before kept within bounds.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kprobe_modules.stacks import mappings
from kprobe_modules.stacks.elfsymbols import ElfSymbols, prepare, read_symbols
from kprobe_modules.stacks.frame import Frame
from kprobe_modules.stacks.kernel import KernelSymbols

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

    from kprobe_modules.stacks.mappings import Mapping

__all__ = ["Resolver"]

#: Files whose symbols are kept: a few megabytes each for the largest libraries.
FILES: Final = 64
#: Where distributions keep symbols apart from their programs, by build id.
DEBUG: Final = "usr/lib/debug/.build-id"

_Key = tuple[int, int, int, int]


class Resolver:
    """
    Names the frames of stacks.

    A process is asked for its memory when its stack is resolved: of one that has
    ended by then, user addresses stay numbers.

    Args:
        proc_root: where procfs is mounted, of the initial PID namespace.
    """

    def __init__(self, proc_root: Path) -> None:
        self._proc = proc_root
        self._kernel = KernelSymbols(proc_root / "kallsyms")
        self._files: OrderedDict[_Key, ElfSymbols | None] = OrderedDict()

    def prepare(self) -> None:
        """
        Do now what takes long the first time.
        """
        self._kernel.prepare()
        prepare()

    def kernel(self, addresses: Sequence[int]) -> tuple[Frame, ...]:
        """
        Return the frames of a kernel stack, innermost first.
        """
        return tuple(
            self._kernel.frame(address, returns=place > 0)
            for place, address in enumerate(addresses)
        )

    def user(self, pid: int, addresses: Sequence[int]) -> tuple[Frame, ...]:
        """
        Return the frames of a stack of a process, innermost first.
        """
        process = self._proc / str(pid)
        mapped = mappings.read_mappings(process)
        return tuple(
            self._user_frame(process, mapped, address, returns=place > 0)
            for place, address in enumerate(addresses)
        )

    def _user_frame(
        self, process: Path, mapped: tuple[Mapping, ...], address: int, *, returns: bool
    ) -> Frame:
        # The address to return to may be that of the next function.
        mapping = mappings.find(mapped, address - returns)
        if mapping is None:
            return Frame("", address)
        offset = address - returns - mapping.start + mapping.offset
        symbols = self._symbols(process, mapping)
        build_id = symbols.build_id if symbols else ""
        linked = symbols.address(offset) if symbols else None
        found = symbols.find(linked) if symbols and linked is not None else None
        if found is None:
            return Frame("", offset + returns, mapping.path, build_id)
        return Frame(found[0], found[1] + returns, mapping.path, build_id)

    def _symbols(self, process: Path, mapping: Mapping) -> ElfSymbols | None:
        opened = mappings.open_file(process, mapping)
        if opened is None:
            return None
        with opened:
            about = os.fstat(opened.fileno())
            key = (about.st_dev, about.st_ino, about.st_mtime_ns, about.st_size)
            if key in self._files:
                self._files.move_to_end(key)
                return self._files[key]
            symbols = self._files[key] = self._read(process, opened)
        while len(self._files) > FILES:
            self._files.popitem(last=False)
        return symbols

    def _read(self, process: Path, opened: BinaryIO) -> ElfSymbols | None:
        symbols = read_symbols(opened)
        if symbols is None or symbols.complete or not symbols.build_id:
            return symbols
        name = f"{DEBUG}/{symbols.build_id[:2]}/{symbols.build_id[2:]}.debug"
        for root in (process / "root", Path("/")):
            try:
                with (root / name).open("rb") as stream:
                    apart = read_symbols(stream)
            except OSError:
                continue
            if apart is not None and apart.build_id == symbols.build_id and apart.complete:
                # Its symbols, but our segments: those of the other file hold no bytes.
                return symbols.with_table_of(apart)
        return symbols
