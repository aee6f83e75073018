# SPDX-License-Identifier: Apache-2.0
"""
One frame of a stack, as users get it.
"""

from __future__ import annotations

import attrs

__all__ = ["Frame"]


@attrs.frozen
class Frame:
    """
    Where a function was, or was to return to.
    """

    symbol: str
    """Name of the function; empty if it is not known."""
    offset: int
    """Bytes from the symbol; without one, from the beginning of the object's file;
    without an object, the address itself."""
    object: str = ""
    """Path of the file as the process sees it; of the kernel, the module's name, if any."""
    build_id: str = ""
    """Of that file, in hexadecimal, by which its debugging symbols are found anywhere."""

    def __str__(self) -> str:
        name = f"{self.symbol}+{self.offset:#x}" if self.symbol else f"{self.offset:#x}"
        return f"{name} ({self.object})" if self.object else name
