# SPDX-License-Identifier: Apache-2.0
"""
Sinks: the exact bytes they write.
"""

from __future__ import annotations

import enum
import io
import json
import os
import time

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kprobe_modules.records import Lost, Record, Stats, Steady
from kprobe_modules.sinks import discard, values
from kprobe_modules.sinks.columns import Columns, Style
from kprobe_modules.sinks.jsonl import JsonLines, PrettyJson
from kprobe_modules.sinks.values import duration, plain, readable, safe


class Colour(enum.IntEnum):
    RED = 1


@attrs.define
class DoorOpened(Record, module="doors"):
    pid: int
    parent_pid: int | None
    uid: int
    comm: str
    start_time: int
    argv: tuple[str, ...] = ()
    colour: Colour | None = None
    duration: int | None = None
    existing: bool = False


@attrs.define
class Knocked(Record, module="doors"):
    pid: int


AT = 1_700_000_000_123_456_789


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    values._local.cache_clear()


def opened(**changes: object) -> DoorOpened:
    values: dict[str, object] = {
        "time": AT,
        "pid": 42,
        "parent_pid": 1,
        "uid": 1000,
        "comm": "cat",
        "start_time": AT - 5,
    }
    return DoorOpened(**values | changes)  # type: ignore[arg-type]


def json_line(record: Record, **how: object) -> bytes:
    stream = io.BytesIO()
    JsonLines(stream, **how)(record)  # type: ignore[arg-type]
    return stream.getvalue()


def lines(records: list[Record], style: Style, width: int | None = None) -> list[str]:
    stream = io.BytesIO()
    sink = Columns(stream, style, width=lambda: width, expected=[DoorOpened])
    for record in records:
        sink(record)
    return stream.getvalue().decode().splitlines()


# -- JSON -------------------------------------------------------------------------------


def test_json_leads_with_time_module_record_and_keeps_field_order() -> None:
    record = opened(argv=("cat", "a b"), colour=Colour.RED, existing=True)

    assert json_line(record) == (
        b'{"time":1700000000123456789,"module":"doors","record":"door_opened","pid":42,'
        b'"parent_pid":1,"uid":1000,"comm":"cat","start_time":1700000000123456784,'
        b'"argv":["cat","a b"],"colour":"red","duration":null,"existing":true}\n'
    )


def test_a_framework_record_carries_the_module_it_is_about() -> None:
    assert json_line(Lost(AT, "doors", "open", 3, 17)) == (
        b'{"time":1700000000123456789,"module":"doors","record":"lost","message":"open",'
        b'"cpu":3,"count":17}\n'
    )


def test_nested_values_are_written_whole() -> None:
    record = Stats(AT, "collector", {"doors": {"emitted": 3, "lost": 0}})

    assert json.loads(json_line(record))["modules"] == {"doors": {"emitted": 3, "lost": 0}}


def test_fields_choose_and_order_what_json_holds() -> None:
    assert json_line(opened(), fields=("comm", "absent", "time")) == (
        b'{"comm":"cat","time":1700000000123456789}\n'
    )
    assert json_line(opened(), fields=("pid",)) == b'{"pid":42}\n'
    assert json_line(opened(), fields=("absent",)) == b"{}\n"


def test_pretty_json_is_the_same_object() -> None:
    stream = io.BytesIO()
    PrettyJson(stream)(opened(colour=Colour.RED))

    text = stream.getvalue()
    assert text.startswith(b'{\n  "time": 1700000000123456789,\n  "module": "doors",\n')
    assert json.loads(text) == json.loads(json_line(opened(colour=Colour.RED)))


TEXT = st.text() | st.binary().map(os.fsdecode) | st.text(st.characters(categories=["Cs"]))


@given(comm=TEXT, argv=st.lists(TEXT).map(tuple), pid=st.integers())
def test_json_is_one_line_of_strict_utf8_whatever_a_process_calls_itself(
    comm: str, argv: tuple[str, ...], pid: int
) -> None:
    line = json_line(opened(comm=comm, argv=argv, pid=pid))

    assert line.count(b"\n") == 1
    found = json.loads(line.decode("utf-8", "strict"))
    assert found["pid"] == pid
    assert found["comm"] == safe(comm)
    found["comm"].encode("utf-8", "strict")
    if comm.isprintable():
        assert found["comm"] == comm


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"caf\xc3\xa9", "café"),
        (b"caf\xe9", "caf\\xe9"),
        ("caf\udce9", "caf\\xe9"),
        ("\ud800", "\\ud800"),
        (float("nan"), None),
        ({Colour.RED: {b"a"}}, {"red": ["a"]}),
        (memoryview(b"ab"), "ab"),
    ],
)
def test_plain_values(value: object, expected: object) -> None:
    assert plain(value) == expected


# -- columns ----------------------------------------------------------------------------


def test_columns_show_the_shared_fields_and_then_the_rest_by_name() -> None:
    shown = lines(
        [
            opened(argv=("cat", "a b"), existing=True),
            opened(pid=4242, parent_pid=None, colour=Colour.RED, duration=1_234_567),
        ],
        Style(),
    )

    start = "22:13:20.123 doors  door_opened"
    assert shown == [
        "TIME         MODULE RECORD          PID    PPID COMM             DETAILS",
        f"{start}      42       1 cat              argv=cat 'a b' existing",
        f"{start}    4242       - cat              colour=red duration=1.235ms",
    ]


def test_columns_of_a_record_without_the_shared_fields() -> None:
    found = lines([Lost(AT, "doors", "open", 3, 17)], Style())[1]

    cells = f"{'lost':<11} {'-':>7} {'-':>7} {'-':<16}"
    assert found == f"22:13:20.123 doors  {cells} message=open cpu=3 count=17"


def test_a_column_that_no_expected_record_fills_is_left_out() -> None:
    stream = io.BytesIO()
    Columns(stream, expected=[Steady, Knocked])(Knocked(AT, pid=7))

    assert stream.getvalue().decode().splitlines()[0].split() == [
        "TIME",
        "MODULE",
        "RECORD",
        "PID",
        "DETAILS",
    ]


def test_wide_shows_instants_and_cuts_nothing() -> None:
    narrow = lines([opened(argv=("x" * 200,))], Style(), width=80)
    wide = lines([opened(argv=("x" * 200,))], Style(wide=True), width=80)

    assert max(map(len, narrow)) == 80
    assert "start_time" not in narrow[1]
    assert wide[1].endswith(f"uid=1000 start_time=22:13:20.123 argv={'x' * 200}")


def test_time_and_uid_flags() -> None:
    seconds = lines([opened(), opened(time=AT + 1_500_000_000)], Style(when="seconds", uid=True))

    assert seconds[0].split() == [
        "TIME",
        "MODULE",
        "RECORD",
        "PID",
        "PPID",
        "UID",
        "COMM",
        "DETAILS",
    ]
    assert [line.split()[0] for line in seconds[1:]] == ["0.000000", "1.500000"]
    assert seconds[1].split()[5] == "1000"
    assert lines([opened()], Style(when="time"))[1].startswith("22:13:20 doors ")


def test_chosen_fields_are_the_columns() -> None:
    shown = lines([opened(duration=15)], Style(fields=("comm", "duration", "absent")))

    assert shown == ["COMM             DURATION ABSENT", "cat              15ns     -"]


def test_a_name_cannot_speak_to_the_terminal() -> None:
    shown = lines([opened(comm="\x1b[2J\n", argv=("a\rb", "\u202e"))], Style())

    assert len(shown) == 2
    assert all(line.isprintable() for line in shown)
    assert "\\x1b[2J\\n" in shown[1]


@given(
    value=st.recursive(
        TEXT | st.binary() | st.integers() | st.none(),
        lambda inner: st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    )
)
def test_readable_text_is_always_printable_and_encodable(value: object) -> None:
    assert readable(value).isprintable()
    readable(value).encode("utf-8", "strict")


def test_the_terminal_is_measured_again_at_each_flush() -> None:
    widths = iter([20, 20, 100])
    stream = io.BytesIO()
    sink = Columns(stream, Style(), width=lambda: next(widths))
    sink(opened())
    sink.flush()
    sink.flush()
    sink(opened())

    assert [len(line) for line in stream.getvalue().decode().splitlines()][:2] == [20, 20]
    assert len(stream.getvalue().decode().splitlines()[2]) > 20


def test_no_terminal_means_no_cutting() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as read, os.fdopen(writer, "wb") as stream:
        sink = Columns(stream, Style())
        sink(opened(argv=("y" * 300,)))
        sink.flush()
        stream.close()
        data = read.read()

    assert b"y" * 300 in data
    assert b"\x1b" not in data


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0ns"),
        (999, "999ns"),
        (1500, "1.500us"),
        (2_000_000, "2.000ms"),
        (-3_000_000_000, "-3.000s"),
    ],
)
def test_durations(ns: int, text: str) -> None:
    assert duration(ns) == text


def test_a_broken_pipe_is_the_callers_to_hear_of() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "wb")
    sink = JsonLines(stream)
    sink(opened())
    with pytest.raises(BrokenPipeError):
        sink.flush()
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_discard_takes_anything() -> None:
    discard(opened())
    discard.flush()
