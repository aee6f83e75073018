# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

_Made = TypeVar("_Made")
_Item = TypeVar("_Item")

class Maker(Generic[_Made]):
    """
    Makes an instance of a class per row, without calling its constructor.

    Args:
        type: whose constructor does nothing but fill slots.
        stride: bytes from row to row.
        fields: for each slot to fill either ``(name, format, offset,
            converter)`` or ``(name, None, 0, constant)``.  A format is one of
            the struct module: a byte order and one of ``bBhHiIqQ?``, or ``<``,
            a length and ``s``; *offset* is in bytes from the start of a row.
            The *converter* gets the value and returns what the slot shall
            hold; None: the value itself.

    Raises:
        ValueError: a format is unknown, or a field reaches outside a row.
        TypeError: the class has no such slot.
    """

    def __init__(
        self,
        type: type[_Made],  # noqa: A002
        stride: int,
        fields: tuple[tuple[str, str | None, int, Any], ...],
    ) -> None: ...
    def __call__(self, rows: Any) -> Iterator[_Made]:  # noqa: ANN401 - any buffer
        """
        Make an instance of each row of a buffer when it is asked for.

        Raises:
            ValueError: the buffer is not a multiple of the stride.
        """

def interleave(iterators: Iterable[Iterator[_Item]], sequence: Sequence[int]) -> list[_Item]:
    """
    Take the next of each iterator that *sequence*, a buffer of format ``H``, names.

    Raises:
        StopIteration: an iterator has no next; whatever else it raises.
    """
