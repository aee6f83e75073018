# SPDX-License-Identifier: Apache-2.0
"""
CPUs that go and come back while a collector runs.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kprobe_modules import Collector, RingOptions
from tests.support import generator
from tests.support.generator import assert_closed, emit_one, generate, take_until
from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Iterator

ONLINE = Path("/sys/devices/system/cpu/cpu1/online")


@contextlib.contextmanager
def without_cpu_1() -> Iterator[None]:
    """
    Take it offline for as long as the body runs.
    """
    affinity = os.sched_getaffinity(0)
    ONLINE.write_text("0", encoding="ascii")
    try:
        yield
    finally:
        ONLINE.write_text("1", encoding="ascii")
        os.sched_setaffinity(0, affinity)


@pytest.mark.parametrize("transport", ["perf", "ringbuf"])
def test_a_cpu_goes_and_comes_back(transport: str) -> None:
    needs.root()
    needs.cpus(2)
    needs.file(ONLINE)
    guest = "virtme" in Path("/proc/cmdline").read_text(encoding="ascii", errors="replace")
    needs.that(guest, "needs a guest: on this machine others use the CPU")
    with Collector(rings=RingOptions(transport=transport)) as collector:
        collector.attach(generator.MODULE, kind=8, tail_length=31)
        records = collector.flush()[1:]
        generate(collector, 101, cpu=1)
        assert emit_one(collector, 1) == 0
        channel = collector._intake.channel
        assert channel is not None
        sets = (collector._intake.rings, channel.rings)
        with without_cpu_1():
            records += take_until(collector, lambda _: all(each.cpus == (0,) for each in sets))
            generate(collector, 53, cpu=0)
            records += collector.flush()
            # What it had written before is not lost with it.
            assert len(records) == 101 + 1 + 53
        records += take_until(collector, lambda _: all(each.cpus == (0, 1) for each in sets))
        generate(collector, 31, cpu=1)
        assert emit_one(collector, 1) == 0
        records += collector.flush()
        assert len(records) == 101 + 1 + 53 + 31 + 1
        assert [each.record for each in records].count("bulk") == 2
        totals = assert_closed(collector)
        assert totals["lost"] == 0
        assert totals["errors"] == 0
