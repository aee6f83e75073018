# SPDX-License-Identifier: Apache-2.0
"""
Logs of programs: what comes out, what is suppressed, and that nothing else notices.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING

import pytest

from kprobe_modules import Collector, Log, Lost, RingOptions, Steady, Suppressed
from kprobe_modules.libbpf import test_run
from kprobe_modules.libbpf.map import info
from tests.support import generator
from tests.support.generator import assert_closed, generate, take_until
from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kprobe_modules import Record
    from kprobe_modules.libbpf import Library

SOURCE = Path(__file__).parent / "objects" / "generator.bpf.c"
WINDOW = 1.0


def log(collector: Collector, count: int, cpu: int = 0, name: str = "generator") -> None:
    """
    Come by the logs of ``log_one`` so many times on one CPU.
    """
    handler = collector.find(name)
    assert isinstance(handler, generator.GeneratorHandler)
    fd = handler.context.program_fd("log_one")
    for _ in range(count):
        test_run(fd, cpu=cpu)


def logs_of(records: Iterable[Record]) -> list[Log]:
    return [record for record in records if isinstance(record, Log)]


def suppressed_of(records: Iterable[Record], name: str = "generator") -> int:
    return sum(
        each.count for each in records if isinstance(each, Suppressed) and each.module == name
    )


@pytest.mark.parametrize("transport", ["perf", "ringbuf"])
def test_a_log_says_code_line_and_arguments_by_name(transport: str, library: Library) -> None:
    needs.root()
    with Collector(rings=RingOptions(transport=transport), library=library) as collector:
        collector.attach(generator.MODULE)
        log(collector, 4)
        records = collector.flush()
        logs = logs_of(records)
        assert [(each.code, dict(each.arguments)) for each in logs] == [
            ("counted", {"sequence": 0}),
            ("odd", {"balance": -1, "parity": "KM_GENERATOR_ODD", "large": False}),
            ("plain", {}),
            ("call_failed", {"result": -3}),
        ]
        lines = SOURCE.read_text(encoding="utf-8").splitlines()
        for each in logs:
            assert each.file == "tests/bpf/objects/generator.bpf.c"
            call = " ".join(lines[each.line - 2 : each.line]).rpartition("km_log(ctx, ")[2]
            assert call.partition(",")[0].partition(")")[0].endswith(f"_CODE_{each.code.upper()}")
            assert (each.module, each.record, each.cpu) == ("generator", "log", 0)
        assert all(one.time <= other.time for one, other in pairwise(records))
        assert suppressed_of(records) == 0
        assert_closed(collector)


@pytest.mark.parametrize("transport", ["perf", "ringbuf"])
def test_what_is_too_much_is_counted_per_cpu(transport: str) -> None:
    needs.root()
    needs.cpus(2)
    with Collector(rings=RingOptions(transport=transport)) as collector:
        collector.attach(generator.MODULE, log_burst=7)
        started = monotonic()
        log(collector, 101, cpu=0)
        log(collector, 53, cpu=1)
        took = monotonic() - started
        records = collector.flush()
        if took < WINDOW:
            for cpu in (0, 1):
                assert sum(each.cpu == cpu for each in logs_of(records)) == 7
        told = {each.cpu: each.count for each in records if isinstance(each, Suppressed)}
        for cpu, count in ((0, 101), (1, 53)):
            assert told[cpu] + sum(each.cpu == cpu for each in logs_of(records)) == count
        totals = assert_closed(collector)
        assert totals["suppressed"] == sum(told.values())
        # Told once: the next record is about what came since.
        assert suppressed_of(collector.flush()) == 0
        log(collector, 11, cpu=0)
        again = collector.flush()
        assert suppressed_of(again) + len(logs_of(again)) == 11


def test_the_window_ends() -> None:
    needs.root()
    with Collector() as collector:
        collector.attach(generator.MODULE, log_burst=3)
        log(collector, 5)
        first = collector.flush()
        deadline = monotonic() + 30
        passed = 0
        while not passed:
            assert monotonic() < deadline
            sleep(WINDOW / 4)
            log(collector, 1)
            passed = len(logs_of(collector.flush()))
        assert len(logs_of(first)) >= 3


def test_no_log_passes_a_burst_of_none_and_the_poll_tells() -> None:
    needs.root()
    with Collector() as collector:
        collector.attach(generator.MODULE, log_burst=0)
        log(collector, 13)
        records = take_until(collector, lambda came: suppressed_of(came) >= 13)
        assert logs_of(records) == []
        assert suppressed_of(records) == 13
        assert assert_closed(collector)["suppressed"] == 13


def test_detach_tells_what_was_suppressed_and_the_next_attachment_starts_anew() -> None:
    needs.root()
    with Collector() as collector:
        collector.attach(generator.MODULE, log_burst=0)
        log(collector, 17)
        assert suppressed_of(collector.detach("generator")) == 17
        assert collector.stats().modules["generator"]["suppressed"] == 17
        collector.attach(generator.MODULE)
        log(collector, 2)
        again = collector.flush()
        assert (len(logs_of(again)), suppressed_of(again)) == (2, 0)


def test_modules_do_not_share_a_burst() -> None:
    needs.root()
    with Collector() as collector:
        collector.attach(generator.MODULE, log_burst=2)
        collector.attach(generator.renamed("bystander"))
        log(collector, 30)
        log(collector, 5, name="bystander")
        records = collector.flush()
        assert sum(each.module == "bystander" for each in logs_of(records)) == 5
        assert suppressed_of(records, "bystander") == 0


@pytest.mark.parametrize("transport", ["perf", "ringbuf"])
def test_a_lost_log_is_told_and_nobody_is_scanned_again(transport: str) -> None:
    needs.root()
    with Collector(rings=RingOptions(transport=transport, pages=1)) as collector:
        collector.attach(generator.MODULE, log_burst=1_000_000)
        collector.poll()
        log(collector, 401)
        records = collector.flush()
        lost = [each for each in records if isinstance(each, Lost)]
        assert {each.message for each in lost} == {"bpf_log"}
        assert sum(each.count for each in lost) + len(logs_of(records)) == 401
        assert_closed(collector)
        for _ in range(15):
            records += collector.poll(timeout=0.1)
        assert [each for each in records if isinstance(each, Steady)] == []


def test_columns_come_without_logs_which_wait_for_poll() -> None:
    needs.root()
    with Collector() as collector:
        collector.attach(generator.MODULE)
        collector.poll()
        log(collector, 3)
        generate(collector, 12)
        batches = [batch for named in collector.batches(timeout=0.3) for batch in named]
        assert sum(map(len, batches)) == 12
        assert {batch.message for batch in batches} == {f"size_{n}" for n in generator.SIZES}
        assert [each.code for each in logs_of(collector.poll())] == ["counted", "odd", "plain"]


def test_logs_stand_among_the_other_records_in_order() -> None:
    needs.root()
    with Collector() as collector:
        collector.attach(generator.MODULE)
        collector.poll()
        for _ in range(6):
            generate(collector, 1, cpu=0)
            log(collector, 1)
        records = collector.flush()
        assert [isinstance(each, Log) for each in records] == [False, True] * 6


def test_without_stacks_there_is_no_memory_for_them() -> None:
    needs.root()
    with Collector() as collector:
        collector.attach(generator.MODULE)
        used = {info(fd).name for fd in own_maps()}
        assert "km_log_state" in used
        assert "km_stacks" not in used
        collector.detach("generator")
        collector.attach(generator.MODULE, stack_traces=3)
        assert "km_stacks" in {info(fd).name for fd in own_maps()}


def own_maps() -> list[int]:
    """
    Return the descriptors of this process that are BPF maps.
    """
    folder = Path("/proc/self/fd")
    found = []
    for entry in folder.iterdir():
        try:
            if "bpf-map" in str(entry.readlink()):
                found.append(int(entry.name))
        except OSError:
            continue
    return found
