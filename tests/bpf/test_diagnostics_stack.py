# SPDX-License-Identifier: Apache-2.0
"""
Stacks of logs and of messages, as programs on this machine's kernel write them.
"""

from __future__ import annotations

import os
from operator import itemgetter
from typing import TYPE_CHECKING

import pytest

from kprobe_modules import Collector, Failure, Log, RingOptions, StackTrace
from kprobe_modules.libbpf import prog_info, test_run
from tests.support import generator
from tests.support.generator import assert_closed
from tests.support.requirements import needs

if TYPE_CHECKING:
    from kprobe_modules import Record
    from kprobe_modules.libbpf import Library


def run(collector: Collector, program: str, count: int = 1) -> None:
    handler = collector.find("generator")
    assert isinstance(handler, generator.GeneratorHandler)
    for _ in range(count):
        test_run(handler.context.program_fd(program))


def stacks_of(records: list[Record]) -> list[StackTrace]:
    return [each for each in records if isinstance(each, StackTrace)]


@pytest.mark.parametrize("transport", ["perf", "ringbuf"])
@pytest.mark.parametrize("wanted", [1, 2, 3])
def test_a_log_comes_with_the_stacks_that_were_asked_for(
    transport: str, wanted: int, library: Library
) -> None:
    needs.root()
    with Collector(rings=RingOptions(transport=transport), library=library) as collector:
        collector.attach(generator.MODULE, stack_traces=wanted)
        run(collector, "log_one", 3)
        # Reading the C library's symbols for the first time may be told as a stall.
        records = [each for each in collector.flush() if not isinstance(each, Failure)]
        logs = [each for each in records if isinstance(each, Log)]
        stacks = stacks_of(records)
        assert len(logs) == len(stacks) == 3
        for log, stack in zip(logs, stacks, strict=True):
            assert records.index(stack) == records.index(log) + 1
            assert (stack.message, stack.message_time, stack.cpu) == ("bpf_log", log.time, log.cpu)
            assert (stack.pid, stack.comm) == (os.getpid(), _comm())
            assert stack.error is None
            assert bool(stack.kernel) == bool(wanted & 1)
            assert bool(stack.user) == bool(wanted & 2)
            if wanted & 1:
                assert {"__sys_bpf", "__do_sys_bpf"} & {each.symbol for each in stack.kernel}
            if wanted & 2:
                # The system call that runs the program: in the C library.
                assert stack.user[0].object
                assert stack.user[0].build_id
        ordered = [(each.time, each.record) for each in records]
        assert ordered == sorted(ordered, key=itemgetter(0)), ordered
        assert_closed(collector)


def _comm() -> str:
    with open("/proc/self/comm", encoding="utf-8") as stream:  # noqa: PTH123
        return stream.read().rstrip("\n")


def test_a_message_comes_with_its_stacks() -> None:
    needs.root()
    with Collector() as collector:
        collector.attach(generator.MODULE, stack_traces=3)
        collector.flush()
        run(collector, "emit_with_stack", 2)
        records = [each for each in collector.flush() if not isinstance(each, Failure)]
        assert [each.record for each in records] == ["small", "stack_trace"] * 2
        for small, stack in zip(records[::2], stacks_of(records), strict=True):
            assert (stack.message, stack.message_time) == ("size_24", small.time)


def test_off_by_default_and_then_no_instruction_is_left() -> None:
    needs.root()
    sizes = {}
    with Collector() as collector:
        for wanted in (0, 3):
            collector.attach(generator.MODULE, stack_traces=wanted)
            handler = collector.find("generator")
            assert isinstance(handler, generator.GeneratorHandler)
            run(collector, "emit_with_stack")
            assert len(stacks_of(collector.flush())) == (1 if wanted else 0)
            info = prog_info(handler.context.program_fd("emit_with_stack"))
            sizes[wanted] = info.translated_size // 8
            collector.detach("generator")
    assert sizes[0] < sizes[3] - 100, sizes
