# SPDX-License-Identifier: Apache-2.0
"""
What a type looks like in memory, apart from the object that declares it.

Type ids mean something in one object only.  A `TypeShape` says the same of a
type without them, so that the key and value of a map can be compared between
two objects, or with what the kernel has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import attrs

from kprobe_modules.btf import (
    ENCODING_BOOL,
    ENCODING_SIGNED,
    MAX_DEPTH,
    Btf,
    BtfType,
    Kind,
)
from kprobe_modules.byfields import ByFields

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MemberShape", "TypeShape", "integer_name", "shape"]

#: Shapes of one type; a struct holding two of the next, twenty times over,
#: would otherwise grow to millions.
MAX_NODES: Final = 4096

_RECORDS: Final = {Kind.STRUCT: "struct", Kind.UNION: "union"}


class MemberShape(NamedTuple):
    """
    One member of a struct or union.

    Attributes:
        name: empty for an anonymous one.
        offset: bits from the start of the struct.
        bits: width of a bit field; 0 for an ordinary member.
        shape: of its type.
    """

    name: str
    offset: int
    bits: int
    shape: TypeShape


@attrs.frozen(eq=False, repr=False)
class TypeShape(ByFields):
    """
    The structure of a type; equal if and only if the memory means the same.

    Attributes:
        kind: ``int``, ``enum``, ``struct``, ``union``, ``array``, ``pointer``,
            ``float`` or ``opaque``.
        name: ``u32`` and the like for integers; the tag of a struct, union or
            enum; empty for others.
        size: bytes.
        count: elements of an array.
        element: of an array.
        members: of a struct or union.
        values: (name, value) of an enum.
        typedef: what its declaration calls it; for people, not compared.
        nodes: how many shapes it is made of; not compared.
    """

    kind: str
    name: str
    size: int
    count: int = 0
    element: TypeShape | None = None
    members: tuple[MemberShape, ...] = ()
    values: tuple[tuple[str, int], ...] = ()
    typedef: str | None = attrs.field(default=None, eq=False)
    nodes: int = attrs.field(default=1, eq=False, repr=False)

    def __str__(self) -> str:
        if self.kind == "array":
            return f"{self.element}[{self.count}]"
        if self.kind in ("struct", "union", "enum"):
            plain = f"{self.kind} {self.name or '(anonymous)'}"
        else:
            plain = self.name or self.kind
        return f"{self.typedef} ({plain})" if self.typedef else plain

    def lines(self, name: str = "", offset: int = 0, indent: str = "") -> Iterator[str]:
        """
        Yield one line per member, nested ones indented: offset, type, name.
        """
        yield f"{indent}{offset:4} {self} {name}".rstrip() + f", {self.size} bytes"
        for member in self.members:
            where = offset + member.offset // 8
            yield from member.shape.lines(member.name, where, indent + "  ")

    def differences(self, other: TypeShape, path: str = "") -> list[str]:
        """
        Return a sentence for each place where *other* differs; none if equal.

        *path* names the thing compared, for instance ``value``; this shape is
        what was found, *other* what was expected.
        """
        here = path or "type"
        if self == other:
            return []
        if (self.kind, self.name) != (other.kind, other.name):
            return [f"{here} is {self}, expected {other}"]
        found = []
        if self.size != other.size:
            found.append(f"{here} has {self.size} bytes, expected {other.size}")
        if self.count != other.count:
            found.append(f"{here} has {self.count} elements, expected {other.count}")
        if self.values != other.values:
            found.append(f"{here} has enumerators {_list(self)}, expected {_list(other)}")
        if self.element and other.element:
            found += self.element.differences(other.element, f"{here}[]")
        return found + self._member_differences(other, here)

    def _member_differences(self, other: TypeShape, here: str) -> list[str]:
        # Anonymous members have no name to pair them by, so their place serves.
        mine = {member.name or f"({at})": member for at, member in enumerate(self.members)}
        theirs = {member.name or f"({at})": member for at, member in enumerate(other.members)}
        found = [f"{here}.{name} is not expected" for name in mine if name not in theirs]
        found += [f"{here}.{name} is missing" for name in theirs if name not in mine]
        for name, member in mine.items():
            if name not in theirs:
                continue
            expected = theirs[name]
            if (member.offset, member.bits) != (expected.offset, expected.bits):
                where = f"{here}.{name} is at {_place(member)}"
                found.append(f"{where}, expected {_place(expected)}")
            found += member.shape.differences(expected.shape, f"{here}.{name}")
        return found


def shape(btf: Btf, id_: int) -> TypeShape:
    """
    Return the shape of a type.

    Raises:
        BtfError: it has no size, holds itself, or is made of more than 4096
            parts.
    """
    return _Shaper(btf).shape(id_, 0)


def integer_name(type_: BtfType) -> str:
    """
    Return ``u8`` to ``s128``, ``bool`` or ``char`` for an INT.

    C has several names for one integer; signedness and width are what count.
    ``char`` stays apart, as it holds text.
    """
    if type_.encoding & ENCODING_BOOL:
        return "bool"
    if type_.name == "char" and type_.size == 1:
        return "char"
    return ("s" if type_.encoding & ENCODING_SIGNED else "u") + str(type_.size * 8)


class _Shaper:
    """
    Shapes by id, each made once.
    """

    def __init__(self, btf: Btf) -> None:
        self.btf = btf
        self.known: dict[int, TypeShape] = {}

    def shape(self, id_: int, depth: int) -> TypeShape:
        known = self.known.get(id_)
        if known is not None:
            return known
        type_ = self.btf.resolve(id_)
        if depth > MAX_DEPTH:
            msg = f"{type_} nests more than {MAX_DEPTH} deep, or holds itself"
            raise self.btf.error(msg)
        typedef = self.btf.typedef(id_)
        made = self.make(type_, typedef, depth)
        if made.nodes > MAX_NODES:
            msg = f"{type_} is made of {made.nodes} parts, more than {MAX_NODES}"
            raise self.btf.error(msg)
        self.known[id_] = made
        return made

    def make(self, type_: BtfType, typedef: str | None, depth: int) -> TypeShape:
        match type_.kind:
            case Kind.INT:
                return TypeShape("int", integer_name(type_), type_.size, typedef=typedef)
            case Kind.ENUM | Kind.ENUM64:
                name, size = type_.name, type_.size
                return TypeShape("enum", name, size, values=type_.values, typedef=typedef)
            case Kind.ARRAY:
                size = self.btf.size(type_.id)
                element = self.shape(type_.ref, depth + 1)
                return TypeShape("array", "", size, type_.length, element, nodes=element.nodes + 1)
            case Kind.STRUCT | Kind.UNION:
                return self.record(type_, typedef, depth)
            case Kind.PTR:
                # What it points to does not matter to the memory that holds it.
                return TypeShape("pointer", "", 8, typedef=typedef)
            case Kind.FLOAT:
                return TypeShape("float", f"f{type_.size * 8}", type_.size, typedef=typedef)
            case _:
                msg = f"{type_} has no size, so that no map can hold it"
                raise self.btf.error(msg)

    def record(self, type_: BtfType, typedef: str | None, depth: int) -> TypeShape:
        members, nodes = [], 1
        for member in type_.members:
            inner = self.shape(member.ref, depth + 1)
            nodes += inner.nodes
            members.append(MemberShape(member.name, member.offset, member.bits, inner))
            if nodes > MAX_NODES:
                break
        return TypeShape(
            _RECORDS[type_.kind],
            type_.name,
            type_.size,
            members=tuple(members),
            typedef=typedef,
            nodes=nodes,
        )


def _place(member: MemberShape) -> str:
    place = f"offset {member.offset // 8}"
    return f"bit {member.offset} for {member.bits} bits" if member.bits else place


def _list(shape_: TypeShape) -> str:
    return ", ".join(f"{name}={value}" for name, value in shape_.values) or "none"
