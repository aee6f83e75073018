# SPDX-License-Identifier: Apache-2.0
"""
Functions of the kernel and of its modules by address, from /proc/kallsyms.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from kprobe_modules.stacks.frame import Frame
from kprobe_modules.stacks.table import SymbolTable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["KernelSymbols"]

#: Letters of nm for functions: local, global, and weak ones.
_FUNCTION: Final = frozenset((b"t", b"T", b"w", b"W"))
#: kallsyms gives no sizes; no function is as large as this.
REACH: Final = 1 << 18
#: Seconds after which an address that is not known has the file read again: a kernel
#: module may have been loaded, or a BPF program.
AGAIN: Final = 10.0


class KernelSymbols:
    """
    Names for kernel addresses; the file is read when it is first needed.

    Without CAP_SYSLOG, or with kernel.kptr_restrict at 2, all addresses in it are
    zero, and then nothing is found.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._table: SymbolTable | None = None
        self._read_at = 0.0

    def prepare(self) -> None:
        """
        Read the file now: some hundreds of milliseconds, and some 10 MB kept.
        """
        try:
            text = self._path.read_bytes()
        except OSError:
            text = b""
        self._table = SymbolTable(_functions(text), REACH)
        self._read_at = monotonic()

    def frame(self, address: int, *, returns: bool) -> Frame:
        """
        Return the frame of an address; *returns* says that it is one to return to.
        """
        if self._table is None:
            self.prepare()
        found = self._find(address - returns)
        if found is None and monotonic() - self._read_at > AGAIN:
            self.prepare()
            found = self._find(address - returns)
        if found is None:
            return Frame("", address)
        name, offset = found
        symbol, _, module = name.partition("\t")
        return Frame(symbol, offset + returns, module.strip("[]"))

    def _find(self, address: int) -> tuple[str, int] | None:
        return self._table.find(address) if self._table is not None else None


def _functions(text: bytes) -> Iterator[tuple[int, int, bytes]]:
    # Lines read: address, letter, name, and for kernel modules a tab with the
    # module in brackets, which stays with the name.
    for line in text.splitlines():
        address, letter, name = line.split(b" ", 2)
        if letter in _FUNCTION and (number := int(address, 16)):
            yield number, 0, name
