# SPDX-License-Identifier: Apache-2.0
"""
Equality, hash and representation of attrs values, without generating code for each class.

attrs writes and compiles these methods for every class; for the sixty that a command
loads, compiling them took a tenth of the time to its first record.
"""

from __future__ import annotations

from typing import Any

import attrs

__all__ = ["ByFields"]


class ByFields:
    """
    Base of attrs classes that are made with ``eq=False, repr=False``.

    Two values are equal if they are of one class and their fields are, but for fields
    with ``eq=False``; the hash and the representation leave out fields with
    ``hash=False`` and ``repr=False``, as attrs has it.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        names = _names(self.__class__).compared
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def __hash__(self) -> int:
        names = _names(self.__class__).hashed
        return hash((self.__class__, *(getattr(self, name) for name in names)))

    def __repr__(self) -> str:
        names = _names(self.__class__).shown
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{self.__class__.__qualname__.rpartition('>.')[2]}({fields})"


class _Names:
    """
    The fields of a class by what they are for.
    """

    def __init__(self, fields: tuple[attrs.Attribute[Any], ...]) -> None:
        self.compared = tuple(field.name for field in fields if field.eq)
        self.hashed = tuple(
            field.name for field in fields if (field.eq if field.hash is None else field.hash)
        )
        self.shown = tuple(field.name for field in fields if field.repr)


_KNOWN: dict[type[Any], _Names] = {}


def _names(kind: type[Any]) -> _Names:
    names = _KNOWN.get(kind)
    if names is None:
        names = _KNOWN[kind] = _Names(attrs.fields(kind))
    return names
