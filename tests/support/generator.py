# SPDX-License-Identifier: Apache-2.0
"""
A module without hooks, driven by BPF_PROG_TEST_RUN: exact and repeatable loads.

It is also what a third party's module looks like: a manifest, a handler, records,
and an object built against the framework's headers.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

import attrs

from kprobe_modules.api import Context, Handler, Manifest, Record
from kprobe_modules.libbpf import test_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from kprobe_modules.collector import Collector

PACKET = bytes(64)
"""A test run of an XDP program wants some packet."""

SIZES = (24, 40, 56, 72, 88, 96)
"""Payload bytes of the six messages that ``generate`` emits in rotation."""


@attrs.define
class Small(Record, module="generator"):
    """
    Bound to its message without a handler method.
    """

    sequence: int
    check: int
    value: int


@attrs.define
class Counted(Record, module="generator"):
    """
    Any of the larger messages.
    """

    cpu: int
    sequence: int
    size: int


@attrs.define
class Tailed(Record, module="generator"):
    """
    A ragged message with its tail.
    """

    cpu: int
    sequence: int
    tail: bytes


@attrs.define
class Bulk(Record, module="generator"):
    """
    A control message with the payloads that the data channel held for it, without
    their own sequence and length.
    """

    cpu: int
    sequence: int
    payloads: tuple[bytes, ...]


class GeneratorHandler(Handler):
    """
    Records what came, nothing else.
    """

    small: type[Small] = Small
    counted: type[Counted] = Counted
    tailed: type[Tailed] = Tailed
    bulk: type[Bulk] = Bulk

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        context.provide(context.name, self)

    def on_size_24(self, time: int, cpu: int, sequence: int, check: int, value: int) -> Record:
        chunks = self.context.data(cpu, time)
        if chunks:
            return self.bulk(time, cpu, sequence, tuple(chunk.payload[16:] for chunk in chunks))
        return self.small(time, sequence, check, value)

    def on_size_40(self, time: int, cpu: int, sequence: int) -> Record:
        return self.counted(time, cpu, sequence, 40)

    def on_size_56(self, time: int, cpu: int, sequence: int) -> Record:
        return self.counted(time, cpu, sequence, 56)

    def on_size_72(self, time: int, cpu: int, sequence: int) -> Record:
        return self.counted(time, cpu, sequence, 72)

    def on_size_88(self, time: int, cpu: int, sequence: int) -> Record:
        return self.counted(time, cpu, sequence, 88)

    def on_size_96(self, time: int, cpu: int, sequence: int) -> Record:
        return self.counted(time, cpu, sequence, 96)

    def on_ragged(self, time: int, cpu: int, sequence: int, tail: bytes) -> Record:
        return self.tailed(time, cpu, sequence, tail)


MODULE = Manifest(
    name="generator",
    package="tests.bpf.objects",
    handler=GeneratorHandler,
    hooks=(),
    common_maps=("events", "data_channel"),
    own_programs=(
        "generate",
        "generate_none",
        "generate_ragged",
        "emit_one",
        "exhaust_scratch",
        "log_one",
        "emit_with_stack",
    ),
    records=(Small, Counted, Tailed, Bulk),
    summary="emits what it is told to",
)


def _of(name: str, record: type[Record]) -> type[Record]:
    """
    Return a class for the same records of another module.
    """
    return type(record)(record.__name__, (record,), {"__slots__": ()}, module=name)


def renamed(name: str, handler: type[GeneratorHandler] = GeneratorHandler) -> Manifest:
    """
    Return the same module under another name, so that several can be attached.
    """
    records = {each.__name__.lower(): _of(name, each) for each in (Small, Counted, Tailed, Bulk)}
    return attrs.evolve(
        MODULE,
        name=name,
        object_name="generator",
        handler=type(handler.__name__, (handler,), dict(records)),
        records=tuple(records.values()),
    )


@contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """
    Keep this thread on one CPU.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _handler(collector: Collector, name: str = "generator") -> Handler:
    found = collector.find(name)
    assert isinstance(found, Handler)
    return found


def generate(
    collector: Collector,
    count: int,
    cpu: int | None = None,
    program: str = "generate",
    name: str = "generator",
) -> None:
    """
    Emit *count* messages from one CPU, as fast as the kernel can.
    """
    fd = _handler(collector, name).context.program_fd(program)
    with pinned(min(os.sched_getaffinity(0)) if cpu is None else cpu):
        test_run(fd, packet=PACKET, repeat=count)


def emit_one(collector: Collector, cpu: int, name: str = "generator") -> int:
    """
    Emit one message of the tunable ``kind`` on a CPU; return what output returned.
    """
    result = test_run(_handler(collector, name).context.program_fd("emit_one"), cpu=cpu)
    return result - (1 << 32) if result >> 31 else result


def take_until(
    collector: Collector, done: Callable[[list[Record]], object], seconds: float = 30.0
) -> list[Record]:
    """
    Poll until *done* says yes to what has come so far.
    """
    records: list[Record] = []
    deadline = monotonic() + seconds
    while not done(records):
        assert monotonic() < deadline, f"not done after {seconds} s; {len(records)} records came"
        records += collector.poll(timeout=0.1)
    return records


def assert_closed(collector: Collector, name: str = "generator") -> Mapping[str, Any]:
    """
    Check ``emitted = received + lost`` for each message; return the module's totals.
    """
    totals = collector.stats().modules[name]
    for message, counts in totals["messages"].items():
        assert counts["emitted"] == counts["received"] + counts["lost"], (message, counts)
    for what in ("emitted", "received", "lost"):
        assert totals[what] == sum(each[what] for each in totals["messages"].values())
    return totals
