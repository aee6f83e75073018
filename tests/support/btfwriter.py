# SPDX-License-Identifier: Apache-2.0
"""
Write ``.BTF`` from Python values, damaged ones included.

Each method appends a type and returns its id; nothing is checked, since the
point of many tests is what a reader makes of nonsense.
"""

from __future__ import annotations

import struct

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT = range(1, 12)
FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(12, 20)

SIGNED, CHAR, BOOL = 1, 2, 4

#: Members of struct km_header, in order.
HEADER = (("time", "u64"), ("module", "u16"), ("message", "u16"), ("length", "u16"), ("cpu", "u16"))
INTEGERS = {
    "u8": ("unsigned char", 1, 0),
    "u16": ("unsigned short", 2, 0),
    "u32": ("unsigned int", 4, 0),
    "u64": ("unsigned long long", 8, 0),
    "s8": ("signed char", 1, SIGNED),
    "s16": ("short", 2, SIGNED),
    "s32": ("int", 4, SIGNED),
    "s64": ("long long", 8, SIGNED),
    "char": ("char", 1, SIGNED),
    "bool": ("_Bool", 1, BOOL),
}


class BtfWriter:
    """
    Types in order of their ids, and their names.
    """

    def __init__(self, order: str = "<") -> None:
        self.order = order
        self.types: list[bytes] = []
        self.strings = bytearray(1)
        self._offsets = {"": 0}
        self._integers: dict[str, int] = {}

    def to_bytes(self, *, magic: int = 0xEB9F, version: int = 1, header: int = 24) -> bytes:
        body = b"".join(self.types)
        head = struct.pack(
            self.order + "HBBIIIII",
            magic, version, 0, header, 0, len(body), len(body), len(self.strings),
        )  # fmt: skip
        return head.ljust(header, b"\0") + body + bytes(self.strings)

    def name(self, text: str) -> int:
        if text not in self._offsets:
            self._offsets[text] = len(self.strings)
            self.strings += text.encode() + b"\0"
        return self._offsets[text]

    def add(self, kind: int, name="", third=0, rest=b"", *, count=0, flag=0) -> int:
        info = flag << 31 | kind << 24 | count
        self.types.append(struct.pack(self.order + "III", self.name(name), info, third) + rest)
        return len(self.types)

    def _words(self, rows) -> bytes:
        return b"".join(
            struct.pack(self.order + "I", word & 0xFFFFFFFF) for row in rows for word in row
        )

    def integer(self, name: str, size: int, encoding: int = 0, bits=None, bit_offset=0) -> int:
        bits = size * 8 if bits is None else bits
        return self.add(INT, name, size, self._words([(encoding << 24 | bit_offset << 16 | bits,)]))

    def plain(self, kind: str) -> int:
        """
        Return the integer of a kind such as ``u32``, written once.
        """
        if kind not in self._integers:
            self._integers[kind] = self.integer(*INTEGERS[kind])
        return self._integers[kind]

    def pointer(self, to: int = 0) -> int:
        return self.add(PTR, "", to)

    def array(self, of: int, count: int) -> int:
        return self.add(ARRAY, "", 0, self._words([(of, self.plain("u32"), count)]))

    def record(self, kind: int, name: str, size: int, members, flag=0) -> int:
        """
        Append a struct or union; *members* are (name, type, offset in bits).
        """
        rows = [(self.name(each), type_, offset) for each, type_, offset in members]
        return self.add(kind, name, size, self._words(rows), count=len(rows), flag=flag)

    def struct(self, name: str, size: int, members, flag=0) -> int:
        return self.record(STRUCT, name, size, members, flag)

    def union(self, name: str, size: int, members) -> int:
        return self.record(UNION, name, size, members)

    def enum(self, name: str, values, size: int = 4, flag=0) -> int:
        rows = [(self.name(each), value) for each, value in values]
        return self.add(ENUM, name, size, self._words(rows), count=len(rows), flag=flag)

    def enum64(self, name: str, values, flag=0) -> int:
        rows = [(self.name(each), value, value >> 32) for each, value in values]
        return self.add(ENUM64, name, 8, self._words(rows), count=len(rows), flag=flag)

    def typedef(self, name: str, to: int) -> int:
        return self.add(TYPEDEF, name, to)

    def function(self, name: str) -> int:
        prototype = self.add(FUNC_PROTO, "", self.plain("s32"), self._words([(0, 0)]), count=1)
        return self.add(FUNC, name, prototype, count=1)

    def variable(self, name: str, type_: int) -> int:
        return self.add(VAR, name, type_, self._words([(1,)]))

    def section(self, name: str, variables, size: int = 0) -> int:
        """
        Append a DATASEC; *variables* are (id, offset, size).
        """
        rows = list(variables)
        return self.add(DATASEC, name, size, self._words(rows), count=len(rows))

    def tag(self, text: str, on: int, component: int = -1) -> int:
        return self.add(DECL_TAG, text, on, self._words([(component,)]))

    def header(self) -> int:
        """
        Append struct km_header.
        """
        offsets = (0, 64, 80, 96, 112)
        members = [
            (name, self.plain(kind), offset)
            for (name, kind), offset in zip(HEADER, offsets, strict=True)
        ]
        return self.struct("km_header", 16, members)

    def number(self, value: int) -> int:
        """
        Append what ``__uint(name, value)`` declares: a pointer to an array.
        """
        return self.pointer(self.array(self.plain("s32"), value))

    def map(self, name: str, **members: int) -> int:
        """
        Append the variable of a map; numbers are those of `number`.
        """
        rows = [(each, type_, place * 64) for place, (each, type_) in enumerate(members.items())]
        return self.variable(name, self.struct("", len(rows) * 8, rows))

    def scratch(self, entity: str, messages, *, ids=None) -> int:
        """
        Append the variable km_scratch; *messages* is name to struct id.
        """
        prefix = f"KM_{entity}_".upper()
        ids = ids or {name: place for place, name in enumerate(messages, 1)}
        values = [(prefix + name.upper(), number) for name, number in ids.items()]
        first = ("id", self.enum(f"km_{entity}_message", values, 2), 0)
        rows = [first, *((name, type_, 0) for name, type_ in messages.items())]
        union = self.union(f"km_{entity}_messages", 65535, rows)
        return self.map(
            "km_scratch",
            type=self.number(6),
            max_entries=self.number(1),
            key=self.pointer(self.plain("u32")),
            value=self.pointer(union),
        )
