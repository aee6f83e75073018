# SPDX-License-Identifier: Apache-2.0
"""
Types of a BPF object, read from the bytes of its ``.BTF`` section.

The format is that of Documentation/bpf/btf.rst in the kernel's tree; kinds up
to ENUM64 (Linux 6.0) are known.  Object files are not trusted: whatever the
bytes, `parse` returns or raises `BtfError` in time and memory proportional to
their number, and questions asked of the result end although types may refer
to each other in circles.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from kprobe_modules.errors import BtfError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Btf", "BtfType", "Kind", "Member", "Variable", "parse"]

MAGIC: Final = 0xEB9F
_SWAPPED: Final = 0x9FEB
_HEADER: Final = struct.Struct("<HBBIIIII")
_COMMON: Final = struct.Struct("<III")
_PAIR: Final = struct.Struct("<II")
_TRIPLE: Final = struct.Struct("<III")
_ENUMERATOR: Final = struct.Struct("<Ii")
_WORD: Final = struct.Struct("<I")
_SIGNED: Final = struct.Struct("<i")

#: Bounds.  Objects of modules have some hundred types in some ten kilobytes.
MAX_BYTES: Final = 4 << 20
MAX_TYPES: Final = 1 << 16
MAX_NAME: Final = 4096
#: Typedefs and qualifiers in a row; libbpf's MAX_RESOLVE_DEPTH is the same.
MAX_DEPTH: Final = 32
MAX_SIZE: Final = 0xFFFFFFFF
_MAX_INTEGER: Final = 16

ENCODING_SIGNED: Final = 1
ENCODING_CHAR: Final = 2
ENCODING_BOOL: Final = 4


class Kind(enum.IntEnum):
    """
    BTF_KIND_* of linux/btf.h.
    """

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


_QUALIFIERS: Final = frozenset((Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG))
#: Kinds whose third word is a type; for the others it is a size, or unused.
_REFERRING: Final = _QUALIFIERS | {
    Kind.PTR,
    Kind.TYPEDEF,
    Kind.FUNC,
    Kind.FUNC_PROTO,
    Kind.VAR,
    Kind.DECL_TAG,
}
_SIZED: Final = frozenset(
    (Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.ENUM64, Kind.FLOAT, Kind.DATASEC)
)


class Member(NamedTuple):
    """
    One member of a struct or union.

    Attributes:
        name: empty for an anonymous struct or union.
        ref: id of its type.
        offset: bits from the start of the struct.
        bits: width of a bit field; 0 for an ordinary member.
    """

    name: str
    ref: int
    offset: int
    bits: int


class Variable(NamedTuple):
    """
    One variable of a data section.

    Attributes:
        ref: id of the VAR.
        offset: bytes; 0 in objects that no linker has seen, as clang's.
        size: bytes.
    """

    ref: int
    offset: int
    size: int


class BtfType(NamedTuple):
    """
    One type.

    Attributes:
        id: its number; 0 is void.
        kind: which of the attributes below have a meaning.
        name: empty for anonymous ones; the text for a DECL_TAG or TYPE_TAG.
        size: bytes, of kinds that carry a size.
        ref: id of the type referred to; of an ARRAY, of its elements.
        length: elements of an ARRAY.
        bits: width of an INT.
        bit_offset: where an INT starts within its bytes.
        encoding: ENCODING_* of an INT; ENCODING_SIGNED of an enum.
        component: member or parameter a DECL_TAG is about; -1 for the whole.
        members: of a STRUCT or UNION; parameters of a FUNC_PROTO.
        values: (name, value) of an ENUM or ENUM64.
        variables: of a DATASEC.
    """

    id: int
    kind: Kind
    name: str = ""
    size: int = 0
    ref: int = 0
    length: int = 0
    bits: int = 0
    bit_offset: int = 0
    encoding: int = 0
    component: int = -1
    members: tuple[Member, ...] = ()
    values: tuple[tuple[str, int], ...] = ()
    variables: tuple[Variable, ...] = ()

    def __str__(self) -> str:
        return f"[{self.id}] {self.kind.name} {self.name or '(anonymous)'}"


class Btf:
    """
    The types of one object, by id; immutable once parsed.
    """

    def __init__(self, types: Iterable[BtfType], origin: str = "") -> None:
        self._types = tuple(types)
        self._tags: dict[int, list[BtfType]] = {}
        self.origin = origin
        for type_ in self._types:
            if type_.kind is Kind.DECL_TAG:
                self._tags.setdefault(type_.ref, []).append(type_)

    def __len__(self) -> int:
        return len(self._types)

    def __iter__(self) -> Iterator[BtfType]:
        return iter(self._types)

    def error(self, sentence: str) -> BtfError:
        """
        Make an error that names the object.
        """
        return BtfError(f"{self.origin}: .BTF: {sentence}" if self.origin else f".BTF: {sentence}")

    def type(self, id_: int) -> BtfType:
        """
        Return the type with this id.

        Raises:
            BtfError: there is none.
        """
        if not 0 <= id_ < len(self._types):
            msg = f"type [{id_}] does not exist, the last is [{len(self._types) - 1}]"
            raise self.error(msg)
        return self._types[id_]

    def find(self, kind: Kind, name: str) -> BtfType | None:
        """
        Return the first type of this kind and name.
        """
        for type_ in self._types:
            if type_.kind is kind and type_.name == name:
                return type_
        return None

    def tags(self, id_: int, component: int = -1) -> tuple[str, ...]:
        """
        Return the ``btf_decl_tag`` texts on a type, or on one of its members.
        """
        return tuple(tag.name for tag in self._tags.get(id_, ()) if tag.component == component)

    def chain(self, id_: int) -> list[BtfType]:
        """
        Follow typedefs and qualifiers; the last type is neither.

        Raises:
            BtfError: they go in a circle, or more than 32 deep.
        """
        type_ = self.type(id_)
        followed = [type_]
        while type_.kind is Kind.TYPEDEF or type_.kind in _QUALIFIERS:
            if len(followed) > MAX_DEPTH:
                deep = f"more than {MAX_DEPTH} typedefs and qualifiers deep"
                msg = f"{followed[0]} is {deep}, or a loop"
                raise self.error(msg)
            type_ = self.type(type_.ref)
            followed.append(type_)
        return followed

    def resolve(self, id_: int) -> BtfType:
        """
        Return the type behind typedefs and qualifiers.
        """
        return self.chain(id_)[-1]

    def typedef(self, id_: int) -> str | None:
        """
        Return the outermost typedef's name, the one that was written down.
        """
        for type_ in self.chain(id_):
            if type_.kind is Kind.TYPEDEF:
                return type_.name
        return None

    def size(self, id_: int) -> int:
        """
        Return the size of a type in bytes, pointers being 8.

        Raises:
            BtfError: it has none, nests too deep, or is beyond 32 bits.
        """
        factor = 1
        for _ in range(MAX_DEPTH):
            type_ = self.resolve(id_)
            if type_.kind in _SIZED:
                return self._bounded(factor * type_.size, type_)
            if type_.kind is Kind.PTR:
                return self._bounded(factor * 8, type_)
            if type_.kind is Kind.ARRAY:
                factor = self._bounded(factor * type_.length, type_)
            elif type_.kind is not Kind.VAR:
                msg = f"{type_} has no size"
                raise self.error(msg)
            id_ = type_.ref
        msg = f"{self.type(id_)} nests more than {MAX_DEPTH} deep, or is a loop"
        raise self.error(msg)

    def _bounded(self, size: int, type_: BtfType) -> int:
        if size > MAX_SIZE:
            msg = f"{type_} makes a type of {size} bytes, more than 32 bits hold"
            raise self.error(msg)
        return size


def parse(data: bytes, origin: str = "") -> Btf:
    """
    Read the bytes of a ``.BTF`` section.

    *origin* names the object in errors.

    Raises:
        BtfError: the bytes are not little-endian BTF of version 1, or are
            damaged; the sentence says where.
    """
    return _Parser(data, origin).run()


class _Parser:
    """
    One pass over the type section; positions are checked before they are read.
    """

    def __init__(self, data: bytes, origin: str) -> None:
        self.data = data
        self.origin = origin
        self.names: dict[int, str] = {0: ""}
        self.position = self.end = 0
        self.strings = b""
        self.id = 0
        self.budget = 0

    def error(self, sentence: str) -> BtfError:
        return BtfError(f"{self.origin}: .BTF: {sentence}" if self.origin else f".BTF: {sentence}")

    def run(self) -> Btf:
        self.header()
        types = [BtfType(0, Kind.VOID, "void")]
        while self.position < self.end:
            if len(types) > MAX_TYPES:
                msg = f"has more than {MAX_TYPES} types"
                raise self.error(msg)
            self.id = len(types)
            types.append(self.type())
        self.check_references(types)
        return Btf(types, self.origin)

    def header(self) -> None:
        data = self.data
        if len(data) > MAX_BYTES:
            msg = f"is {len(data)} bytes, more than the {MAX_BYTES} this reader takes"
            raise self.error(msg)
        if len(data) < _HEADER.size:
            msg = f"is truncated: {len(data)} bytes, its header alone has {_HEADER.size}"
            raise self.error(msg)
        fields = _HEADER.unpack_from(data)
        magic, version, _, header, type_at, type_size, string_at, string_size = fields
        if magic == _SWAPPED:
            msg = "wrong endianness: big endian, expected little (build with clang --target=bpfel)"
            raise self.error(msg)
        if magic != MAGIC:
            msg = f"magic is {magic:#06x}, expected {MAGIC:#06x}"
            raise self.error(msg)
        if version != 1:
            msg = f"version is {version}, expected 1"
            raise self.error(msg)
        if header < _HEADER.size or header > len(data):
            msg = f"header length {header} is outside {_HEADER.size}..{len(data)}"
            raise self.error(msg)
        for what, start, size in (("type", type_at, type_size), ("string", string_at, string_size)):
            if header + start + size > len(data):
                found = f"ends at {header + start + size} of {len(data)} bytes"
                msg = f"is truncated: {what} section {found}"
                raise self.error(msg)
        self.position = header + type_at
        self.end = self.position + type_size
        self.strings = data[header + string_at : header + string_at + string_size]
        if not self.strings or self.strings[0] or self.strings[-1]:
            msg = "string section does not start and end with NUL"
            raise self.error(msg)
        # Names may overlap; without a budget a small file could name the
        # tail of one long string from each of its types.
        self.budget = 2 * len(self.strings) + (1 << 16)

    def name(self, offset: int) -> str:
        known = self.names.get(offset)
        if known is not None:
            return known
        if offset >= len(self.strings):
            msg = f"type [{self.id}] has its name at {offset}, beyond the strings"
            raise self.error(msg)
        end = self.strings.find(0, offset, offset + MAX_NAME)
        self.budget -= end - offset
        if end < 0 or self.budget < 0:
            msg = f"type [{self.id}] has a name longer than {MAX_NAME} bytes, or in others' names"
            raise self.error(msg)
        text = self.strings[offset:end].decode("utf-8", "backslashreplace")
        self.names[offset] = text
        return text

    def take(self, size: int) -> bytes:
        start = self.position
        self.position += size
        if self.position > self.end:
            msg = f"type [{self.id}] is truncated: needs {size} bytes, {self.end - start} left"
            raise self.error(msg)
        return self.data[start : self.position]

    def type(self) -> BtfType:
        name_at, info, third = _COMMON.unpack(self.take(_COMMON.size))
        number = info >> 24 & 0x1F
        try:
            kind = Kind(number)
        except ValueError:
            kind = Kind.VOID
        if kind is Kind.VOID:
            msg = f"type [{self.id}] is of unknown kind {number}, the last known is {max(Kind)}"
            raise self.error(msg)
        name = self.name(name_at)
        size, ref = (0, third) if kind in _REFERRING else (third, 0)
        return self.body(
            BtfType(self.id, kind, name, size, ref), info & 0xFFFF, flag=info >> 31 == 1
        )

    def body(self, head: BtfType, length: int, *, flag: bool) -> BtfType:  # noqa: PLR0911 - one per kind
        match head.kind:
            case Kind.INT:
                return self.integer(head)
            case Kind.ARRAY:
                ref, _, count = _TRIPLE.unpack(self.take(_TRIPLE.size))
                return head._replace(ref=ref, length=count, size=0)
            case Kind.STRUCT | Kind.UNION:
                return head._replace(members=self.members(length, flag=flag))
            case Kind.ENUM | Kind.ENUM64:
                values = self.values(head.kind, length, flag=flag)
                # clang before 15 never set the flag, so a negative value speaks too.
                signed = flag or any(value < 0 for _, value in values)
                return head._replace(values=values, encoding=int(signed))
            case Kind.FUNC_PROTO:
                pairs = _PAIR.iter_unpack(self.take(length * _PAIR.size))
                members = tuple(Member(self.name(at), ref, 0, 0) for at, ref in pairs)
                return head._replace(members=members)
            case Kind.VAR:
                self.take(_WORD.size)
                return head
            case Kind.DATASEC:
                triples = _TRIPLE.iter_unpack(self.take(length * _TRIPLE.size))
                return head._replace(variables=tuple(Variable(*each) for each in triples))
            case Kind.DECL_TAG:
                (component,) = _SIGNED.unpack(self.take(_SIGNED.size))
                return head._replace(component=component)
            case _:
                return head

    def integer(self, head: BtfType) -> BtfType:
        (word,) = _WORD.unpack(self.take(_WORD.size))
        encoding, bit_offset, bits = word >> 24 & 0xF, word >> 16 & 0xFF, word & 0xFF
        if not 0 < head.size <= _MAX_INTEGER or bit_offset + bits > head.size * 8:
            msg = f"{head} has {bits} bits at bit {bit_offset} in {head.size} bytes"
            raise self.error(msg)
        return head._replace(encoding=encoding, bit_offset=bit_offset, bits=bits)

    def members(self, length: int, *, flag: bool) -> tuple[Member, ...]:
        triples = _TRIPLE.iter_unpack(self.take(length * _TRIPLE.size))
        if flag:
            return tuple(
                Member(self.name(at), ref, offset & 0xFFFFFF, offset >> 24)
                for at, ref, offset in triples
            )
        return tuple(Member(self.name(at), ref, offset, 0) for at, ref, offset in triples)

    def values(self, kind: Kind, length: int, *, flag: bool) -> tuple[tuple[str, int], ...]:
        if kind is Kind.ENUM:
            pairs = _ENUMERATOR.iter_unpack(self.take(length * _ENUMERATOR.size))
            return tuple((self.name(at), value) for at, value in pairs)
        triples = _TRIPLE.iter_unpack(self.take(length * _TRIPLE.size))
        values = ((at, low | high << 32) for at, low, high in triples)
        return tuple(
            (self.name(at), value - (1 << 64) if flag and value >> 63 else value)
            for at, value in values
        )

    def check_references(self, types: list[BtfType]) -> None:
        last = len(types) - 1
        for type_ in types:
            highest = max(
                type_.ref,
                max((member.ref for member in type_.members), default=0),
                max((variable.ref for variable in type_.variables), default=0),
            )
            if highest > last:
                msg = f"{type_} refers to type [{highest}], the last is [{last}]"
                raise self.error(msg)
            for variable in type_.variables:
                if types[variable.ref].kind not in (Kind.VAR, Kind.FUNC):
                    msg = f"{type_} holds {types[variable.ref]}, which is no variable"
                    raise self.error(msg)
