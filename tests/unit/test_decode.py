# SPDX-License-Identifier: Apache-2.0
"""
Decoders: bound by name, against a slow reader of the same bytes.
"""

from __future__ import annotations

import array
import types

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kprobe_modules import btf, decode
from kprobe_modules.errors import LayoutError
from kprobe_modules.layout import layout
from tests.support import strategies
from tests.support.btfwriter import BtfWriter


def laid_out(message):
    writer = BtfWriter()
    type_ = message.write(writer)
    return layout(btf.parse(writer.to_bytes()), type_)


def declared(*members, tail=False):
    return strategies.Message(
        tuple(strategies.Declared(name, kind, count) for name, kind, count in members), tail
    )


MESSAGE = declared(
    ("pid", "u32", None), ("port", "be16", None), ("code", "s32", None), ("comm", "char", 16)
)
LAYOUT = laid_out(MESSAGE)


def rows(count):
    return b"".join(
        LAYOUT.struct.pack(
            1000 + n, 7, 1, LAYOUT.size, n % 3, n, (443).to_bytes(2, "big"), -n, b"name%d" % n
        )
        for n in range(count)
    )


@settings(deadline=None)  # other tests may share the machine
@given(strategies.messages, st.data())
def test_any_fields_in_any_order(message, data):
    made = laid_out(message)
    fields = {field.name: field for field in message.fields()}
    names = data.draw(st.lists(st.sampled_from(sorted(fields)), max_size=8))
    count = data.draw(st.integers(0, 3))
    size = made.size * count
    buffer = data.draw(st.binary(min_size=size, max_size=size))
    expected = [
        tuple(fields[name].slow(buffer[at : at + made.size]) for name in names)
        for at in range(0, size, made.size)
    ]
    assert list(decode.bind(made, names, "test")(buffer)) == expected
    assert list(decode.bind(made, names, "test")(memoryview(buffer))) == expected


@settings(deadline=None)  # other tests may share the machine
@given(strategies.messages, st.integers(1, 40), st.integers(0, 3))
def test_rows_may_be_further_apart(message, more, count):
    made = laid_out(message)
    names = made.names
    row = bytes(range(200))[: made.size].ljust(made.size, b"\xa5")
    found = decode.bind(made, names, "test", stride=made.size + more)((row + bytes(more)) * count)
    assert list(found) == list(decode.bind(made, names, "test")(row * count))


def test_fields_in_order_cost_nothing_but_the_unpacking():
    rows_ = decode.bind(LAYOUT, ["time", "pid", "comm"], "test")
    assert rows_.__name__ == "iter_unpack"
    assert next(rows_(rows(1))) == (1000, 0, b"name0".ljust(16, b"\0"))


def test_network_order_text_and_repetition():
    names = ["comm", "port", "pid", "comm", "time", "port"]
    found = list(decode.bind(LAYOUT, names, "test", texts=["comm"])(rows(2)))
    assert found == [
        ("name0", 443, 0, "name0", 1000, 443),
        ("name1", 443, 1, "name1", 1001, 443),
    ]


def test_nested_names_are_reached_with_an_underscore():
    inner = strategies.Declared("inner", "", None, (strategies.Declared("a", "u32"),))
    made = laid_out(strategies.Message((inner,), tail=False))
    row = bytes(16) + (77).to_bytes(4, "little") + bytes(4)
    assert list(decode.bind(made, ["inner_a", "inner.a"], "test")(row)) == [(77, 77)]


class Batched(bytearray):
    """
    What is asked of a batch: rows as a buffer, tails beside them.
    """


def batch(rows_, tails):
    made = Batched(rows_)
    offsets = array.array("I", [0])
    for tail in tails:
        offsets.append(offsets[-1] + len(tail))
    made.tails = types.SimpleNamespace(
        offsets=memoryview(offsets), blob=memoryview(b"".join(tails))
    )
    return made


def test_tails_are_taken_from_the_batch():
    made = laid_out(declared(("pid", "u32", None), tail=True))
    row = b"".join(made.struct.pack(n, 1, 1, 0, 0, 10 + n) for n in range(3))
    batched = batch(row, [b"one\0", b"", b"three"])
    found = list(decode.bind(made, ["rest", "pid"], "test")(batched))
    assert found == [(b"one\0", 10), (b"", 11), (b"three", 12)]
    assert list(decode.bind(made, ["rest"], "test")(batched)) == [(b"one\0",), (b"",), (b"three",)]

    @attrs.define
    class Said:
        pid: int
        rest: bytes

    assert next(decode.record_decoder(made, Said)(batched)) == Said(10, b"one\0")


def test_every_missing_field_is_named_at_once():
    with pytest.raises(LayoutError) as caught:
        decode.bind(LAYOUT, ["pid", "ppid", "uid"], "modx: on_start")
    assert str(caught.value) == (
        "modx: on_start: km_test_random has no fields ppid, uid; it has"
        " time, module, message, length, cpu, pid, port, code, comm"
    )


def test_records_are_bound_by_attribute():
    @attrs.define
    class Straight:
        time: int
        pid: int
        code: int
        comm: bytes

    @attrs.define
    class Shuffled:
        comm: str
        pid: int
        source: str = "wire"
        code: int = 5
        port: int = attrs.field(default=1, kw_only=True)
        doubled: int = attrs.field(init=False, default=0)

    straight = list(decode.record_decoder(LAYOUT, Straight)(rows(3)))
    assert straight[2] == Straight(1002, 2, -2, b"name2".ljust(16, b"\0"))
    shuffled = list(decode.record_decoder(LAYOUT, Shuffled)(rows(3)))
    assert shuffled[2] == Shuffled("name2", 2, "wire", -2, port=443)


def test_a_record_that_lacks_fields_says_which():
    @attrs.define
    class Wanting:
        time: int
        ppid: int
        uid: int
        note: str = ""

    with pytest.raises(LayoutError, match=r"Wanting: km_test_random has no fields ppid, uid;"):
        decode.record_decoder(LAYOUT, Wanting)


def test_a_torn_batch_is_not_decoded():
    with pytest.raises(Exception, match="multiple of"):
        list(decode.bind(LAYOUT, ["pid"], "test")(rows(2)[:-1]))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"bash\0\0\0\0", "bash"),
        (b"bash\0stale", "bash"),
        (b"", ""),
        (b"full", "full"),
        ("é".encode(), "é"),
        (b"a\xffb\0", "a\N{REPLACEMENT CHARACTER}b"),
        (b"long" * 100 + b"\0", "long" * 100),
    ],
)
def test_text(raw, expected):
    assert decode.text(raw) == expected
    assert decode.text(raw) == expected


def test_text_keeps_a_bounded_number():
    known = decode.text.__self__
    for n in range(10_000):
        decode.text(b"%d\0" % n)
    assert len(known) <= 4096
    before = len(known)
    decode.text(b"x" * 17)
    assert len(known) == before
