# SPDX-License-Identifier: Apache-2.0
"""
Tunables: the ``const volatile`` variables of ``.rodata``.

``volatile`` keeps the compiler from using the value in the file, so that the
loader may write another one before the verifier sees it.  String literals and
other constants share the section and are passed over.
"""

from __future__ import annotations

import struct
from operator import index
from typing import TYPE_CHECKING, Final, NoReturn, SupportsIndex

from kprobe_modules.btf import ENCODING_SIGNED, Btf, BtfType, Kind
from kprobe_modules.errors import ConfigError, ObjectError
from kprobe_modules.layout import UNITS
from kprobe_modules.shape import integer_name
from kprobe_modules.spec import Tunable

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["pack", "read_tunables"]

_DOC_TAG: Final = "km_doc:"
_LETTERS: Final = {1: "b", 2: "h", 4: "i", 8: "q"}


def read_tunables(btf: Btf, rodata: bytes, offsets: Mapping[str, int]) -> tuple[Tunable, ...]:
    """
    Return the tunables by offset.

    *rodata* is the section's content, *offsets* the symbols in it by name.

    Raises:
        ObjectError: one lies outside of the section.
    """
    section = btf.find(Kind.DATASEC, ".rodata")
    found = []
    for variable in section.variables if section else ():
        declaration = btf.type(variable.ref)
        chain = btf.chain(declaration.ref)
        # C puts an array's qualifiers on its elements.
        array = chain[-1].kind is Kind.ARRAY
        qualified = btf.chain(chain[-1].ref) if array else chain
        if not any(type_.kind is Kind.VOLATILE for type_ in qualified):
            continue
        size = btf.size(declaration.ref)
        offset = offsets.get(declaration.name, variable.offset)
        if offset + size > len(rodata):
            where = f"ends at {offset + size} of {len(rodata)} bytes of .rodata"
            msg = f"{btf.origin}: tunable {declaration.name} {where}"
            raise ObjectError(msg)
        typedef = btf.typedef(declaration.ref)
        kind = _kind(btf, chain[-1], typedef)
        docs = [text.removeprefix(_DOC_TAG) for text in btf.tags(variable.ref) if _is_doc(text)]
        tunable = Tunable(
            name=declaration.name,
            kind=kind,
            size=size,
            offset=offset,
            default=_value(kind, chain[-1], rodata[offset : offset + size]),
            unit=UNITS.get(typedef or ""),
            doc=" ".join(dict.fromkeys(docs)) or None,
        )
        found.append(tunable)
    return tuple(sorted(found, key=lambda each: each.offset))


def pack(tunable: Tunable, value: int | bytes | str) -> bytes:
    """
    Return the bytes that set a tunable.

    Text and bytes are filled up with NUL; text keeps at least one.

    Raises:
        ConfigError: the value is of the wrong type or does not fit; says what
            does.
    """
    if tunable.kind in ("char[]", "bytes"):
        room = tunable.size - (tunable.kind == "char[]")
        raw = value.encode() if isinstance(value, str) else value
        if not isinstance(raw, bytes) or len(raw) > room:
            _refuse(tunable, f"up to {room} bytes of text", value)
        return raw.ljust(tunable.size, b"\0")
    low, high = _range(tunable)
    expected = "true or false" if tunable.kind == "bool" else f"{low} to {high} ({tunable.kind})"
    # Anything that is an integer: agents take theirs from numpy, too.
    if not isinstance(value, SupportsIndex) or not low <= index(value) <= high:
        _refuse(tunable, expected, value)
    return index(value).to_bytes(tunable.size, "little", signed=low < 0)


def _refuse(tunable: Tunable, expected: str, found: object) -> NoReturn:
    msg = f"tunable {tunable.name} is {found!r}, expected {expected}"
    raise ConfigError(msg)


def _range(tunable: Tunable) -> tuple[int, int]:
    if tunable.kind == "bool":
        return 0, 1
    bits = tunable.size * 8
    if tunable.kind.startswith("s"):
        return -(1 << bits - 1), (1 << bits - 1) - 1
    return 0, (1 << bits) - 1


def _is_doc(text: str) -> bool:
    return text.startswith(_DOC_TAG)


def _kind(btf: Btf, type_: BtfType, typedef: str | None) -> str:
    if type_.kind is Kind.INT and type_.size in _LETTERS:
        kind = integer_name(type_)
        if kind == "char":
            kind = "s8" if type_.encoding & ENCODING_SIGNED else "u8"
        return "bool" if typedef == "km_bool" and type_.size == 1 else kind
    if type_.kind in (Kind.ENUM, Kind.ENUM64) and type_.size in _LETTERS:
        return ("s" if type_.encoding else "u") + str(type_.size * 8)
    if type_.kind is Kind.ARRAY:
        element = btf.resolve(type_.ref)
        if element.kind is Kind.INT and integer_name(element) == "char":
            return "char[]"
    return "bytes"


def _value(kind: str, type_: BtfType, raw: bytes) -> int | bool | bytes:
    if kind == "char[]":
        return raw.partition(b"\0")[0]
    if kind == "bytes":
        return raw
    if kind == "bool":
        return any(raw)
    letter = _LETTERS[type_.size]
    (value,) = struct.unpack("<" + (letter if kind.startswith("s") else letter.upper()), raw)
    return int(value)
