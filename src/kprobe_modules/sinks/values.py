# SPDX-License-Identifier: Apache-2.0
r"""
Field values as JSON can hold them, and as a terminal may show them.

Names in the kernel are bytes.  What is not UTF-8 in them, whether it arrives as
bytes or as a str with surrogate escapes, is written as ``\xff``: lone surrogates
are refused by strict JSON readers, and a raw byte would break the output's encoding.
"""

from __future__ import annotations

import enum
import math
import shlex
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache
from time import localtime, strftime
from typing import Any

import attrs

__all__ = ["clock", "duration", "plain", "readable", "safe"]

_NS = 1_000_000_000

#: Largest unit first; a duration is shown in the first that it fills.
_UNITS = ((_NS, "s"), (1_000_000, "ms"), (1_000, "us"))


def plain(value: Any) -> Any:  # noqa: ANN401, PLR0911 - it is about any value, kind by kind
    """
    Return the value as None, bool, int, float, str, list or dict, all the way down.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        return safe(value)
    if isinstance(value, enum.Enum):
        return value.value if isinstance(value, str) else value.name.lower()
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, AbstractSet):
        return sorted((plain(item) for item in value), key=repr)
    if attrs.has(type(value)):
        return {
            field.name: plain(getattr(value, field.name)) for field in attrs.fields(type(value))
        }
    return safe(str(value))


def safe(value: str | bytes | bytearray | memoryview) -> str:
    r"""
    Return text without lone surrogates; bytes that are no UTF-8 become ``\xff``.
    """
    if isinstance(value, str):
        if value.isascii():
            return str(value)
        text = str(value)
        try:
            value = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # a surrogate that stands for no byte
            value = text.encode("utf-8", "backslashreplace")
    return bytes(value).decode("utf-8", "backslashreplace")


def readable(value: object) -> str:
    """
    Return a value on one line of a terminal.

    Control characters are escaped: a process chooses its own name, and must not
    be able to speak to the terminal of who watches it.
    """
    value = plain(value)
    if isinstance(value, str):
        text = value
    elif isinstance(value, bool):
        text = "true" if value else "false"
    elif value is None:
        text = "-"
    elif isinstance(value, list) and all(isinstance(item, str) for item in value):
        text = shlex.join(value)
    elif isinstance(value, list):
        text = ",".join(map(readable, value))
    elif isinstance(value, dict):
        text = ",".join(f"{key}:{readable(item)}" for key, item in value.items())
    else:
        text = str(value)
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def duration(nanoseconds: int) -> str:
    """
    Return nanoseconds in the unit that suits a person.
    """
    for size, unit in _UNITS:
        if abs(nanoseconds) >= size:
            return f"{nanoseconds / size:.3f}{unit}"
    return f"{nanoseconds}ns"


def clock(time: int, *, milliseconds: bool = True) -> str:
    """
    Return nanoseconds since the epoch as local ``HH:MM:SS.mmm``.
    """
    seconds, rest = divmod(time, _NS)
    try:
        text = _local(seconds)
    except (OverflowError, ValueError, OSError):
        return str(time)
    return f"{text}.{rest // 1_000_000:03d}" if milliseconds else text


@lru_cache(maxsize=64)
def _local(seconds: int) -> str:
    # Records come in order of time, so that the same second comes again and again.
    return strftime("%H:%M:%S", localtime(seconds))
