# SPDX-License-Identifier: Apache-2.0
"""
Logs and stacks out of real hooks, for real reasons.
"""

from __future__ import annotations

import errno
import itertools
import subprocess
from pathlib import Path
from time import monotonic

import pytest

from kprobe_modules import Collector, Log, RingOptions, StackTrace
from kprobe_modules.libbpf import KernelError
from kprobe_modules.libbpf import map as bpf_map
from tests.support import stacked
from tests.support.requirements import needs

ROOT = Path(__file__).resolve().parents[2]
SHARED = "tgid_info_table"
FIRST = 0x40000000
"""Far beyond the largest pid, 2^22."""


def descriptor(name: str) -> int:
    """
    Return this process's descriptor of the map of that name.
    """
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if "bpf-map" in str(entry.readlink()) and bpf_map.info(int(entry.name)).name == name:
                return int(entry.name)
        except OSError:
            continue
    msg = f"no descriptor of map {name}"
    raise AssertionError(msg)


class Filler:
    """
    Fills a map, again and again: what was inserted before stays.
    """

    def __init__(self, name: str) -> None:
        self._fd = descriptor(name)
        self._value = bytes(bpf_map.info(self._fd).value_size)
        self._keys = itertools.count(FIRST)

    def fill(self) -> None:
        """
        Insert until there is no room left.
        """
        with pytest.raises(KernelError) as refused:
            self._insert()
        assert refused.value.errno == errno.E2BIG

    def _insert(self) -> None:
        for key in self._keys:
            bpf_map.update(self._fd, key.to_bytes(4, "little"), self._value)


@pytest.mark.parametrize("transport", ["perf", "ringbuf"])
def test_a_full_map_is_logged_by_the_program_that_finds_it_full(transport: str) -> None:
    needs.root()
    with Collector(["processes"], rings=RingOptions(transport=transport)) as collector:
        collector.flush()
        table = Filler(SHARED)
        pids: set[int] = set()
        logs: list[Log] = []
        records = []
        deadline = monotonic() + 120
        while not pids & {each.arguments["key"] for each in logs}:
            assert monotonic() < deadline, "no fork found the map full"
            # Whatever ends meanwhile leaves room.
            table.fill()
            with subprocess.Popen(["/bin/true"]) as child:
                pids.add(child.pid)
            records += collector.flush()
            logs = [each for each in records if isinstance(each, Log)]
        for each in logs:
            assert (each.module, each.code) == ("processes", "map_insert_failed")
            assert each.arguments["error"] == -7  # E2BIG
            assert each.file == "modules/processes/lifetime.h"
        line = (ROOT / logs[0].file).read_text(encoding="utf-8").splitlines()[logs[0].line - 1]
        assert "km_log(ctx, KM_CODE_MAP_INSERT_FAILED" in line
        # The processes are reported all the same: that is what the table's rules promise.
        started = {each.pid for each in records if each.record == "process_started"}
        assert started >= pids
        totals = collector.stats().modules["processes"]
        assert totals["emitted"] == totals["received"] + totals["lost"]


@pytest.mark.parametrize("transport", ["perf", "ringbuf"])
def test_the_stacks_of_a_fork_that_is_logged(transport: str, tmp_path: Path) -> None:
    needs.root()
    program = stacked.build(tmp_path)
    with (
        Collector(rings=RingOptions(transport=transport)) as collector,
        subprocess.Popen(
            [program, "fork"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        collector.attach("processes", stack_traces=3, log_burst=1000)
        collector.flush()
        table = Filler(SHARED)
        stacks: list[StackTrace] = []
        deadline = monotonic() + 120
        while len(stacks) < 3:
            assert monotonic() < deadline, "no fork found the map full"
            # Whatever ends meanwhile leaves room.
            table.fill()
            process.stdin.write("\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            # The program lives: its memory can be looked into.
            records = collector.flush()
            logs = {each.time: each for each in records if isinstance(each, Log)}
            mine = [
                each for each in records if isinstance(each, StackTrace) and each.pid == process.pid
            ]
            assert {logs[each.message_time].arguments["key"] for each in mine} <= {child}
            stacks += mine
        process.stdin.close()
        for stack in stacks:
            assert (stack.comm, stack.tid) == ("stacked", process.pid)
            names = [each.symbol for each in stack.user]
            assert names[: len(stacked.FUNCTIONS)] == stacked.FUNCTIONS
            assert {each.object for each in stack.user[:4]} == {str(program)}
            assert all(len(each.build_id) == 40 for each in stack.user[:4])
            kernel = [each.symbol for each in stack.kernel]
            # The function that forks, by its name of 5.10 on, and its caller.
            assert "kernel_clone" in kernel, kernel
            assert any("sys_clone" in name for name in kernel), kernel
