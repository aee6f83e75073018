# SPDX-License-Identifier: Apache-2.0
"""
The BTF reader: what it understands, and what it refuses.
"""

from __future__ import annotations

import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kprobe_modules import btf
from kprobe_modules.btf import Kind
from kprobe_modules.errors import BtfError
from kprobe_modules.shape import shape
from tests.support import btfwriter
from tests.support.btfwriter import BtfWriter


def every_kind() -> BtfWriter:
    writer = BtfWriter()
    u32 = writer.plain("u32")
    pair = writer.struct("pair", 8, [("a", u32, 0), ("b", u32, 32)])
    writer.union("either", 8, [("pair", pair, 0), ("raw", writer.array(u32, 2), 0)])
    writer.enum("colour", [("RED", 1), ("BLUE", -1)], 4, flag=1)
    writer.enum64("wide", [("HIGH", 1 << 40), ("LOW", -2)], flag=1)
    writer.add(btfwriter.FWD, "elsewhere")
    const = writer.add(btfwriter.CONST, "", u32)
    volatile = writer.add(btfwriter.VOLATILE, "", const)
    writer.add(btfwriter.RESTRICT, "", writer.pointer(u32))
    writer.add(btfwriter.TYPE_TAG, "user", u32)
    writer.add(btfwriter.FLOAT, "double", 8)
    variable = writer.variable("speed", writer.typedef("km_ns", volatile))
    writer.tag("km_doc:how fast", variable)
    writer.tag("of a member", pair, 1)
    writer.section(".rodata", [(variable, 4, 4)], 8)
    writer.function("main")
    return writer


def test_every_kind_is_read():
    types = btf.parse(every_kind().to_bytes())
    found = {type_.kind for type_ in types}
    assert found == set(Kind)
    colour = types.find(Kind.ENUM, "colour")
    assert colour.values == (("RED", 1), ("BLUE", -1))
    assert types.find(Kind.ENUM64, "wide").values == (("HIGH", 1 << 40), ("LOW", -2))
    pair = types.find(Kind.STRUCT, "pair")
    assert [(each.name, each.offset) for each in pair.members] == [("a", 0), ("b", 32)]
    assert types.size(pair.id) == 8
    assert types.tags(pair.id, 1) == ("of a member",)
    assert types.tags(pair.id) == ()
    speed = types.find(Kind.VAR, "speed")
    assert types.tags(speed.id) == ("km_doc:how fast",)
    assert types.typedef(speed.ref) == "km_ns"
    assert types.resolve(speed.ref).name == "unsigned int"
    assert types.size(speed.id) == 4


def test_bit_fields_are_told_from_members():
    writer = BtfWriter()
    u32 = writer.plain("u32")
    record = writer.struct("flags", 4, [("a", u32, 3 << 24), ("b", u32, 5 << 24 | 3)], flag=1)
    members = btf.parse(writer.to_bytes()).type(record).members
    assert [(each.offset, each.bits) for each in members] == [(0, 3), (3, 5)]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "truncated: 0 bytes"),
        (every_kind().to_bytes()[:20], "truncated: 20 bytes"),
        (every_kind().to_bytes()[:-1], "truncated: string section"),
        (every_kind().to_bytes(magic=0xDEAD), "magic is 0xdead, expected 0xeb9f"),
        (every_kind().to_bytes(version=2), "version is 2, expected 1"),
        (BtfWriter(">").to_bytes(), "wrong endianness: big endian, expected little"),
        (struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 8, 0, 0, 0, 1) + b"\0", "header length 8"),
        (struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, 1) + b"x", "start and end with NUL"),
    ],
)
def test_a_damaged_header_is_refused(data, says):
    with pytest.raises(BtfError, match=says) as caught:
        btf.parse(data, "here")
    assert str(caught.value).startswith("here: .BTF: ")


def test_a_longer_header_is_accepted():
    assert len(btf.parse(every_kind().to_bytes(header=32))) == len(every_kind().types) + 1


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda writer: writer.add(25, "new"), "unknown kind 25, the last known is 19"),
        (
            lambda writer: writer.typedef("dangling", 77),
            r"refers to type \[77\], the last is \[1\]",
        ),
        (lambda writer: writer.integer("odd", 4, bits=40), "40 bits at bit 0 in 4 bytes"),
        (
            lambda writer: writer.add(btfwriter.STRUCT, "short", 8, count=3),
            "needs 36 bytes, 0 left",
        ),
        (lambda writer: writer.section("s", [(writer.plain("u8"), 0, 1)]), "which is no variable"),
    ],
)
def test_a_damaged_type_is_refused(build, says):
    writer = BtfWriter()
    build(writer)
    with pytest.raises(BtfError, match=says):
        btf.parse(writer.to_bytes())


def test_a_name_beyond_the_strings_is_refused():
    writer = BtfWriter()
    writer.types.append(struct.pack("<III", 999, btfwriter.FWD << 24, 0))
    with pytest.raises(BtfError, match="has its name at 999, beyond the strings"):
        btf.parse(writer.to_bytes())


def test_a_name_of_no_end_is_refused():
    writer = BtfWriter()
    writer.typedef("x" * 5000, 0)
    with pytest.raises(BtfError, match="name longer than 4096"):
        btf.parse(writer.to_bytes())


def test_overlapping_names_cannot_grow_beyond_a_budget():
    writer = BtfWriter()
    start = writer.name("y" * 4000)
    for skip in range(4000):
        writer.types.append(struct.pack("<III", start + skip, btfwriter.FWD << 24, 0))
    with pytest.raises(BtfError, match="in others' names"):
        btf.parse(writer.to_bytes())


def test_loops_end():
    writer = BtfWriter()
    writer.typedef("first", 2)
    writer.typedef("second", 1)
    writer.array(4, 3)  # [3] u32 is written first, so the array is [4]: of itself
    itself = writer.struct("itself", 8, [("inner", 5, 0)])
    types = btf.parse(writer.to_bytes())
    with pytest.raises(BtfError, match="or a loop"):
        types.resolve(1)
    with pytest.raises(BtfError, match=r"or is a loop|more than 32 bits"):
        types.size(4)
    assert types.size(itself) == 8
    with pytest.raises(BtfError, match="or holds itself"):
        shape(types, itself)


def test_a_size_beyond_32_bits_is_refused():
    writer = BtfWriter()
    inner = writer.array(writer.plain("u64"), 1 << 20)
    outer = writer.array(inner, 1 << 20)
    types = btf.parse(writer.to_bytes())
    assert types.size(inner) == 8 << 20
    with pytest.raises(BtfError, match="more than 32 bits hold"):
        types.size(outer)


def test_a_shape_that_doubles_at_each_level_is_refused_quickly():
    writer = BtfWriter()
    type_ = writer.plain("u8")
    for level in range(30):
        type_ = writer.struct(f"s{level}", 2, [("a", type_, 0), ("b", type_, 8)])
    types = btf.parse(writer.to_bytes())
    start = time.process_time()
    with pytest.raises(BtfError, match="more than 4096"):
        shape(types, type_)
    assert time.process_time() - start < 1


def test_what_has_no_size_says_so():
    writer = BtfWriter()
    function = writer.function("f")
    types = btf.parse(writer.to_bytes())
    with pytest.raises(BtfError, match="FUNC f has no size"):
        types.size(function)
    with pytest.raises(BtfError, match=r"type \[99\] does not exist"):
        types.type(99)


def test_shapes_compare_across_objects():
    one, other = BtfWriter(), BtfWriter()
    other.plain("s8")  # so that ids differ
    one_id = one.typedef("name", one.struct("s", 8, [("a", one.plain("u32"), 0)]))
    fields = [("a", other.typedef("alias", other.plain("u32")), 0)]
    other_id = other.struct("s", 8, fields)
    first = shape(btf.parse(one.to_bytes()), one_id)
    second = shape(btf.parse(other.to_bytes()), other_id)
    assert first == second
    assert hash(first) == hash(second)
    assert first.differences(second) == []
    assert str(first) == "name (struct s)"


def test_shapes_name_every_difference():
    def made(members, size=16):
        writer = BtfWriter()
        rows = [(name, writer.plain(kind), offset * 8) for name, kind, offset in members]
        type_ = writer.struct("km_info", size, rows)
        return shape(btf.parse(writer.to_bytes()), type_)

    found = made([("a", "u32", 0), ("b", "u64", 8), ("new", "u8", 16)], 24)
    expected = made([("a", "s32", 0), ("b", "u64", 4), ("old", "u16", 12)])
    assert found != expected
    assert found.differences(expected, "value") == [
        "value has 24 bytes, expected 16",
        "value.new is not expected",
        "value.old is missing",
        "value.a is u32, expected s32",
        "value.b is at offset 8, expected offset 4",
    ]


def test_enumerators_and_array_lengths_are_part_of_a_shape():
    def made(values, count):
        writer = BtfWriter()
        array = writer.array(writer.enum("e", values), count)
        return shape(btf.parse(writer.to_bytes()), array)

    found, expected = made([("A", 1)], 2), made([("A", 2)], 3)
    assert found.differences(expected) == [
        "type has 8 bytes, expected 12",
        "type has 2 elements, expected 3",
        "type[] has enumerators A=1, expected A=2",
    ]


@given(st.binary(max_size=300))
def test_random_types_end_in_an_answer_or_an_error(body):
    strings = b"\0ab\0"
    head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(strings))
    ask_everything(head + body + strings)


@given(st.data())
def test_mutated_types_end_in_an_answer_or_an_error(data):
    mutated = bytearray(every_kind().to_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        mutated[at] = data.draw(st.integers(0, 255))
    ask_everything(bytes(mutated))


def ask_everything(data: bytes) -> None:
    try:
        types = btf.parse(data)
    except BtfError:
        return
    for type_ in types:
        for question in (types.size, types.typedef, lambda id_: shape(types, id_)):
            try:
                question(type_.id)
            except BtfError:
                continue
