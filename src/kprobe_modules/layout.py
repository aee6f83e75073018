# SPDX-License-Identifier: Apache-2.0
"""
Where each field of a message is, as the object's own BTF says.

A message is a C struct that begins with ``struct km_header``.  Its `Layout`
lists the fields in order of their offsets, with nested structs flattened:
``inner.field``.  Members whose names start with ``_`` are padding.  A flexible
array at the end is the tail; the fixed part ends where the tail begins.
"""

from __future__ import annotations

from functools import cached_property
from struct import Struct, calcsize
from typing import TYPE_CHECKING, Any, Final

import attrs

from kprobe_modules.btf import MAX_DEPTH, Btf, BtfType, Kind, Member
from kprobe_modules.byfields import ByFields
from kprobe_modules.errors import LayoutError
from kprobe_modules.shape import integer_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["HEADER", "Field", "Layout", "layout"]

#: Fields of ``struct km_header``: name, offset, kind, unit (bpf/km/header.h).
HEADER: Final = (
    ("time", 0, "u64", "ns, CLOCK_MONOTONIC"),
    ("module", 8, "u16", "module id"),
    ("message", 10, "u16", "message id"),
    ("length", 12, "u16", "bytes"),
    ("cpu", 14, "u16", "cpu"),
)
HEADER_SIZE: Final = 16

#: A perf sample's length has 16 bits, of which its own framing takes 32 bytes.
MAX_MESSAGE: Final = 65535 - 32
MAX_FIELDS: Final = 1024

#: Meaning by typedef (bpf/km/types.h).
UNITS: Final[Mapping[str, str]] = {
    "km_ns": "ns",
    "km_time": "ns since boot",
    "km_pid": "pid",
    "km_uid": "uid",
    "km_comm": "text",
    "km_cgroup_id": "cgroup id",
    "km_bytes": "bytes",
    "km_bool": "yes or no",
    "km_wait_status": "wait status",
    "km_be16": "network order",
    "km_be32": "network order",
    "km_ipv4": "IPv4 address",
    "km_ipv6": "IPv6 address",
    "km_cookie": "socket cookie",
    "km_count": "count",
}

#: Typedefs that change how the bytes are read.
_KINDS: Final = {"km_bool": "bool", "km_be16": "be16", "km_be32": "be32"}

#: Kind to letters of `struct` and to what numpy calls it.
_FORMATS: Final = {
    "u8": ("B", "<u1"),
    "u16": ("H", "<u2"),
    "u32": ("I", "<u4"),
    "u64": ("Q", "<u8"),
    "s8": ("b", "<i1"),
    "s16": ("h", "<i2"),
    "s32": ("i", "<i4"),
    "s64": ("q", "<i8"),
    "bool": ("?", "?"),
    "be16": ("2s", ">u2"),
    "be32": ("4s", ">u4"),
    "char": ("c", "S1"),
}


@attrs.frozen(eq=False, repr=False)
class Field(ByFields):
    """
    One field of a message.

    Attributes:
        name: dotted where structs nest.
        offset: bytes from the start of the message.
        size: bytes; 0 for a tail.
        kind: ``u8`` .. ``u64``, ``s8`` .. ``s64``, ``bool``, ``char``, ``be16``,
            ``be32`` (network order), ``enum``, one of these with ``[]`` for an
            array, or ``bytes`` for a union or an array of structs.
        format: letters of the struct module, without byte order.
        typedef: what the declaration calls the type, if it has such a name.
        unit: what the value means, from the typedef.
        count: elements of an array, 0 for a tail; None for a single value.
        enum_values: (name, value) of an enum.
    """

    name: str
    offset: int
    size: int
    kind: str
    format: str
    typedef: str | None = None
    unit: str | None = None
    count: int | None = None
    enum_values: tuple[tuple[str, int], ...] = ()

    @property
    def numpy_format(self) -> str:
        """
        What numpy calls the type: ``<u4``, ``S16``, ``(4,)<u2``.
        """
        if self.kind == "char[]":
            return f"S{self.size}"
        if self.kind == "bytes":
            return f"V{self.size}"
        base = self.kind.removesuffix("[]")
        scalar = _FORMATS[base][1] if base in _FORMATS else self._enum_format()
        return scalar if self.count is None else f"({self.count},){scalar}"

    def _enum_format(self) -> str:
        size = self.size // self.count if self.count else self.size
        return f"<{'i' if self.format.islower() else 'u'}{size}"


@attrs.frozen(slots=False, eq=False, repr=False)
class Layout(ByFields):
    """
    The fields of one message.

    Attributes:
        name: of the C struct.
        size: bytes of the fixed part; the distance between rows of a batch.
        fields: of the fixed part, by offset; the header's five come first.
        tail: the flexible array after it, or None.
    """

    name: str
    size: int
    fields: tuple[Field, ...]
    tail: Field | None = None

    @property
    def row_size(self) -> int:
        """
        Bytes of a row in a batch: the fixed part.
        """
        return self.size

    @property
    def names(self) -> tuple[str, ...]:
        """
        Names of the fields, in the order of `struct`.
        """
        return tuple(field.name for field in self.fields)

    @cached_property
    def struct(self) -> Struct:
        """
        Unpacks a row to all its fields.

        Little endian, padding explicit.  Text, arrays and values in network
        order come out as bytes.
        """
        return self.unpacker(self.fields)

    def unpacker(
        self, fields: Sequence[Field], order: str = "<", stride: int | None = None
    ) -> Struct:
        """
        Make a struct that unpacks some fields, given by offset, and skips the rest.

        *order* is the byte order, *stride* the bytes from row to row if they
        are more than `size`.
        """
        parts, position = [order], 0
        for field in fields:
            if field.offset > position:
                parts.append(f"{field.offset - position}x")
            parts.append(field.format)
            position = field.offset + field.size
        end = max(self.size, stride or 0)
        if end > position:
            parts.append(f"{end - position}x")
        return Struct("".join(parts))

    def field(self, name: str) -> Field | None:
        """
        Return a field or the tail by name; None if there is none.
        """
        for field in self.fields:
            if field.name == name:
                return field
        return self.tail if self.tail is not None and self.tail.name == name else None

    def dtype(self) -> dict[str, Any]:
        """
        Describe a row as ``numpy.dtype`` takes it.
        """
        return {
            "names": [field.name for field in self.fields],
            "formats": [field.numpy_format for field in self.fields],
            "offsets": [field.offset for field in self.fields],
            "itemsize": self.size,
        }


def layout(btf: Btf, id_: int) -> Layout:
    """
    Lay out the struct with this id.

    Raises:
        LayoutError: it does not begin with the header, or has a member that
            no message may have; the sentence names it.
        BtfError: its types contradict each other.
    """
    type_ = btf.resolve(id_)
    if type_.kind is not Kind.STRUCT:
        msg = f"{btf.origin}: a message must be a struct, found {type_}"
        raise LayoutError(msg)
    return _Flattener(btf, type_).run()


class _Flattener:
    """
    Turns the members of one struct into fields.
    """

    def __init__(self, btf: Btf, type_: BtfType) -> None:
        self.btf = btf
        self.type = type_
        self.fields: list[Field] = []
        self.tail: Field | None = None
        self.visits = 0

    def error(self, sentence: str) -> LayoutError:
        return LayoutError(f"{self.btf.origin}: struct {self.type.name}: {sentence}".lstrip(": "))

    def run(self) -> Layout:
        if self.type.size > MAX_MESSAGE:
            msg = f"has {self.type.size} bytes, a message has at most {MAX_MESSAGE}"
            raise self.error(msg)
        self.header()
        self.flatten(self.type, self.type.members[1:], 0, "", 0)
        size = self.type.size if self.tail is None else self.tail.offset
        self.fields.sort(key=lambda field: field.offset)
        self.check(size)
        fields = tuple(field for field in self.fields if not _private(field.name))
        return Layout(self.type.name, size, fields, self.tail)

    def header(self) -> None:
        first = self.type.members[0] if self.type.members else None
        head = self.btf.resolve(first.ref) if first else None
        if first is None or head is None or head.name != "km_header" or first.offset or first.bits:
            found = f"{head}" if head else "no member"
            msg = f"must begin with struct km_header, found {found}"
            raise self.error(msg)
        found_fields = tuple(
            (member.name, member.offset // 8, self.kind(self.btf.resolve(member.ref), member.name))
            for member in head.members
        )
        expected = tuple(each[:3] for each in HEADER)
        if found_fields != expected or head.size != HEADER_SIZE:
            msg = f"struct km_header has {found_fields}, expected {expected}"
            raise self.error(msg)
        for name, offset, kind, unit in HEADER:
            letters = _FORMATS[kind][0]
            self.fields.append(Field(name, offset, int(kind[1:]) // 8, kind, letters, unit=unit))

    def flatten(
        self, record: BtfType, members: tuple[Member, ...], base: int, prefix: str, depth: int
    ) -> None:
        if depth > MAX_DEPTH:
            msg = f"{record} nests more than {MAX_DEPTH} deep, or holds itself"
            raise self.error(msg)
        for member in members:
            self.visits += 1
            if self.visits > MAX_FIELDS:
                msg = f"has more than {MAX_FIELDS} members"
                raise self.error(msg)
            name = prefix + member.name
            if member.bits or member.offset % 8:
                msg = f"{name} is a bit field; use a whole integer"
                raise self.error(msg)
            offset = base + member.offset // 8
            type_ = self.btf.resolve(member.ref)
            if type_.kind is Kind.STRUCT:
                inner = f"{name}." if member.name else prefix
                self.flatten(type_, type_.members, offset, inner, depth + 1)
                continue
            if not member.name:
                msg = f"the union at offset {offset} has no name to read it by"
                raise self.error(msg)
            field = self.field(member.ref, type_, name, offset)
            if field.count == 0:
                self.take_tail(field, record, member)
            else:
                self.fields.append(field)

    def take_tail(self, field: Field, record: BtfType, member: Member) -> None:
        last = record is self.type and member is record.members[-1]
        if not last:
            msg = f"{field.name} has no elements, and only the last member may be a tail"
            raise self.error(msg)
        self.tail = field

    def field(self, id_: int, type_: BtfType, name: str, offset: int) -> Field:
        typedef = self.btf.typedef(id_)
        unit = UNITS.get(typedef or "")
        if type_.kind is Kind.ARRAY:
            return self.array(type_, name, offset, typedef)
        if type_.kind is Kind.UNION and type_.size:
            return Field(name, offset, type_.size, "bytes", f"{type_.size}s", typedef, unit)
        plain = self.kind(type_, name)
        kind = _KINDS.get(typedef or "", plain)
        size = type_.size
        if offset % size:
            msg = f"{name} at offset {offset} is not aligned to its {size} bytes"
            raise self.error(msg)
        letters = self.letters(type_, kind)
        values = type_.values if kind == "enum" else ()
        return Field(name, offset, size, kind, letters, typedef, unit, enum_values=values)

    def array(self, type_: BtfType, name: str, offset: int, typedef: str | None) -> Field:
        size = self.btf.size(type_.id)
        inner, count, dimensions, ref = type_, 1, 0, type_.id
        while inner.kind is Kind.ARRAY:
            # The size above ended, so that this does.
            count *= inner.length
            dimensions += 1
            ref, inner = inner.ref, self.btf.resolve(inner.ref)
        element = self.btf.typedef(ref)
        unit = UNITS.get(typedef or "") or UNITS.get(element or "")
        if count and not size:
            msg = f"{name} is an array of nothing"
            raise self.error(msg)
        if inner.kind in (Kind.STRUCT, Kind.UNION):
            kind = "bytes"
        else:
            plain = self.kind(inner, name)
            kind = _KINDS.get(element or "", plain)
            self.letters(inner, kind)
            if kind == "char" and dimensions > 1:
                kind = "u8"  # several texts in a row are not one text
            kind += "[]"
            if offset % inner.size:
                msg = f"{name} at offset {offset} is not aligned to its {inner.size} bytes"
                raise self.error(msg)
        letters = f"{size}s" if size else ""
        values = inner.values if kind == "enum[]" else ()
        return Field(name, offset, size, kind, letters, typedef or element, unit, count, values)

    def kind(self, type_: BtfType, name: str) -> str:
        if type_.kind in (Kind.ENUM, Kind.ENUM64) and type_.size in (1, 2, 4, 8):
            return "enum"
        if type_.kind is Kind.INT and not type_.bit_offset and type_.size in (1, 2, 4, 8):
            kind = integer_name(type_)
            if type_.bits == type_.size * 8 or kind == "bool":
                return kind
        if type_.kind is Kind.PTR:
            msg = f"{name} is a pointer; send an id, addresses are reused and leak the kernel"
            raise self.error(msg)
        msg = f"{name} is {type_}, which no message may hold"
        raise self.error(msg)

    def letters(self, type_: BtfType, kind: str) -> str:
        size = type_.size
        if kind == "enum":
            letters = {1: "B", 2: "H", 4: "I", 8: "Q"}[size]
            return letters.lower() if type_.encoding else letters
        expected = calcsize("<" + _FORMATS[kind][0])
        if size != expected:
            msg = f"{type_} has {size} bytes, {kind} has {expected}"
            raise self.error(msg)
        return _FORMATS[kind][0]

    def check(self, size: int) -> None:
        position, before = 0, "the start"
        seen: set[str] = set()
        for field in self.fields:
            if field.offset < position:
                msg = f"{field.name} at offset {field.offset} overlaps {before}"
                raise self.error(msg)
            if field.name in seen:
                msg = f"{field.name} appears twice (the header's names are taken)"
                raise self.error(msg)
            seen.add(field.name)
            position, before = field.offset + field.size, field.name
        if self.tail is not None and self.tail.name in seen:
            msg = f"{self.tail.name} appears twice (the header's names are taken)"
            raise self.error(msg)
        if position > size:
            msg = f"{before} ends at {position}, beyond its {size} bytes"
            raise self.error(msg)


def _private(name: str) -> bool:
    return any(part.startswith("_") for part in name.split("."))
