# SPDX-License-Identifier: Apache-2.0
"""
What a module costs, against loads of a known size.
"""

from __future__ import annotations

import json
import subprocess
import sys
from time import monotonic

import pytest

from kprobe_modules import Collector, Metrics, RingOptions
from kprobe_modules.errors import ConfigError
from kprobe_modules.libbpf import map as bpf_map
from kprobe_modules.sinks.values import plain
from tests.support import generator
from tests.support.generator import generate, take_until
from tests.support.requirements import needs

RUNS = 2003


def of(metrics: list[Metrics], module: str = "generator") -> Metrics:
    return next(each for each in metrics if each.module == module)


@pytest.mark.parametrize("transport", ["perf", "ringbuf"])
def test_runs_and_messages_are_counted(transport: str) -> None:
    needs.root()
    with (
        Collector(rings=RingOptions(transport=transport)) as collector,
        collector.count_runs(),
    ):
        collector.attach(generator.MODULE)
        generate(collector, RUNS)
        collector.flush()
        found = of(collector.metrics())
        programs = {each.name: each for each in found.programs}
        assert programs["generate"].run_count == RUNS
        assert 0 < programs["generate"].run_time < 30e9
        assert programs["generate_ragged"].run_count == 0
        assert found.run_count == RUNS
        assert found.run_time == programs["generate"].run_time
        assert (found.emitted, found.received, found.lost) == (RUNS, RUNS, 0)
        assert found.handler_time > 0
        assert all(each.instructions > 0 and each.memory > 0 for each in found.programs)


def test_without_statistics_no_run_is_counted() -> None:
    needs.root()
    with Collector() as collector:
        collector.attach(generator.MODULE)
        with collector.count_runs():
            generate(collector, 11)
        counted = of(collector.metrics()).run_count
        generate(collector, 500)
        assert of(collector.metrics()).run_count == counted == 11


def test_losses_and_suppressed_logs_are_in_the_metrics() -> None:
    needs.root()
    from kprobe_modules.libbpf import test_run

    with Collector(rings=RingOptions(pages=1)) as collector:
        collector.attach(generator.MODULE, log_burst=0)
        handler = collector.find("generator")
        assert isinstance(handler, generator.GeneratorHandler)
        for _ in range(7):
            test_run(handler.context.program_fd("log_one"), cpu=0)
        generate(collector, 997)
        collector.flush()
        found = of(collector.metrics())
        assert found.suppressed == 7
        assert found.emitted == found.received + found.lost == 997
        assert found.lost > 0


def test_memory_and_maps_are_the_kernels() -> None:
    needs.root()
    with Collector(rings=RingOptions(pages=8)) as collector:
        collector.attach(generator.MODULE)
        found, shared = of(collector.metrics()), of(collector.metrics(), "collector")
        maps = {each.name: each for each in found.maps}
        assert "km_counters" in maps
        assert "events" not in maps
        assert maps["km_counters"].entries is None
        assert maps["km_counters"].max_entries == 64
        parts = (*found.programs, *found.maps)
        assert found.memory == sum(each.memory for each in parts) > 0
        common = {each.name: each for each in shared.maps}
        assert common["tgid_info_table"].entries == 0
        # Eight pages and the one that leads them, per CPU; and the data channel's.
        assert common["rings"].memory % 4096 == 0
        assert common["rings"].memory >= 9 * 4096


@pytest.mark.parametrize("entries", [0, 1, 4096, 5003])
def test_entries_are_counted(entries: int) -> None:
    needs.root()
    with Collector() as collector:
        collector.attach(generator.MODULE)
        fd = collector._intake.common.fd("tgid_info_table")
        for key in range(entries):
            bpf_map.update(fd, key.to_bytes(4, "little"), bytes(16))
        assert bpf_map.count(fd) == entries
        shared = of(collector.metrics(), "collector")
        table = next(each for each in shared.maps if each.name == "tgid_info_table")
        assert table.entries == entries


def test_records_come_by_interval_and_fit_json() -> None:
    needs.root()
    started = monotonic()
    with Collector(metrics=1) as collector:
        collector.attach(generator.MODULE)
        generate(collector, 13)
        records = take_until(
            collector,
            lambda came: sum(isinstance(each, Metrics) for each in came) >= 4,
        )
        metrics = [each for each in records if isinstance(each, Metrics)]
        assert [each.module for each in metrics[:4]] == ["generator", "collector"] * 2
        assert of(metrics).received == 13
        assert of(metrics).run_count == 13
        assert monotonic() - started >= 2
        told = json.loads(json.dumps(plain(metrics[0].programs)))
        assert {"name", "run_count", "run_time", "memory"} <= told[0].keys()


def test_too_short_an_interval_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"metrics is 0.5 seconds, expected 1 or more"):
        Collector(metrics=0.5)


def test_top_shows_modules_programs_and_maps() -> None:
    needs.root()
    needs.package("rich")
    command = [sys.executable, "-m", "kprobe_modules", "top", "processes", "--timeout", "1.5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    for expected in ("runs/s", "existing_", "ended_groups", "tgid_info_table", "bpf cpu"):
        assert expected in done.stdout, done.stdout
