# SPDX-License-Identifier: Apache-2.0
"""
Layouts of messages: fields, padding, tails, and what no message may hold.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kprobe_modules import btf
from kprobe_modules.errors import LayoutError
from kprobe_modules.layout import layout
from tests.support import strategies
from tests.support.btfwriter import FLOAT, BtfWriter
from tests.support.requirements import needs


def laid_out(size, *members, flag=0, header=True):
    """
    Lay out a struct; each member is (name, offset in bits, function of the writer).
    """
    writer = BtfWriter()
    rows = [("header", writer.header(), 0)] if header else []
    rows += [(name, make(writer), offset) for name, offset, make in members]
    type_ = writer.struct("km_test_it", size, rows, flag)
    return layout(btf.parse(writer.to_bytes(), "test"), type_)


def plain(kind):
    return lambda writer: writer.plain(kind)


def typedef(name, kind):
    return lambda writer: writer.typedef(name, writer.plain(kind))


def array(kind, count):
    return lambda writer: writer.array(writer.plain(kind), count)


def test_the_header_comes_first_and_padding_is_skipped():
    made = laid_out(
        32, ("pid", 128, plain("u32")), ("_pad", 160, plain("u32")), ("start", 192, plain("u64"))
    )
    assert made.names == ("time", "module", "message", "length", "cpu", "pid", "start")
    assert made.struct.format == "<QHHHHI4xQ"
    assert made.size == made.row_size == made.struct.size == 32


def test_typedefs_give_meaning():
    made = laid_out(
        48,
        ("wait", 128, typedef("km_ns", "u64")),
        ("port", 192, typedef("km_be16", "u16")),
        ("alive", 208, typedef("km_bool", "u8")),
        ("comm", 216, lambda writer: writer.typedef("km_comm", array("char", 16)(writer))),
    )
    found = {field.name: (field.kind, field.unit, field.format) for field in made.fields[5:]}
    assert found == {
        "wait": ("u64", "ns", "Q"),
        "port": ("be16", "network order", "2s"),
        "alive": ("bool", "yes or no", "?"),
        "comm": ("char[]", "text", "16s"),
    }


def test_enums_arrays_unions_and_structs():
    def inner(writer):
        members = [("a", "u32", 0), ("_b", "u8", 32), ("c", "u16", 48)]
        rows = [(name, writer.plain(kind), offset) for name, kind, offset in members]
        return writer.struct("inner", 8, rows)

    made = laid_out(
        64,
        ("state", 128, lambda writer: writer.enum("e", [("OPEN", 1), ("SHUT", 2)], 2)),
        ("ports", 144, array("u16", 3)),
        ("either", 192, lambda writer: writer.union("u", 8, [("a", writer.plain("u64"), 0)])),
        ("inner", 256, inner),
        ("grid", 320, lambda writer: writer.array(writer.array(writer.plain("char"), 4), 2)),
        ("rows", 384, lambda writer: writer.array(inner(writer), 2)),
    )
    found = {field.name: (field.offset, field.kind, field.count) for field in made.fields[5:]}
    assert found == {
        "state": (16, "enum", None),
        "ports": (18, "u16[]", 3),
        "either": (24, "bytes", None),
        "inner.a": (32, "u32", None),
        "inner.c": (38, "u16", None),
        "grid": (40, "u8[]", 8),
        "rows": (48, "bytes", 2),
    }
    assert made.field("state").enum_values == (("OPEN", 1), ("SHUT", 2))
    assert made.field("nothing") is None


def test_a_tail_ends_the_fixed_part_where_it_begins():
    made = laid_out(24, ("kind", 128, plain("u8")), ("rest", 136, array("char", 0)))
    assert made.size == 17
    assert made.tail.name == "rest"
    assert (made.tail.offset, made.tail.kind, made.tail.count) == (17, "char[]", 0)
    assert "rest" not in made.names
    assert made.field("rest") is made.tail


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([("p", 128, lambda writer: writer.pointer())], "p is a pointer; send an id"),
        ([("f", 128, lambda writer: writer.add(FLOAT, "double", 8))], "FLOAT double, which no"),
        ([("x", 160, plain("u64"))], "x at offset 20 is not aligned to its 8 bytes"),
        ([("x", 136, array("u32", 2))], "x at offset 17 is not aligned to its 4 bytes"),
        ([("x", 128, plain("u64")), ("y", 160, plain("u32"))], "y at offset 20 overlaps x"),
        ([("x", 256, plain("u64"))], "x ends at 40, beyond its 32 bytes"),
        ([("time", 128, plain("u64"))], "time appears twice"),
        ([("x", 129, plain("u8"))], "x is a bit field; use a whole integer"),
        ([("t", 128, array("u8", 0)), ("x", 128, plain("u8"))], "only the last member may be"),
        ([("", 128, lambda writer: writer.union("", 8, []))], "offset 16 has no name"),
        ([("i", 128, lambda writer: writer.integer("__int128", 16))], "__int128, which no message"),
        ([("b", 128, typedef("km_be16", "u32"))], "has 4 bytes, be16 has 2"),
        ([("e", 128, lambda writer: writer.array(writer.struct("", 0, []), 9))], "of nothing"),
    ],
)  # fmt: skip
def test_what_no_message_may_hold(members, says):
    with pytest.raises(LayoutError, match=says) as caught:
        laid_out(32, *members)
    assert str(caught.value).startswith("test: struct km_test_it: ")


def test_bit_fields_are_refused():
    with pytest.raises(LayoutError, match="flag is a bit field"):
        laid_out(24, ("flag", 1 << 24 | 128, plain("u32")), flag=1)


def test_the_header_is_required_as_it_is():
    with pytest.raises(LayoutError, match="must begin with struct km_header, found no member"):
        laid_out(0, header=False)
    with pytest.raises(LayoutError, match=r"must begin with struct km_header, found \[1\] INT"):
        laid_out(8, ("x", 0, plain("u64")), header=False)

    def other(writer):
        return writer.struct("km_header", 16, [("time", writer.plain("u64"), 0)])

    with pytest.raises(LayoutError, match=r"struct km_header has .*, expected"):
        laid_out(16, ("header", 0, other), header=False)


def test_the_largest_message_is_bounded_by_a_perf_sample():
    assert laid_out(65503, ("x", 128, array("u8", 65487))).size == 65503
    with pytest.raises(LayoutError, match="has 65504 bytes, a message has at most 65503"):
        laid_out(65504, ("x", 128, array("u8", 65488)))


def test_structs_that_double_at_each_level_are_refused():
    writer = BtfWriter()
    type_ = writer.struct("leaf", 0, [])
    for level in range(30):
        type_ = writer.struct(f"s{level}", 0, [("a", type_, 0), ("b", type_, 0)])
    outer = writer.struct("km_test_it", 16, [("header", writer.header(), 0), ("x", type_, 128)])
    with pytest.raises(LayoutError, match="more than 1024 members"):
        layout(btf.parse(writer.to_bytes()), outer)


@given(strategies.messages)
def test_random_layouts_are_as_declared(message):
    writer = BtfWriter()
    type_ = message.write(writer)
    made = layout(parsed(writer), type_)
    assert [(each.name, each.offset, each.size) for each in made.fields] == [
        (each.name, each.offset, each.size) for each in message.fields()
    ]
    assert made.size == made.struct.size == message.fixed()
    assert (made.tail is not None) == message.tail


def parsed(writer):
    return btf.parse(writer.to_bytes())


@given(strategies.messages, st.data())
def test_numpy_reads_the_same(message, data):
    needs.package("numpy")
    import numpy as np

    writer = BtfWriter()
    type_ = message.write(writer)
    made = layout(parsed(writer), type_)
    row = data.draw(st.binary(min_size=made.size, max_size=made.size))
    described = np.dtype(made.dtype())
    assert described.itemsize == made.size
    (found,) = np.frombuffer(row, described)
    for field in message.fields():
        value = found[field.name]
        if field.count is None and field.kind != "bool":
            assert value == field.slow(row)
        elif field.count is not None and field.kind != "char":
            assert value.tobytes() == field.slow(row)
