# SPDX-License-Identifier: Apache-2.0
"""
Random messages: what C could declare, its BTF, and a slow reader of its bytes.
"""

from __future__ import annotations

import attrs
from hypothesis import strategies as st

from tests.support.btfwriter import INTEGERS, BtfWriter

HEADER_FIELDS = (
    ("time", 0, 8),
    ("module", 8, 2),
    ("message", 10, 2),
    ("length", 12, 2),
    ("cpu", 14, 2),
)
NETWORK = {"be16": "u16", "be32": "u32"}
SCALARS = sorted({*INTEGERS, *NETWORK} - {"char"})
ELEMENTS = ["char", "u8", "u16", "u32", "s64"]


@attrs.frozen
class Declared:
    """
    One member as declared: scalar, array (count), or of a nested struct (inner).
    """

    name: str
    kind: str
    count: int | None = None
    inner: tuple[Declared, ...] = ()

    def align(self) -> int:
        if self.inner:
            return max(each.align() for each in self.inner)
        return INTEGERS[NETWORK.get(self.kind, self.kind)][1]

    def size(self) -> int:
        if self.inner:
            return place(self.inner, 0)[1]
        return self.align() * (1 if self.count is None else self.count)


@attrs.frozen
class Placed:
    """
    One field with its offset, nested names dotted.
    """

    name: str
    kind: str
    offset: int
    size: int
    count: int | None

    def slow(self, row: bytes) -> object:
        """
        Return the value in *row*, byte by byte.
        """
        raw = row[self.offset : self.offset + self.size]
        if self.count is not None:
            return raw
        if self.kind == "bool":
            return any(raw)
        if self.kind in NETWORK:
            raw = raw[::-1]
        value = sum(byte << 8 * place for place, byte in enumerate(raw))
        negative = self.kind.startswith("s") and raw[-1] >= 128
        return value - (1 << 8 * self.size) if negative else value


@attrs.frozen
class Message:
    """
    A message: its members, whether a tail follows.
    """

    members: tuple[Declared, ...]
    tail: bool

    def fields(self) -> list[Placed]:
        header = [Placed(name, f"u{8 * size}", at, size, None) for name, at, size in HEADER_FIELDS]
        return header + _flat(place(self.members, 16)[0], "")

    def size(self) -> int:
        """
        Return the size of the struct, tail apart.
        """
        return -(-place(self.members, 16)[1] // 8) * 8

    def fixed(self) -> int:
        return place(self.members, 16)[1] if self.tail else self.size()

    def write(self, writer: BtfWriter, name: str = "km_test_random") -> int:
        rows = [("header", writer.header(), 0)]
        for each, offset in place(self.members, 16)[0]:
            rows.append((each.name, _write(writer, each), offset * 8))
        if self.tail:
            chars = writer.array(writer.plain("char"), 0)
            rows.append(("rest", chars, self.fixed() * 8))
        return writer.struct(name, self.size(), rows)


def place(members, start: int) -> tuple[list[tuple[Declared, int]], int]:
    """
    Place members as C does; returns them with offsets, and the end.
    """
    placed, position, widest = [], start, 1
    for each in members:
        widest = max(widest, each.align())
        position = -(-position // each.align()) * each.align()
        placed.append((each, position))
        position += each.size()
    return placed, -(-position // widest) * widest if start == 0 else position


def _flat(placed, prefix: str, base: int = 0) -> list[Placed]:
    fields = []
    for each, offset in placed:
        if each.inner:
            fields += _flat(place(each.inner, 0)[0], f"{prefix}{each.name}.", base + offset)
        else:
            name = prefix + each.name
            fields.append(Placed(name, each.kind, base + offset, each.size(), each.count))
    return fields


def _write(writer: BtfWriter, each: Declared) -> int:
    if each.inner:
        rows = [(one.name, _write(writer, one), at * 8) for one, at in place(each.inner, 0)[0]]
        return writer.struct(f"km_test_{each.name}", each.size(), rows)
    if each.kind in NETWORK:
        return writer.typedef(f"km_{each.kind}", writer.plain(NETWORK[each.kind]))
    plain = writer.plain(each.kind)
    return plain if each.count is None else writer.array(plain, each.count)


def _named(members) -> tuple[Declared, ...]:
    return tuple(attrs.evolve(each, name=f"m{index}") for index, each in enumerate(members))


_leaves = st.one_of(
    st.builds(Declared, st.just(""), st.sampled_from(SCALARS)),
    st.builds(Declared, st.just(""), st.sampled_from(ELEMENTS), st.integers(1, 20)),
)
_nested = st.lists(_leaves, min_size=1, max_size=4).map(
    lambda inner: Declared("", "", None, _named(inner))
)

#: Messages of up to twelve members, some of them structs.
messages = st.builds(
    Message,
    st.lists(st.one_of(_leaves, _leaves, _nested), max_size=12).map(_named),
    st.booleans(),
)
