# SPDX-License-Identifier: Apache-2.0
"""
What an object's programs may log: codes with named arguments, and the lines that log.

Codes are declared like messages (bpf/km/diagnostic.h): an enum whose name ends in
``_code``, and a union that begins with it and names the arguments of each.  The
framework's and the module's own are variables of the section ``km.types``; the
lines of the source lie in ``km.sites``.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import attrs

from kprobe_modules.btf import Btf, BtfType, Kind
from kprobe_modules.byfields import ByFields
from kprobe_modules.errors import LayoutError
from kprobe_modules.layout import UNITS
from kprobe_modules.shape import integer_name

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Argument", "Code", "Site", "find_unions", "read_codes", "read_sites"]

SECTION: Final = "km.types"
SITES_SECTION: Final = "km.sites"
MAX_ARGUMENTS: Final = 3
MAX_CODE: Final = 0xFFFF

_SITE: Final = struct.Struct("<II120s")
"""``struct km_log_site`` (bpf/km/log.h): number, line, file."""


@attrs.frozen(eq=False, repr=False)
class Argument(ByFields):
    """
    One argument of a code: how to read the 64 bits that a program gave.

    Attributes:
        name: of the member that declares it.
        size: bytes that count.
        signed: whether they are a signed number.
        boolean: whether they are yes or no.
        unit: what the value means, from the typedef.
        values: (name, value) of an enum.
    """

    name: str
    size: int
    signed: bool = False
    boolean: bool = False
    unit: str | None = None
    values: tuple[tuple[str, int], ...] = ()

    def read(self, word: int) -> int | bool | str:
        """
        Return what a 64-bit word of the wire means; an enumerator as its name.
        """
        bits = self.size * 8
        value = word & ((1 << bits) - 1)
        if self.boolean:
            return value != 0
        if self.signed and value >> bits - 1:
            value -= 1 << bits
        return next((name for name, number in self.values if number == value), value)


@attrs.frozen(eq=False, repr=False)
class Code(ByFields):
    """
    One code: its name, its number, its arguments in the order of the wire.
    """

    name: str
    id: int
    arguments: tuple[Argument, ...] = ()


@attrs.frozen(eq=False, repr=False)
class Site(ByFields):
    """
    A line of the source that logs.
    """

    file: str
    """As the compiler was given it, relative to the root of the sources."""
    line: int
    """Where the call ends."""


def find_unions(btf: Btf, suffix: str) -> Iterator[BtfType]:
    """
    Yield the unions of ``km.types`` that begin with an enum whose name ends in *suffix*.

    Raises:
        LayoutError: a variable of the section is no such declaration.
    """
    section = btf.find(Kind.DATASEC, SECTION)
    for variable in section.variables if section else ():
        union = btf.resolve(btf.type(variable.ref).ref)
        first = btf.resolve(union.members[0].ref) if union.members else None
        if union.kind is not Kind.UNION or first is None or first.kind is not Kind.ENUM:
            expected = "expected a union that begins with an enum"
            msg = f"{btf.origin}: section {SECTION}: {expected}, found {union}"
            raise LayoutError(msg)
        if first.name.endswith(suffix):
            yield union


def read_codes(btf: Btf) -> tuple[Code, ...]:
    """
    Return the codes by number, the framework's first.

    Raises:
        LayoutError: a declaration is not as described above; names it.
    """
    codes: dict[int, Code] = {}
    names: set[str] = set()
    for union in find_unions(btf, "_code"):
        for code in _codes(btf, union):
            if code.id in codes or code.name in names or not 0 < code.id <= MAX_CODE:
                msg = (
                    f"{btf.origin}: code {code.name} is {code.id}, expected a name and a number"
                    f" of its own, from 1 to {MAX_CODE}"
                )
                raise LayoutError(msg)
            codes[code.id] = code
            names.add(code.name)
    return tuple(codes[number] for number in sorted(codes))


def _codes(btf: Btf, union: BtfType) -> Iterator[Code]:
    enum = btf.resolve(union.members[0].ref)
    prefix = f"{enum.name.upper()}_"
    members = {member.name: member.ref for member in union.members[1:]}
    for enumerator, number in enum.values:
        name = enumerator.removeprefix(prefix).lower()
        if not enumerator.startswith(prefix) or not name:
            msg = f"{btf.origin}: enumerator {enumerator} must begin with {prefix}"
            raise LayoutError(msg)
        ref = members.pop(name, None)
        yield Code(name, number, () if ref is None else _arguments(btf, name, ref))
    if members:
        unknown = ", ".join(members)
        msg = f"{btf.origin}: union {union.name}: no enumerator for member {unknown}"
        raise LayoutError(msg)


def _arguments(btf: Btf, code: str, ref: int) -> tuple[Argument, ...]:
    record = btf.resolve(ref)
    if record.kind is not Kind.STRUCT or len(record.members) > MAX_ARGUMENTS:
        expected = f"expected a struct of up to {MAX_ARGUMENTS} numbers"
        msg = f"{btf.origin}: arguments of code {code}: {expected}, found {record}"
        raise LayoutError(msg)
    return tuple(_argument(btf, code, member.name, member.ref) for member in record.members)


def _argument(btf: Btf, code: str, name: str, ref: int) -> Argument:
    type_ = btf.resolve(ref)
    typedef = btf.typedef(ref) or ""
    unit = UNITS.get(typedef)
    if type_.kind in (Kind.ENUM, Kind.ENUM64):
        return Argument(name, type_.size, bool(type_.encoding), unit=unit, values=type_.values)
    if type_.kind is not Kind.INT or type_.size not in (1, 2, 4, 8):
        msg = f"{btf.origin}: argument {name} of code {code} is {type_}, expected a number"
        raise LayoutError(msg)
    kind = integer_name(type_)
    boolean = kind == "bool" or typedef == "km_bool"
    return Argument(name, type_.size, kind.startswith("s"), boolean, unit)


def read_sites(content: bytes, origin: str) -> dict[int, Site]:
    """
    Return the lines that log, by number, from the bytes of ``km.sites``.

    Raises:
        LayoutError: they are no whole number of entries.
    """
    if len(content) % _SITE.size:
        expected = f"expected a multiple of {_SITE.size}"
        msg = f"{origin}: section {SITES_SECTION} has {len(content)} bytes, {expected}"
        raise LayoutError(msg)
    return {
        number: Site(file.partition(b"\0")[0].decode("utf-8", "backslashreplace"), line)
        for number, line, file in _SITE.iter_unpack(content)
    }
