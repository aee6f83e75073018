# SPDX-License-Identifier: Apache-2.0

from typing import Self

class Index:
    """
    The types in the bytes of BTF, by name.

    Args:
        data: BTF in the byte order of this machine; it is kept, not copied.
        types: from where to where in it types are, in bytes.
        strings: the same of strings.
        kinds: which kinds of types to index, a bit for each, ``1 << BTF_KIND_*``.
        base: the index of what this BTF goes on from, whose strings come before its own.

    Raises:
        ValueError: a part is outside of the data.
    """

    def __new__(
        cls,
        data: bytes,
        types: tuple[int, int],
        strings: tuple[int, int],
        kinds: int,
        base: Index | None = None,
    ) -> Self: ...
    @property
    def whole(self) -> bool:
        """
        Whether all types could be passed: none was cut, or of a kind that is not known.
        """
    def find(self, name: bytes, kind: int, /) -> int:
        """
        Return the number of the first type of a name and kind; -1 without one.

        The first type of the data, not of its base, is 0.

        Raises:
            ValueError: types of that kind are not in the index.
        """
