# SPDX-License-Identifier: Apache-2.0
"""
Binding handlers to layouts, and telling faults at most once a second.
"""

from __future__ import annotations

import attrs
import pytest

from kprobe_modules import Record, dispatch, objectfile
from kprobe_modules.dispatch import FAILURE_INTERVAL_NS, Binding, Faults, message_key
from kprobe_modules.errors import LayoutError, MissingMessageError
from kprobe_modules.handler import Handler
from tests.support.generator import MODULE

SPEC = objectfile.read(MODULE.object_bytes("x86_64"), "generator")


class Bare(Handler):
    """
    Needs no context.
    """

    def __init__(self) -> None:
        pass


def bound(handler: Handler) -> Binding:
    return Binding("generator", 7, SPEC, handler)


def test_every_message_has_a_key() -> None:
    binding = bound(Bare())
    assert set(binding.slots) == {
        message_key(7, message.id) for message in (*SPEC.messages, *SPEC.diagnostics)
    }
    assert message_key(0xFFFF, 0xFFFE) == 0xFFFE_FFFF


def test_all_missing_fields_are_told_at_once() -> None:
    class Wrong(Bare):
        def on_size_24(self, time: int, colour: int) -> None: ...

        def on_size_40(self, taste: int, sequence: int) -> None: ...

    with pytest.raises(LayoutError) as refused:
        bound(Wrong())
    for words in ("colour", "taste", "on_size_24", "on_size_40"):
        assert words in str(refused.value)


def test_missing_messages_are_told() -> None:
    class Wrong(Bare):
        direct = {"nothing": Record}  # noqa: RUF012 - as in Handler

        def on_size_25(self, time: int) -> None: ...

    with pytest.raises(MissingMessageError, match="wants messages nothing, size_25; the object"):
        bound(Wrong())


def test_a_record_class_must_fit_its_message() -> None:
    @attrs.define
    class Odd(Record, module="generator"):
        sequence: int
        colour: int

    class Wrong(Bare):
        direct = {"size_24": Odd}  # noqa: RUF012 - as in Handler

    with pytest.raises(LayoutError, match="colour"):
        bound(Wrong())


def test_faults_are_counted_always_and_told_once_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0]
    monkeypatch.setattr(dispatch, "monotonic_ns", lambda: now[0])
    faults = Faults(lambda: 42)
    error = ValueError("no")
    [first] = faults.failed("doors", "on_opened", error)
    assert (first.time, first.module, first.error) == (42, "doors", "ValueError: no")  # type: ignore[attr-defined]
    assert [faults.failed("doors", "on_opened", error) for _ in range(7)] == [[]] * 7
    # Another thing, or another module's, is another story.
    assert len(faults.failed("doors", "on_closed", error)) == 1
    assert len(faults.failed("windows", "on_opened", error)) == 1
    now[0] = FAILURE_INTERVAL_NS - 1
    assert faults.failed("doors", "on_opened", error) == []
    now[0] = FAILURE_INTERVAL_NS
    [again] = faults.failed("doors", "on_opened", error)
    assert again.error == "ValueError: no (and 8 more since the last report)"  # type: ignore[attr-defined]
    assert faults.errors == {"doors": 11, "windows": 1}
    [stall] = faults.stalled("doors", "tick", 1_234_567_890)
    assert stall.error == "took 1234 ms"  # type: ignore[attr-defined]
    assert faults.stalls == {"doors": 1}
    faults.forget("doors")
    assert faults.errors == {"windows": 1}
    assert len(faults.failed("doors", "on_opened", error)) == 1
