# SPDX-License-Identifier: Apache-2.0

from typing import Self

class Contents:
    """
    The bytes of a file, by the buffer protocol.

    They are mapped if the file allows that, else read; other threads run meanwhile.

    Args:
        fd: the file, open for reading at its beginning; it stays the caller's.

    Raises:
        OSError: the kernel refuses.
    """

    def __new__(cls, fd: int, /) -> Self: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Index:
    """
    The types in the bytes of BTF, by name.  Other threads run while they are passed.

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
        data: bytes | memoryview,
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
