# SPDX-License-Identifier: Apache-2.0
"""
One JSON object per line: ``time``, ``module``, ``record``, then the fields.

Field names are the record's Python names and part of the contract with users.
"""

from __future__ import annotations

import json
from json.encoder import encode_basestring
from operator import attrgetter
from typing import IO, TYPE_CHECKING, Any

from kprobe_modules.records import as_dict, field_names
from kprobe_modules.sinks.values import plain, safe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kprobe_modules.records import Record

__all__ = ["JsonLines", "PrettyJson"]

_LEADING = ("time", "module", "record")


class JsonLines:
    """
    Writes records to a binary stream, which keeps its own buffer.

    Args:
        stream: where the lines go; it stays the caller's to close.
        fields: write just these, in this order, where a record has them.
    """

    def __init__(self, stream: IO[bytes], *, fields: Sequence[str] | None = None) -> None:
        self._stream = stream
        self._fields = fields
        self._encoders: dict[type[Record], Callable[[Record], bytes]] = {}

    def __call__(self, record: Record) -> None:
        """
        Write one line.
        """
        kind = type(record)
        encode = self._encoders.get(kind)
        if encode is None:
            encode = self._encoders[kind] = _encoder(_written(kind, self._fields))
        self._stream.write(encode(record))

    def flush(self) -> None:
        """
        Flush the stream.
        """
        self._stream.flush()


class PrettyJson:
    """
    The same objects, indented for reading; takes the same arguments.
    """

    def __init__(self, stream: IO[bytes], *, fields: Sequence[str] | None = None) -> None:
        self._stream = stream
        self._fields = fields

    def __call__(self, record: Record) -> None:
        """
        Write one object.
        """
        names = _written(type(record), self._fields)
        values = as_dict(record)
        chosen = {name: plain(values[name]) for name in names}
        text = json.dumps(chosen, indent=2, ensure_ascii=False)
        self._stream.write(text.encode() + b"\n")

    def flush(self) -> None:
        """
        Flush the stream.
        """
        self._stream.flush()


def _written(kind: type[Record], fields: Sequence[str] | None) -> tuple[str, ...]:
    """
    Return the names to write for a record class, in order.
    """
    known = (*_LEADING, *(name for name in field_names(kind) if name not in _LEADING))
    return known if fields is None else tuple(name for name in fields if name in known)


def _encoder(names: tuple[str, ...]) -> Callable[[Record], bytes]:
    """
    Build the function that encodes one record class.

    The keys are encoded once, here; a value costs one look-up by type.
    """
    template = "{" + ",".join(f"{json.dumps(name)}:%s" for name in names) + "}\n"
    if not names:
        return lambda _record: b"{}\n"
    if len(names) == 1:
        one = attrgetter(names[0])
        return lambda record: (template % _encode(one(record))).encode()
    several = attrgetter(*names)
    by_type = _BY_TYPE.get

    def encode(record: Record) -> bytes:
        texts = [by_type(type(value), _other)(value) for value in several(record)]
        return (template % tuple(texts)).encode()

    return encode


def _encode(value: object) -> str:
    return _BY_TYPE.get(type(value), _other)(value)


def _other(value: object) -> str:
    return _dumps(plain(value))


def _text(value: str) -> str:
    return encode_basestring(value) if value.isascii() else encode_basestring(safe(value))


_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode

#: Exact types only: a subclass may be an enum, which `plain` knows about.
_BY_TYPE: dict[type, Callable[[Any], str]] = {
    int: repr,
    str: _text,
    bool: lambda value: "true" if value else "false",
    type(None): lambda _value: "null",
    list: lambda value: f"[{','.join(map(_encode, value))}]",
    tuple: lambda value: f"[{','.join(map(_encode, value))}]",
}
