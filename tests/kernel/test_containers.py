# SPDX-License-Identifier: Apache-2.0
"""
The containers module against the truth, on whatever kernel this runs on.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections import Counter, defaultdict
from contextlib import ExitStack, closing, contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from kprobe_modules.modules.containers import MODULE
from kprobe_modules.modules.containers.records import (
    CgroupCreated,
    CgroupDestroyed,
    CgroupRenamed,
    ContainerStarted,
    ContainerStopped,
)

from kprobe_modules import Collector, Late
from kprobe_modules.features import Features
from kprobe_modules.objectfile import read
from tests.support.cgroups import (
    VERSION_1_OPTIONAL,
    Forest,
    Root,
    ShapeError,
    version_1,
    where,
    where_number,
    without_version_2,
)
from tests.support.requirements import needs
from tests.support.watch import record_until, record_work

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kprobe_modules import Record
    from tests.support.cgroups import Cgroup

KERNEL = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))
CONTAINER = "3f" * 32


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    needs.root()


@pytest.fixture(scope="module")
def with_version_1() -> Iterator[None]:
    """
    Keep a version 1 hierarchy mounted, for all tests that need one together.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(version_1())
        except ShapeError as error:
            if not where_number() and KERNEL < VERSION_1_OPTIONAL:
                raise
            pytest.xfail(str(error))
        yield


@pytest.fixture(scope="module", params=["as_is", "hybrid", "v1"])
def root(request: pytest.FixtureRequest) -> Iterator[Root]:
    """
    Mount hierarchies in one shape; return the one that counts.

    The shapes are: as the machine has them, with a version 1 hierarchy of the memory controller
    beside version 2, and with that alone.  Tests are run shape by shape.
    """
    with ExitStack() as stack:
        if request.param != "as_is":
            request.getfixturevalue("with_version_1")
        if request.param == "v1":
            stack.enter_context(without_version_2())
        try:
            found = where()
        except ShapeError as error:
            needs.unmet(str(error))
        yield found


as_is = pytest.mark.parametrize("root", ["as_is"], indirect=True)
with_renames = pytest.mark.parametrize(
    "root", ["as_is" if where_number() else "hybrid"], indirect=True
)
"""Only version 1 has renames."""


def of(records: Iterable[Record], kind: type[Any]) -> list[Any]:
    return [record for record in records if isinstance(record, kind)]


def by_cgroup(records: Sequence[Record], truth: Iterable[Cgroup]) -> dict[int, list[Any]]:
    """
    Sort records about cgroups of the workload by id, keeping their order.
    """
    wanted = {cgroup.cgroup_id for cgroup in truth}
    found: dict[int, list[Any]] = defaultdict(list)
    for record in records:
        identity = getattr(record, "cgroup_id", None)
        if identity in wanted and record.module == "containers":
            found[identity].append(record)
    return found


def check_one(truth: Cgroup, records: Sequence[Any], hierarchy: int) -> None:
    """
    Compare all that was recorded of a cgroup that came and went with what was done.
    """
    assert [type(item) for item in records] == [CgroupCreated, CgroupDestroyed], truth
    created, destroyed = records
    assert not created.existing
    assert created.time <= destroyed.time
    for item in records:
        assert item.path == truth.path
        assert item.parent_cgroup_id == truth.parent_id
        assert item.name == truth.path.rpartition("/")[2]
        assert item.hierarchy == hierarchy


def check_order(records: Sequence[Record]) -> None:
    """
    Records come in the order of their time; those that do not are told of, and are few.

    An emulated processor may be held for long between the time of a message and its place in
    the ring.
    """
    times = [item.time for item in records if item.module == "containers"]
    behind = [after - before for before, after in pairwise(times) if after < before]
    late = sum(item.count for item in of(records, Late) if item.module == "containers")
    assert len(behind) <= late <= 5, f"ns behind the record before: {behind}, told of: {late}"


def test_every_cgroup_exactly_once(root: Root, request: pytest.FixtureRequest) -> None:
    # The kernel does the same with version 1 alone as with both: fewer will do there.
    count = 61 if request.node.callspec.params["root"] == "v1" else 509
    with Forest(root) as trees, Collector(["containers"]) as collector:
        first = len(trees.truth)
        records = record_work(collector, lambda: trees.churn(count))
        stats = collector.stats().modules["containers"]
    truth = trees.truth[first:]
    found = by_cgroup(records, truth)

    assert len(truth) == count
    assert max(cgroup.path.count("/") for cgroup in truth) == 8
    assert max(len(cgroup.path) for cgroup in truth) > 1024
    for cgroup in truth:
        check_one(cgroup, found[cgroup.cgroup_id], trees.root.number)
    check_order(records)
    ids = {item.cgroup_id for item in of(records, CgroupCreated) if not item.existing}
    assert ids == {cgroup.cgroup_id for cgroup in truth}, "of other hierarchies, or of nobody"
    assert stats["lost"] == stats["errors"] == 0
    assert stats["emitted"] == stats["received"]


@as_is
def test_attach_in_the_middle(root: Root) -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            trees.churn(7, pause=0.003)

    with Forest(root) as trees, Collector() as collector:
        old = [trees.make(trees.top, f"old-{index}") for index in range(13)]
        thread = threading.Thread(target=work)
        thread.start()
        try:
            time.sleep(0.3)
            before = time.monotonic_ns()
            collector.attach("containers")
            after = time.monotonic_ns()
            wanted = len(trees.truth) + 150
            records = record_until(
                collector, lambda: len(trees.truth) > wanted or not thread.is_alive()
            )
        finally:
            stop.set()
            thread.join()
        records += collector.flush()
        stays = {trees.of(folder).cgroup_id for folder in old} | {trees.of(trees.top).cgroup_id}
    truth = trees.truth
    found = by_cgroup(records, truth)

    late = 0
    for cgroup in truth:
        kinds = [type(item) for item in found[cgroup.cgroup_id]]
        if cgroup.cgroup_id in stays:
            assert kinds == [CgroupCreated], cgroup
            assert found[cgroup.cgroup_id][0].existing
        elif cgroup.died < before:
            assert not kinds, f"{cgroup} was gone"
        else:
            assert kinds in ([], [CgroupCreated, CgroupDestroyed]), cgroup
            if cgroup.ending > after:
                assert kinds, cgroup
            if cgroup.born > after:
                assert not found[cgroup.cgroup_id][0].existing
                late += 1
        for item in found[cgroup.cgroup_id]:
            assert item.path == cgroup.path
            assert item.parent_cgroup_id == cgroup.parent_id
    assert late > 100


def test_existing_cgroups_are_found_once(root: Root) -> None:
    chains = 7 if root.number else 41
    with Forest(root) as trees:
        # More than one pass of the iterator reports; version 1 has none.
        for index in range(chains):
            trees.chain(f"old-{index}", 7)
        with Collector(["containers"]) as collector:
            records = collector.flush()
            collector.resync("containers")
            again = collector.flush()
    created = of(records, CgroupCreated)
    times = Counter(item.cgroup_id for item in created)
    paths = {item.cgroup_id: item.path for item in created}
    (steady,) = (record for record in records if record.record == "steady")

    assert len(trees.truth) == 1 + chains * 7
    assert {identity for identity, count in times.items() if count > 1} == set()
    assert all(item.existing for item in created)
    assert steady.found == len(created)  # type: ignore[attr-defined]
    for cgroup in trees.truth:
        assert paths[cgroup.cgroup_id] == cgroup.path
    assert [item.path for item in created if item.parent_cgroup_id is None] == ["/"]
    assert {item.hierarchy for item in created} == {trees.root.number}
    check_order(records)
    assert of(again, CgroupCreated) == [], "what is known is not reported again"


@contextmanager
def sleepers(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    running = [subprocess.Popen(["sleep", "60"]) for _ in range(count)]
    try:
        yield running
    finally:
        for each in running:
            each.kill()
            each.wait()


MODULES = (
    ("containers",),
    ("processes",),
    ("containers", "processes"),
    ("processes", "containers"),
)


@as_is
@pytest.mark.parametrize("modules", MODULES, ids="-".join)
def test_a_move_is_told_once_whoever_is_attached(root: Root, modules: tuple[str, ...]) -> None:
    with Forest(root) as trees, sleepers(5) as group, Collector(modules) as collector:
        one, two = trees.make(trees.top, "one"), trees.make(trees.top, "two")
        for folder in (one, two):
            for each in group:
                (folder / "cgroup.procs").write_text(str(each.pid))
        ids = [trees.of(folder).cgroup_id for folder in (one, two)]
        records = collector.flush()
        home = trees.of(two).path
        lines = (f"{trees.root.number}:", home)
        for each in group:
            told = open(f"/proc/{each.pid}/cgroup", encoding="ascii")  # noqa: SIM115, PTH123
            with told:
                assert any(
                    line.startswith(lines[0]) and line.endswith(f":{home}\n") for line in told
                )
        for each in group:
            each.kill()
            each.wait()
    teller = "processes" if "processes" in modules else "containers"
    moved = [record for record in records if record.record == "process_moved"]

    for each in group:
        mine: list[Any] = [item for item in moved if item.pid == each.pid]  # type: ignore[attr-defined]
        assert [item.cgroup_id for item in mine] == ids
        assert {item.module for item in mine} == {teller}
        assert mine[1].old_cgroup_id == ids[0]
        assert {(item.comm, item.parent_pid, item.uid) for item in mine} == {
            ("sleep", os.getpid(), 0)
        }
        assert len({item.start_time for item in mine}) == 1


@as_is
def test_moves_are_told_by_who_stays(root: Root) -> None:
    with Forest(root) as trees, sleepers(1) as (one,):
        folders = [trees.make(trees.top, name) for name in "abc"]
        with Collector(["containers", "processes"]) as collector:
            (folders[0] / "cgroup.procs").write_text(str(one.pid))
            records = collector.flush()
            records += collector.detach("processes")
            (folders[1] / "cgroup.procs").write_text(str(one.pid))
            records += collector.flush()
            collector.attach("processes")
            (folders[2] / "cgroup.procs").write_text(str(one.pid))
            records += collector.flush()
        ids = [trees.of(folder).cgroup_id for folder in folders]
        one.kill()
        one.wait()
    moved = [
        (item.module, item.cgroup_id)  # type: ignore[attr-defined]
        for item in records
        if item.record == "process_moved" and item.pid == one.pid  # type: ignore[attr-defined]
    ]

    assert moved == list(zip(("processes", "containers", "processes"), ids, strict=True))


@with_renames
def test_a_rename_moves_all_that_is_below(root: Root) -> None:
    with Forest(root) as trees:
        old = trees.make(trees.top, "old")
        with Collector(["containers"]) as collector:
            new = trees.make(trees.top, "new")
            below = trees.make(trees.make(new, "a"), "b")
            renamed = trees.rename(new, "renamed")
            again = trees.rename(old, "existing")
            last = trees.make(renamed / "a" / "b", "c")
            records = collector.flush()
            for folder in (last, renamed / "a" / "b", renamed / "a", renamed, again):
                trees.remove(folder)
            records += collector.flush()
    del below
    renames = of(records, CgroupRenamed)
    top = trees.truth[0].path
    found = by_cgroup(records, trees.truth)
    ends = {item.path for item in of(records, CgroupDestroyed)}

    assert [(item.old_path, item.path) for item in renames] == [
        (f"{top}/new", f"{top}/renamed"),
        (f"{top}/old", f"{top}/existing"),
    ]
    assert [(item.old_name, item.name) for item in renames] == [
        ("new", "renamed"),
        ("old", "existing"),
    ]
    assert ends >= {cgroup.path for cgroup in trees.truth[1:]}
    assert {f"{top}/renamed/a/b/c", f"{top}/renamed/a/b", f"{top}/renamed/a"} <= ends
    (created,) = (item for item in of(records, CgroupCreated) if item.name == "c")
    assert created.path == f"{top}/renamed/a/b/c"
    assert all(
        sum(isinstance(item, CgroupCreated) for item in seen) == 1 for seen in found.values()
    )


@as_is
def test_a_container_starts_and_stops_with_its_topmost_cgroup(root: Root) -> None:
    with Forest(root) as trees:
        old = trees.make(trees.top, f"cri-containerd-{CONTAINER}.scope")
        with Collector() as collector:
            collector.attach("containers", ask_runtimes=0)
            new = trees.make(trees.top, f"docker-{CONTAINER[::-1]}.scope")
            inner = trees.make(new, "init.scope")
            for folder in (inner, new, old):
                trees.remove(folder)
            records = collector.flush()
    told = [
        (item.record, item.runtime, item.container_id, item.path.rpartition("/")[2])
        for item in records
        if isinstance(item, ContainerStarted | ContainerStopped)
    ]
    names = [f"docker-{CONTAINER[::-1]}.scope", f"cri-containerd-{CONTAINER}.scope"]

    assert told == [
        ("container_started", "containerd", CONTAINER, names[1]),
        ("container_started", "docker", CONTAINER[::-1], names[0]),
        ("container_stopped", "docker", CONTAINER[::-1], names[0]),
        ("container_stopped", "containerd", CONTAINER, names[1]),
    ]
    assert [item.existing for item in of(records, ContainerStarted)] == [True, False]
    (within,) = (item for item in of(records, CgroupCreated) if item.name == "init.scope")
    assert within.container_id == CONTAINER[::-1]


ABSENT_SOMEWHERE = {
    "cgroup_populate_dir": "called css_populate_dir since 4.4",
    "kill_css": "inlined by some compilers",
    "cgroup_control": "inlined by most compilers",
    "cgroup": "the iterator is there since 6.1",
    "cgroup1_rename": "inlined by some compilers",
}


@pytest.fixture(scope="module")
def absent() -> frozenset[str]:
    """
    Return the names of the alternatives that this kernel lacks; most of them, every one must have.
    """
    spec = read(MODULE.object_bytes("x86_64"), "containers")
    found = set()
    with closing(Features()) as features:
        for alternative in (item for hook in MODULE.hooks for item in hook.alternatives):
            for program in map(spec.program, alternative.programs):
                answer = features.program(program.kind, program.target)
                if not answer:
                    allowed = program.target in ABSENT_SOMEWHERE or not features.kprobes()
                    assert allowed, f"{program.section} should be on this kernel: {answer.reason}"
                    found.add(alternative.name)
    return frozenset(found)


LAST = max(len(hook.alternatives) for hook in MODULE.hooks)


@pytest.mark.parametrize("root", ["as_is", "hybrid"], indirect=True)
@pytest.mark.parametrize("rank", range(LAST))
def test_each_alternative(root: Root, rank: int, absent: frozenset[str]) -> None:
    """
    The alternatives of one rank, of all hooks at a time: every hook that works is heard.

    A hook without one of that rank uses the first that there is.
    """
    chosen = {
        hook.name: hook.alternatives[rank].name
        for hook in MODULE.hooks
        if rank < len(hook.alternatives) and hook.alternatives[rank].name not in absent
    }
    # They are attached all the same, and have nothing to say.
    silent = {"existing"} if root.number else {"rename", "existing_v1"}
    if not set(chosen) - silent:
        pytest.xfail(f"this kernel has no alternatives of rank {rank} that count here")
    controller = "pids" if chosen.get("end") == "end_kill" and not root.number else ""
    with Forest(root, controller=controller) as trees:
        old = [trees.chain(f"old-{index}", 3)[-1] for index in range(3)]
        with Collector(
            chosen={f"containers.{hook}": name for hook, name in chosen.items()}
        ) as collector:
            collector.attach("containers")
            live = {
                choice.hook.name: choice.alternative.name
                for choice in collector.status("containers").choices
                if choice.alternative
            }
            records = record_work(collector, lambda: trees.churn(29))
            check_what_stays(collector, trees, renames=bool(root.number))
        found = by_cgroup(records, trees.truth)
        assert {hook: live[hook] for hook in chosen} == chosen
        for folder in old:
            (created,) = found[trees.of(folder).cgroup_id]
            assert created.existing
            assert created.path == trees.of(folder).path
        churned = [cgroup for cgroup in trees.truth if cgroup.died and "-old" not in cgroup.path]
        assert len(churned) >= 29
        for cgroup in churned[:29]:
            check_one(cgroup, found[cgroup.cgroup_id], trees.root.number)
        check_order(records)


def check_what_stays(collector: Collector, trees: Forest, *, renames: bool) -> None:
    """
    Rename and move, also where the kernel refuses to, and remove what is not empty.
    """
    one = trees.make(trees.top, "one")
    with sleepers(1) as (process,):
        if renames:
            with pytest.raises(OSError):  # noqa: PT011 - there is one of that name
                one.rename(trees.top / "old-0-0")
            one = trees.rename(one, "uno")
        (one / "cgroup.procs").write_text(str(process.pid))
        for folder in (one, trees.top):
            with pytest.raises(OSError, match="busy"):
                folder.rmdir()
        records = collector.flush()
        process.kill()
        process.wait()
    renamed = of(records, CgroupRenamed)
    moved = [item for item in records if item.record == "process_moved"]

    assert [(item.old_name, item.name) for item in renamed] == ([("one", "uno")] if renames else [])
    assert [(item.pid, item.cgroup_id) for item in moved] == [  # type: ignore[attr-defined]
        (process.pid, trees.of(one).cgroup_id)
    ]
    ended = {item.cgroup_id for item in of(records, CgroupDestroyed)}
    assert not ended & {trees.of(folder).cgroup_id for folder in (one, trees.top)}
    assert where().number == trees.root.number
