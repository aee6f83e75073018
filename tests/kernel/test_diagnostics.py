# SPDX-License-Identifier: Apache-2.0
"""
Logs and stacks out of real hooks, for real reasons.
"""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest

from kprobe_modules import Collector, Log, RingOptions, Suppressed
from kprobe_modules.libbpf import KernelError
from kprobe_modules.libbpf import map as bpf_map
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


def fill(fd: int) -> None:
    """
    Insert until there is no room left.
    """
    value = bytes(bpf_map.info(fd).value_size)
    key = FIRST
    try:
        while True:
            bpf_map.update(fd, key.to_bytes(4, "little"), value)
            key += 1
    except KernelError as error:
        assert error.errno == errno.E2BIG, error


@pytest.mark.parametrize("transport", ["perf", "ringbuf"])
def test_a_full_map_is_logged_by_the_program_that_finds_it_full(transport: str) -> None:
    needs.root()
    with Collector(["processes"], rings=RingOptions(transport=transport)) as collector:
        collector.flush()
        fill(descriptor(SHARED))
        pids = set()
        for _ in range(5):
            with subprocess.Popen(["/bin/true"]) as child:
                pids.add(child.pid)
        records = collector.flush()
        logs = [each for each in records if isinstance(each, Log)]
        told = {each.arguments["key"] for each in logs}
        suppressed = sum(each.count for each in records if isinstance(each, Suppressed))
        assert told >= pids or suppressed
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
