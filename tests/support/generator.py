# SPDX-License-Identifier: Apache-2.0
"""
A module without hooks, driven by BPF_PROG_TEST_RUN: exact and repeatable loads.

It is also what a third party's module looks like: a manifest, a handler, records,
and an object built against the framework's headers.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

from kprobe_modules.api import Context, Handler, Manifest, Record
from kprobe_modules.libbpf import test_run

if TYPE_CHECKING:
    from collections.abc import Iterator

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

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        context.provide("generator", self)

    def on_size_24(self, time: int, cpu: int, sequence: int, check: int, value: int) -> Record:
        chunks = self.context.data(cpu, time)
        if chunks:
            return Bulk(time, cpu, sequence, tuple(chunk.payload[16:] for chunk in chunks))
        return Small(time, sequence, check, value)

    def on_size_40(self, time: int, cpu: int, sequence: int) -> Record:
        return Counted(time, cpu, sequence, 40)

    def on_size_56(self, time: int, cpu: int, sequence: int) -> Record:
        return Counted(time, cpu, sequence, 56)

    def on_size_72(self, time: int, cpu: int, sequence: int) -> Record:
        return Counted(time, cpu, sequence, 72)

    def on_size_88(self, time: int, cpu: int, sequence: int) -> Record:
        return Counted(time, cpu, sequence, 88)

    def on_size_96(self, time: int, cpu: int, sequence: int) -> Record:
        return Counted(time, cpu, sequence, 96)

    def on_ragged(self, time: int, cpu: int, sequence: int, tail: bytes) -> Record:
        return Tailed(time, cpu, sequence, tail)


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
    ),
    records=(Small, Counted, Tailed, Bulk),
    summary="emits what it is told to",
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
    collector: Collector, count: int, cpu: int | None = None, program: str = "generate"
) -> None:
    """
    Emit *count* messages from one CPU, as fast as the kernel can.
    """
    fd = _handler(collector).context.program_fd(program)
    with pinned(min(os.sched_getaffinity(0)) if cpu is None else cpu):
        test_run(fd, packet=PACKET, repeat=count)


def emit_one(collector: Collector, cpu: int) -> int:
    """
    Emit one message of the tunable ``kind`` on a CPU; return what output returned.
    """
    result = test_run(_handler(collector).context.program_fd("emit_one"), cpu=cpu)
    return result - (1 << 32) if result >> 31 else result
