# SPDX-License-Identifier: Apache-2.0
"""
What a context offers beyond messages, as observations: the data channel and maps.

The same code packs what was seen, while it is captured, and unpacks it, then and in a
replay; so a handler is given equal values both times.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import attrs

from kprobe_modules.errors import KprobeModulesError
from kprobe_modules.handler import Context, DataChunk, MapAccess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Observe = Callable[[str, Callable[[], bytes]], bytes]

__all__ = ["UnansweredError", "observed"]

_CHUNK = struct.Struct("<QII")
_LENGTH = struct.Struct("<I")


class UnansweredError(OSError):
    """
    A handler asks in a replay what it did not ask while it was captured.
    """


class _MapError(KprobeModulesError, OSError):
    """
    What the kernel said to a use of a map, said again.
    """


def observed(context: Context, observe: Observe) -> Context:
    """
    Return a context whose data channel and maps are read through *observe* too.
    """

    def data(cpu: int, until: int) -> list[DataChunk]:
        try:
            raw = observe(f"data {cpu}", lambda: _pack_chunks(context.data(cpu, until)))
        except UnansweredError:
            return []
        return list(_unpack_chunks(raw, cpu))

    def map_(name: str) -> MapAccess:
        return _ObservedMap(name, context.map(name), observe)

    return attrs.evolve(context, observe=observe, data=data, map=map_)


def _pack_chunks(chunks: Iterable[DataChunk]) -> bytes:
    return b"".join(
        _CHUNK.pack(chunk.time, chunk.message, len(chunk.payload)) + chunk.payload
        for chunk in chunks
    )


def _unpack_chunks(raw: bytes, cpu: int) -> Iterator[DataChunk]:
    position = 0
    while position < len(raw):
        time, message, size = _CHUNK.unpack_from(raw, position)
        position += _CHUNK.size + size
        yield DataChunk(time, cpu, message, raw[position - size : position])


def _pack(values: Iterable[bytes] | None) -> bytes:
    """
    Return b"" for None, else a byte and the values with their lengths.
    """
    if values is None:
        return b""
    return b"\1" + b"".join(_LENGTH.pack(len(value)) + value for value in values)


def _unpack(raw: bytes) -> list[bytes] | None:
    if not raw:
        return None
    values, position = [], 1
    while position < len(raw):
        (size,) = _LENGTH.unpack_from(raw, position)
        position += _LENGTH.size + size
        values.append(raw[position - size : position])
    return values


class _ObservedMap:
    """
    A map whose answers are observed; what is written to it is the kernel's business.
    """

    def __init__(self, name: str, found: MapAccess, observe: Observe) -> None:
        self._name = name
        self._map = found
        self._observe = observe

    def _ask(
        self, what: str, key: bytes, look: Callable[[], Iterable[bytes] | None]
    ) -> list[bytes] | None:
        try:
            raw = self._observe(f"{what} {self._name} {key.hex()}", lambda: _pack(look()))
        except (UnansweredError, KprobeModulesError) as error:
            if isinstance(error, UnansweredError):
                return None
            raise
        except OSError as error:
            raise _MapError(*error.args) from error
        return _unpack(raw)

    def lookup(self, key: bytes) -> bytes | None:
        def look() -> Iterable[bytes] | None:
            value = self._map.lookup(key)
            return None if value is None else (value,)

        found = self._ask("lookup", key, look)
        return found[0] if found else None

    def lookup_percpu(self, key: bytes) -> list[bytes] | None:
        return self._ask("lookup_percpu", key, lambda: self._map.lookup_percpu(key))

    def update(self, key: bytes, value: bytes) -> None:
        def look() -> None:
            self._map.update(key, value)

        self._ask("update", key, look)

    def delete(self, key: bytes) -> bool:
        return self._ask("delete", key, lambda: () if self._map.delete(key) else None) is not None

    def keys(self) -> Iterator[bytes]:
        return iter(self._ask("keys", b"", self._map.keys) or ())

    def values(self, size: int | None = None) -> Iterator[bytes]:
        # By what captures have always answered.
        return (value[:size] for key in self.keys() if (value := self.lookup(key)) is not None)
