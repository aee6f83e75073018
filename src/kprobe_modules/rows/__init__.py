# SPDX-License-Identifier: Apache-2.0
"""
Rows of bytes to objects with slots, and merging several such streams.

This room is told classes, slots and offsets, and knows no message.  `Maker` is
native code and None where the compiled part is not installed, or where
``KPROBE_MODULES_PURE=1`` asks to do without: callers then unpack and construct in
Python.  `interleave` is always there, and native where `Maker` is.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kprobe_modules.rows import _rows

__all__ = ["Maker", "interleave", "interleave_py"]

_Item = TypeVar("_Item")


def interleave_py(iterators: Iterable[Iterator[_Item]], sequence: Sequence[int]) -> list[_Item]:
    """
    Do in Python what ``interleave`` of ``_rows.pyi`` promises.
    """
    iterators = tuple(iterators)
    return [next(iterators[index]) for index in sequence]


if TYPE_CHECKING:
    Maker: type[_rows.Maker[Any]] | None
    from kprobe_modules.rows._rows import interleave
elif os.environ.get("KPROBE_MODULES_PURE", "") not in {"", "0"}:
    Maker, interleave = None, interleave_py
else:
    try:
        from kprobe_modules.rows._rows import Maker, interleave
    except ImportError:
        Maker, interleave = None, interleave_py
