# SPDX-License-Identifier: Apache-2.0
"""
Handlers against streams that no kernel would deliver, made out of ones that kernels did.

For every module of which there are captures: messages are reordered, repeated, left out
and damaged; handlers must not raise, and must not remember without bound.
"""

from __future__ import annotations

import gc
import random
import struct
from functools import cache
from io import BytesIO
from logging import Logger
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kprobe_modules.capture import Replay, drains
from kprobe_modules.capture.steps import Step
from kprobe_modules.handler import Context
from kprobe_modules.sinks.jsonl import JsonLines
from tests.support.captures import gathered, golden, messages_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from kprobe_modules.records import Record

PATHS = {path.stem.partition("-")[0]: path for path in golden()}
"""One capture of each module."""

Message = tuple[int, int, bytes, bytes | None]
"""Key, stride, row, tail."""


@cache
def opened(path: Path) -> tuple[list[Step], list[Message], list[Step]]:
    """
    Return the steps before the first message, all messages, and of every other kind of step
    the one in which most was seen.
    """
    steps = list(Replay(path).steps())
    first = next(index for index, step in enumerate(steps) if step.kind == "drained")
    messages = [
        message
        for step in steps
        if step.kind == "drained"
        for message in messages_of(drains.from_plain(step.facts, step.body))
    ]
    ways: dict[tuple[str, bool], list[Step]] = {}
    for step in steps:
        if step.kind not in {"drained", "module", "detached", "told", "refused"}:
            ways.setdefault((step.kind, bool(step.facts.get("resync"))), []).append(step)
    return steps[:first], messages, [max(ways[way], key=seen) for way in sorted(ways)]


def seen(step: Step) -> int:
    """
    Return how many bytes were observed in a step.
    """
    return sum(len(each.seen) for each in step.observed if isinstance(each.seen, bytes))


@attrs.define
class Fuzzed:
    """
    A replay that is fed by hand.
    """

    path: Path
    replay: Replay = attrs.field(init=False)
    now: int = 0
    observed: list = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.replay = Replay(self.path)
        before, messages, _ = opened(self.path)
        for step in before:
            self.replay.play(attrs.evolve(step))
        self.now = struct.unpack_from("<Q", messages[-1][2])[0]
        self.observed = [each for step in self.replay.steps() for each in step.observed]

    def feed(self, messages: Sequence[Message]) -> list[Record]:
        facts, body = drains.to_plain(gathered(messages))
        return self.replay.play(
            Step("drained", now=self.now, facts=facts, body=body, observed=self.observed)
        )

    def other(self, step: Step, later: int = 0) -> list[Record]:
        self.now += later
        return self.replay.play(attrs.evolve(step, now=self.now, told=[], errors=0))

    def check(self, records: Iterable[Record]) -> None:
        assert self.replay.faults.errors == {}, records
        sink = JsonLines(BytesIO())
        for record in records:
            sink(record)


def damage(message: Message, at: int, value: bytes, cut: int) -> Message:
    key, stride, row, tail = message
    at %= len(row)
    row = (row[:at] + value + row[at + len(value) :])[: len(row)]
    if tail is not None:
        tail = value + tail[: len(tail) * cut // 100]
    return key, stride, row, tail


@st.composite
def streams(draw: st.DrawFn, path: Path) -> list[list[Message] | Step]:
    _, messages, others = opened(path)
    picked = draw(st.lists(st.integers(0, len(messages) - 1), max_size=60))
    stream: list[list[Message] | Step] = []
    for index in picked:
        message = messages[index]
        if draw(st.booleans()):
            at, cut = draw(st.integers(0, 200)), draw(st.integers(0, 100))
            message = damage(message, at, draw(st.binary(min_size=1, max_size=12)), cut)
        times = draw(st.sampled_from([1, 1, 1, 2, 3]))
        if stream and isinstance(stream[-1], list) and draw(st.booleans()):
            stream[-1].extend([message] * times)
        else:
            stream.append([message] * times)
        if draw(st.integers(0, 7)) == 0:
            stream.append(draw(st.sampled_from(others)))
    return stream


@pytest.mark.parametrize("module", sorted(PATHS))
@settings(max_examples=200)
@given(data=st.data())
def test_no_stream_makes_a_handler_raise(module: str, data: st.DataObject) -> None:
    path = PATHS[module]
    fuzzed = Fuzzed(path)
    for item in data.draw(streams(path)):
        if isinstance(item, Step):
            fuzzed.check(fuzzed.other(item, later=data.draw(st.integers(0, 20_000_000_000))))
        else:
            fuzzed.check(fuzzed.feed(item))


@pytest.mark.parametrize("module", sorted(PATHS))
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_shuffled_halves_and_doubles(module: str, seed: int) -> None:
    path = PATHS[module]
    _, messages, others = opened(path)
    chance = random.Random(seed)  # noqa: S311 - it is to be the same each time
    for _ in range(20):
        fuzzed = Fuzzed(path)
        stream = chance.choices(messages, k=2 * len(messages))
        for message in stream:
            fuzzed.check(fuzzed.feed([message]))
        for step in others:
            fuzzed.check(fuzzed.other(step))


def held(handler: object) -> int:
    """
    Return how many objects a handler keeps alive by itself.
    """
    seen: set[int] = set()
    waiting = [handler]
    foreign = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, Context, Logger)
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, foreign):
            continue
        seen.add(id(item))
        waiting += gc.get_referents(item)
    return len(seen)


def rounds(fuzzed: Fuzzed, others: Sequence[Step], stream: Sequence[list[Message]]) -> int:
    """
    Feed a stream, let time pass, and return what the handlers hold.
    """
    for messages in stream:
        fuzzed.check(fuzzed.feed(messages))
    for _ in range(3):
        for step in others:
            fuzzed.check(fuzzed.other(step, later=5_000_000_000))
    return sum(held(handler) for handler in fuzzed.replay.handlers.values())


@pytest.mark.parametrize("module", sorted(PATHS))
def test_what_is_heard_again_is_not_kept_again(module: str) -> None:
    path = PATHS[module]
    _, messages, others = opened(path)
    chance = random.Random(7)  # noqa: S311 - it is to be the same each time
    fuzzed = Fuzzed(path)
    pool = [damage(message, chance.randrange(200), chance.randbytes(8), 50) for message in messages]
    sizes = []
    for _ in range(12):
        chance.shuffle(pool)
        sizes.append(rounds(fuzzed, others, [pool]))
    assert max(sizes[6:]) <= 1.1 * max(sizes[:6]) + 50, sizes


@pytest.mark.slow
@pytest.mark.parametrize("module", sorted(PATHS))
def test_nothing_is_kept_without_bound(module: str) -> None:
    """
    Messages with random content: each is about something never heard of before.
    """
    path = PATHS[module]
    _, messages, others = opened(path)
    chance = random.Random(11)  # noqa: S311 - it is to be the same each time
    fuzzed = Fuzzed(path)
    fuzzed.observed = []
    kinds = list({message[0]: message for message in messages}.values())

    def stream() -> Iterable[list[Message]]:
        for _ in range(60):
            yield [
                (key, stride, row[:16] + chance.randbytes(len(row) - 16), tail)
                for key, stride, row, tail in kinds
                for _ in range(170)
            ]

    sizes = [rounds(fuzzed, others, list(stream())) for _ in range(4)]
    assert sizes[3] <= 1.1 * sizes[1] + 1000, sizes
