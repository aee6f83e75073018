# SPDX-License-Identifier: Apache-2.0
def find(data: bytes, start: int, stop: int, names: tuple[int, ...], kind: int, /) -> int:
    """
    Pass the types of BTF in order; say which is the first of a kind with one of the names.

    Args:
        data: holds types, in the byte order of this machine.
        start: where the first begins, in bytes.
        stop: where the last ends.
        names: offsets of names in the strings; at most 16.
        kind: ``BTF_KIND_*``.

    Returns:
        Its number, the first type being 0; -1 if there is none, -2 if a type was met
        whose length is not known, or that is cut.

    Raises:
        ValueError: the part is outside of the data, or there are too many names.
    """
