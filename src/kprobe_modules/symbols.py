# SPDX-License-Identifier: Apache-2.0
"""
The kernel's functions by name, from /proc/kallsyms.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Symbols"]

#: Letters of nm for functions: local, global, and weak ones.
_FUNCTION = b"tTwW"


class Symbols:
    """
    Count functions by exact name, those of kernel modules included.

    The file is read on the first question (some 60 ms, 5 to 10 MB) and kept
    until :meth:`close`.  A variant that the compiler made, such as
    ``name.isra.0``, is not the function ``name``.  Safe to use from several
    threads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._text: bytes | None = None

    def count(self, function: str) -> int | None:
        """
        Return how many functions have a name; None if the file is unreadable.
        """
        text = self._read()
        if text is None:
            return None
        found = 0
        # Lines read: address, letter, name, and for kernel modules a tab with
        # the module in brackets.
        wanted = f" {function}".encode()
        at = text.find(wanted)
        while at >= 0:
            end = at + len(wanted)
            if text[end : end + 1] in {b"\n", b"\t", b""} and text[at - 1 : at] in _KINDS:
                found += 1
            at = text.find(wanted, end)
        return found

    def close(self) -> None:
        """
        Give the memory back; the next question reads the file again.
        """
        with self._lock:
            self._text = None

    def _read(self) -> bytes | None:
        with self._lock:
            if self._text is None:
                try:
                    self._text = self.path.read_bytes()
                except OSError:
                    return None
            return self._text


_KINDS = frozenset(bytes([letter]) for letter in _FUNCTION)
