# SPDX-License-Identifier: Apache-2.0
"""
The containers module when its rings overflow: what was lost is found again, and told once.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from kprobe_modules import Collector, Lost, RingOptions, Steady
from tests.support.cgroups import (
    VERSION_1_OPTIONAL,
    Forest,
    ShapeError,
    version_1,
    where,
    where_number,
)
from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from kprobe_modules import Record

KERNEL = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))
DEADLINE = 240.0
"""Seconds: emulated guests are slow."""
SETTLED = 4.0
"""Seconds in which nothing more is said: a scan after a loss, and the doubts that it leaves."""


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    needs.root()


@pytest.fixture(params=["as_is", "hybrid"])
def trees(request: pytest.FixtureRequest) -> Iterator[Forest]:
    """
    Give a folder for cgroups, in hierarchies mounted in each way.
    """
    with ExitStack() as stack:
        try:
            if request.param == "hybrid":
                stack.enter_context(version_1())
            root = where()
        except ShapeError as error:
            if not where_number() and KERNEL < VERSION_1_OPTIONAL:
                raise
            pytest.xfail(f"the shape {request.param} cannot be had here: {error}")
        yield stack.enter_context(Forest(root))


@contextmanager
def one_cpu() -> Iterator[None]:
    """
    Stay on one CPU, so that it is one ring that overflows.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def ids(records: Sequence[Record], kind: str) -> Counter[int]:
    """
    Count the records of a kind by cgroup.
    """
    return Counter(
        record.cgroup_id  # type: ignore[attr-defined]
        for record in records
        if record.module == "containers" and record.record == kind
    )


class Watch:
    """
    Takes records until they are whole again.
    """

    def __init__(self, collector: Collector, trees: Forest) -> None:
        self._collector = collector
        self._trees = trees
        self.records: list[Any] = collector.flush()

    def alive(self) -> set[int]:
        return {cgroup.cgroup_id for cgroup in self._trees.truth if not cgroup.died}

    def is_whole(self) -> bool:
        """
        Tell whether those and only those live of which the workload knows it.
        """
        ours = {cgroup.cgroup_id for cgroup in self._trees.truth}
        created = set(ids(self.records, "cgroup_created")) & ours
        return created - set(ids(self.records, "cgroup_destroyed")) == self.alive()

    def poll(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not done():
            assert time.monotonic() < deadline, "the records did not become whole again"
            self.records += self._collector.poll(timeout=0.2)

    def settle(self) -> None:
        """
        Wait until the records are whole, and then for what should not come.
        """
        self.poll(self.is_whole)
        until = time.monotonic() + SETTLED
        self.poll(lambda: time.monotonic() > until)
        self.records += self._collector.flush()

    def check(self) -> None:
        """
        Compare the records with what was done.
        """
        created = ids(self.records, "cgroup_created")
        destroyed = ids(self.records, "cgroup_destroyed")
        for cgroup in self._trees.truth:
            known = created[cgroup.cgroup_id]
            # Of one that came and went between two scans, nobody may ever have heard.
            assert known == 1 or (known == 0 and cgroup.died), cgroup
            assert destroyed[cgroup.cgroup_id] == (known if cgroup.died else 0), cgroup
        self._check_paths()
        losses = [each for each in self.records if isinstance(each, Lost)]
        stats = self._collector.stats().modules["containers"]
        assert sum(each.count for each in losses if each.module == "containers") == stats["lost"]
        assert stats["lost"] > 0
        assert stats["emitted"] == stats["received"] + stats["lost"]
        assert stats["errors"] == 0
        assert any(isinstance(each, Steady) and each.resync for each in self.records)

    def _check_paths(self) -> None:
        table = self._collector.find("cgroup_table")
        assert table is not None
        for cgroup in self._trees.truth:
            found = table.alive(cgroup.cgroup_id)  # type: ignore[attr-defined]
            if cgroup.died:
                assert found is None, cgroup
            else:
                assert (found.path, found.parent_cgroup_id) == (cgroup.path, cgroup.parent_id)


def test_a_burst_that_nobody_reads(trees: Forest) -> None:
    known = [trees.make(trees.top, f"known-{number}") for number in range(61)]
    with Collector(rings=RingOptions(pages=1)) as collector:
        collector.attach("containers", ask_runtimes=0)
        watch = Watch(collector, trees)
        watch.poll(watch.is_whole)
        with one_cpu():
            burst(trees, known)
        gone = [cgroup for cgroup in trees.truth if cgroup.died]
        watch.settle()
        watch.check()
        destroyed = ids(watch.records, "cgroup_destroyed")
        assert sum(destroyed[cgroup.cgroup_id] for cgroup in gone) >= 31, "whose start was told"
        renamed = [each for each in watch.records if each.record == "cgroup_renamed"]
        assert len(renamed) == (1 if trees.root.number else 0)


def burst(trees: Forest, known: Sequence[Path]) -> None:
    """
    Fill the ring with cgroups that stay, and only then remove and rename what is known.
    """
    for number in range(101):
        trees.make(trees.top, f"stays-{number}-{'n' * 200}")
    for level, folder in enumerate(trees.chain("deep", 23)):
        trees.make(folder, f"leaf-{level}")
    trees.churn(101)
    for folder in known[:31]:
        trees.remove(folder)
    if trees.root.number:
        trees.rename(known[31], "renamed")


def test_churn_while_it_is_read(trees: Forest) -> None:
    def work() -> None:
        stay: list[Path] = []
        for number in range(20):
            trees.churn(53)
            stay.append(trees.make(trees.top, f"stays-{number}"))
            if number % 3 == 2:
                trees.remove(stay.pop(0))

    with Collector(rings=RingOptions(pages=1)) as collector:
        collector.attach("containers", ask_runtimes=0)
        watch = Watch(collector, trees)
        thread = threading.Thread(target=work)
        thread.start()

        def over() -> bool:
            time.sleep(0.3)  # a reader that is late
            return not thread.is_alive()

        watch.poll(over)
        thread.join()
        watch.settle()
        watch.check()
