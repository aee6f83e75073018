# SPDX-License-Identifier: Apache-2.0
"""
Names by address, compactly: a kernel has two hundred thousand.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SymbolTable"]


class SymbolTable:
    """
    Finds the symbol that an address lies in.

    Args:
        symbols: (address, size, name) in any order; size 0 when it is not known.
        reach: how far beyond its address a symbol of unknown size may extend.
    """

    def __init__(self, symbols: Iterable[tuple[int, int, bytes]], reach: int) -> None:
        names = bytearray()
        self._addresses = array("Q")
        self._ends = array("Q")
        self._places = array("I")
        # Of several names of one address the first by name: the same on each machine.
        for address, size, name in sorted(symbols, key=lambda each: (each[0], -each[1], each[2])):
            if self._addresses and self._addresses[-1] == address:
                continue
            self._addresses.append(address)
            self._ends.append(address + (size or reach))
            self._places.append(len(names))
            names += name + b"\n"
        self._names = bytes(names)

    def __len__(self) -> int:
        return len(self._addresses)

    def find(self, address: int) -> tuple[str, int] | None:
        """
        Return the name of the symbol and how far into it the address lies.
        """
        place = bisect_right(self._addresses, address) - 1
        if place < 0 or address >= self._ends[place]:
            return None
        start = self._places[place]
        end = self._names.index(b"\n", start)
        name = self._names[start:end].decode("utf-8", "backslashreplace")
        return name, address - self._addresses[place]
