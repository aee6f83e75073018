# SPDX-License-Identifier: Apache-2.0
"""
A batch that is not in the memory of the native drainer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kprobe_modules.rings.framing import Tails

__all__ = ["Batch"]


class Batch(bytes):
    """
    Messages of one type as contiguous rows.

    Bytes, as that is how a class of Python 3.11 can export a buffer.
    """

    key: int
    count: int  # type: ignore[assignment]  # rows; bytes.count is not missed
    stride: int
    tails: Tails | None

    def __repr__(self) -> str:
        """
        Show what it holds, not the rows.
        """
        return f"<Batch key={self.key:#x} count={self.count} stride={self.stride}>"
