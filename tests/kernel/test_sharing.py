# SPDX-License-Identifier: Apache-2.0
"""
Slots among kprobes: who calls and who is served come and go under traffic.
"""

from __future__ import annotations

import os

import pytest

from kprobe_modules import Collector, hooks
from kprobe_modules.features import Features
from tests.support import passing
from tests.support.passing import PASSED, PASSING, SERVED, Seen, act, numbers
from tests.support.requirements import needs


@pytest.fixture(autouse=True)
def slot_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    # The manifests list raw tracepoints too, for kernels that have nothing better.
    monkeypatch.setattr(hooks, "SLOT_KINDS", passing.SLOT_KINDS)


def test_under_traffic_nothing_is_missed_and_nothing_comes_twice() -> None:
    needs.root()
    needs.kprobes()
    # Emulated guests lose the clock to a loop that never rests.
    passing.prove_under_traffic(turns=3, pause=0.001)


@pytest.mark.parametrize("caller", ["kprobe", "fentry"])
def test_only_kprobes_call_slots(caller: str) -> None:
    needs.root()
    needs.kprobes()
    if caller == "fentry":
        possible = Features().fentry_function("security_task_prctl")
        needs.that(possible, possible.reason)
    with Collector(chosen={"passing.pass": caller}) as collector:
        own = collector.attach(PASSED, watched=os.getpid()).live["passed"]
        assert own in {"fentry/security_task_prctl", "kprobe/security_task_prctl"}
        collector.attach(PASSING, watched=os.getpid())
        now = collector.status("passed").live["passed"]
        assert now == ("slot/passed" if caller == "kprobe" else own)
        collector.flush()
        act(range(1, 54))
        records = collector.flush()
        for module in ("passing", "passed"):
            assert numbers(records, module) == list(range(1, 54))
        ways = {each.how for each in records if isinstance(each, Seen) and each.module == "passed"}
        assert {bool(way & SERVED) for way in ways} == {caller == "kprobe"}
        # Both read the map that one of them writes.
        assert {each.known for each in records if isinstance(each, Seen)} >= set(range(1, 53))
        collector.detach("passing")
        assert collector.status("passed").live["passed"] == own
        act([1009])
        assert numbers(collector.flush(), "passed") == [1009]
