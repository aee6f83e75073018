# SPDX-License-Identifier: Apache-2.0
"""
Decoders: bound by name, against a slow reader of the same bytes.
"""

from __future__ import annotations

import array
import gc
import types
import weakref

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kprobe_modules import btf, decode
from kprobe_modules import rows as native
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


RECORDS = {
    "bBhHiIqQ": ("s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"),
    "network": ("be16", "be32", "bool", "u64"),
}


@pytest.mark.skipif(native.Maker is None, reason="no native code")
@pytest.mark.parametrize("kinds", RECORDS.values(), ids=RECORDS)
@given(st.data())
def test_native_records_are_those_of_the_constructor(kinds, data):
    made = laid_out(
        declared(*((f"f{n}", kind, None) for n, kind in enumerate(kinds)), ("comm", "char", 9))
    )
    names = ["comm", *reversed([f"f{n}" for n in range(len(kinds))]), "time"]
    slotted = attrs.make_class(
        "Slotted",
        {**{name: attrs.field() for name in names}, "more": attrs.field(default=7)},
        slots=True,
    )
    count = data.draw(st.integers(0, 3))
    size = made.size * count
    buffer = data.draw(st.binary(min_size=size, max_size=size))
    decoder = decode.record_decoder(made, slotted)
    assert isinstance(decoder, native.Maker)
    assert list(decoder(buffer)) == [slotted(*row) for row in decode.bind(made, names, "t")(buffer)]


@attrs.define
class Textual:
    time: int
    comm: str


def test_text_is_text_in_slots_too():
    [found] = decode.record_decoder(LAYOUT, Textual)(rows(1))
    assert found == Textual(1000, "name0")


@pytest.mark.skipif(native.Maker is None, reason="no native code")
def test_a_constructor_that_does_more_is_called():
    seen = []

    @attrs.define
    class Checked:
        pid: int = attrs.field(validator=lambda *_: seen.append("validator"))

    @attrs.define
    class Converted:
        pid: int = attrs.field(converter=lambda value: value + 10)

    @attrs.define
    class Finished:
        pid: int

        def __attrs_post_init__(self):
            seen.append("post")

    @attrs.define
    class Own:
        pid: int

        def __init__(self, pid):
            self.pid = pid + 20

    @attrs.define
    class Fresh:
        pid: int
        more: list = attrs.Factory(list)

    @attrs.frozen
    class Frozen:
        pid: int

    @attrs.define(slots=False)
    class Loose:
        pid: int

    @attrs.define(init=False)
    class Grown(Textual):
        pid: int = 3

    class New(Textual):
        def __new__(cls, *_):
            seen.append("new")
            return super().__new__(cls)

    for each in (Checked, Converted, Finished, Own, Fresh, Frozen, Loose):
        decoder = decode.record_decoder(LAYOUT, each)
        assert not isinstance(decoder, native.Maker), each
        [found] = decoder(rows(1))
        assert type(found) is each
        assert found.pid in {0, 10, 20}
    assert not isinstance(decode.record_decoder(LAYOUT, Grown), native.Maker)
    assert [*decode.record_decoder(LAYOUT, New)(rows(1))]
    assert seen == ["validator", "post", "new"]


@pytest.mark.skipif(native.Maker is None, reason="no native code")
def test_native_records_are_collected():
    made = list(decode.record_decoder(LAYOUT, Textual)(rows(3)))
    assert all(gc.is_tracked(record) for record in made)
    witness = weakref.ref(made[0])
    made.clear()
    assert witness() is None


@pytest.mark.skipif(native.Maker is None, reason="no native code")
@pytest.mark.parametrize(
    ("stride", "field", "error"),
    [
        (8, ("time", "<Q", 1, None), ValueError),
        (8, ("time", "<Q", -1, None), ValueError),
        (8, ("time", "<9s", 0, None), ValueError),
        (8, ("time", "<99999999999999999999s", 0, None), ValueError),
        (8, ("time", "Q", 0, None), ValueError),
        (8, ("time", "<2Q", 0, None), ValueError),
        (8, ("time", "<f", 0, None), ValueError),
        (8, ("time", "<", 0, None), ValueError),
        (0, ("time", "<Q", 0, None), ValueError),
        (8, ("other", "<Q", 0, None), TypeError),
        (8, ("time", "<Q", 0), TypeError),
        (8, None, TypeError),
    ],
)
def test_native_code_takes_no_field_outside(stride, field, error):
    with pytest.raises(error):
        native.Maker(Textual, stride, (field,))


@pytest.mark.parametrize("interleave", {native.interleave, native.interleave_py})
def test_iterators_are_interleaved_as_told(interleave):
    def told(*indices):
        return memoryview(array.array("H", indices))

    assert interleave([iter("abc"), iter("xy")], told(1, 0, 0, 1)) == ["x", "a", "b", "y"]
    assert interleave([], told()) == []
    with pytest.raises(IndexError):
        interleave([iter("a")], told(1))
    with pytest.raises(StopIteration):
        interleave([iter("a")], told(0, 0))
    with pytest.raises(TypeError):
        interleave(["a"], told(0))
    with pytest.raises(ZeroDivisionError):
        interleave([(1 // n for n in (1, 0))], told(0, 0))


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
