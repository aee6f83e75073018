# SPDX-License-Identifier: Apache-2.0
"""
The containers handler against any order of messages, with cgroup folders as plain ones.
"""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kprobe_modules.modules.containers import handler as handler_module
from kprobe_modules.modules.containers import hierarchy
from kprobe_modules.modules.containers import table as table_module
from kprobe_modules.modules.containers.handler import (
    MOVES_COUNT,
    WAIT_NS,
    WAITING_COUNT,
    ContainersHandler,
)
from kprobe_modules.modules.containers.table import GRACE_COUNT, GRACE_NS, CgroupTable

from kprobe_modules.api import Context
from kprobe_modules.suspects import CONFIRM_NS

SECOND = 1_000_000_000
CONTAINER = "5a" * 32
DOCKER = f"docker-{CONTAINER}.scope"


class Machine:
    """
    A procfs and a cgroup mount made of plain files, and what modules offer each other.
    """

    def __init__(self, root: Path) -> None:
        self.proc = root / "proc"
        self.mount = root / "cgroup fs"
        self.offers: dict[str, object] = {}
        (self.proc / "self" / "ns").mkdir(parents=True)
        self.mount.mkdir()
        self.namespace(hierarchy.INITIAL_CGROUP_NAMESPACE)
        self.shape("0::/\n", "cgroup2 cgroup2 rw")

    def namespace(self, name: str) -> None:
        link = self.proc / "self" / "ns" / "cgroup"
        link.unlink(missing_ok=True)
        link.symlink_to(name)

    def shape(self, cgroup: str, described: str, *, root: str = "/") -> None:
        (self.proc / "self" / "cgroup").write_text(cgroup)
        where = str(self.mount).replace(" ", "\\040")
        (self.proc / "self" / "mountinfo").write_text(
            "22 1 0:21 / /proc rw - proc proc rw\n"
            f"30 22 0:26 {root} {where} rw,nosuid shared:9 - {described}\n"
        )

    def context(self) -> Context:
        def refuse(*_: object) -> object:
            raise AssertionError

        return Context(
            name="containers",
            tunables={"ask_runtimes": 0},
            proc_root=self.proc,
            provide=self.offers.__setitem__,
            find=self.offers.get,
            data=refuse,
            live={"existing": "walk", "existing_v1": "walk"},
            map=refuse,
            program_fd=refuse,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def handler(machine: Machine) -> ContainersHandler:
    return ContainersHandler(machine.context())


@pytest.fixture
def table(machine: Machine, handler: ContainersHandler) -> CgroupTable:
    del handler
    found = machine.offers["cgroup_table"]
    assert isinstance(found, CgroupTable)
    return found


def raw(name: str) -> bytes:
    return name.encode() + b"\0"


def found(handler, time, identity, parent, name, number=0):
    return list(handler.on_existing_cgroup_probe(time, identity, parent, number, raw(name)))


def made(handler, time, identity, parent, name, number=0):
    return list(handler.on_css_populate_dir(time, identity, parent, number, raw(name)))


def ended(handler, time, identity, parent, name, number=0):
    return list(handler.on_kill_css(time, identity, parent, number, raw(name)))


def renamed(handler, time, identity, parent, name, number=0):
    return list(handler.on_cgroup_rename(time, identity, parent, number, raw(name)))


def told(records):
    return [(record.record, record.cgroup_id, getattr(record, "path", None)) for record in records]


def test_a_cgroup_is_told_once_with_its_whole_path(handler):
    assert told(found(handler, 1, 1, 0, "")) == [("cgroup_created", 1, "/")]
    long = "n" * 255
    parent = 1
    for level in range(2, 12):
        (record,) = made(handler, level, level, parent, long)
        assert record.path == f"/{long}" * (level - 1)
        assert (record.parent_cgroup_id, record.existing) == (parent, False)
        assert found(handler, level, level, parent, long) == []
        parent = level
    (end,) = ended(handler, 20, 11, 10, long)
    assert end.path == f"/{long}" * 10
    assert ended(handler, 21, 11, 10, long) == []
    assert found(handler, 22, 11, 10, long) == [], "the scan met it before it ended"


def test_a_cgroup_waits_for_the_one_above(handler):
    assert made(handler, 5, 4, 3, "c") == []
    assert made(handler, 6, 3, 2, "b") == []
    found(handler, 7, 1, 0, "")
    assert told(found(handler, 8, 2, 1, "a")) == [
        ("cgroup_created", 2, "/a"),
        ("cgroup_created", 3, "/a/b"),
        ("cgroup_created", 4, "/a/b/c"),
    ]


def test_who_waits_in_vain_is_told_without_a_path(handler, table):
    assert made(handler, 5, 4, 3, "c") == []
    (record,) = handler.steady(resync=False)
    assert (record.path, record.name, record.existing) == (None, "c", False)
    (above,) = found(handler, 6, 3, 0, "")
    assert above.path == "/"
    assert table.get(4).path == "/c", "now it is known where it is"


def test_an_end_tells_what_was_lost(handler):
    found(handler, 1, 1, 0, "")
    assert told(ended(handler, 5, 4, 3, "c")) == [
        ("cgroup_created", 4, None),
        ("cgroup_destroyed", 4, None),
    ]
    found(handler, 6, 2, 1, "a")
    made(handler, 7, 5, 2, "below")
    assert told(ended(handler, 8, 2, 1, "a")) == [
        ("cgroup_destroyed", 5, "/a/below"),
        ("cgroup_destroyed", 2, "/a"),
    ]


def test_containers_start_at_their_topmost_cgroup(handler, table):
    found(handler, 1, 1, 0, "")
    made(handler, 2, 2, 1, "system.slice")
    first, start = made(handler, 3, 3, 2, DOCKER)
    assert (first.record, start.record) == ("cgroup_created", "container_started")
    assert (start.container_id, start.runtime, start.existing) == (CONTAINER, "docker", False)
    assert start.path == f"/system.slice/{DOCKER}"
    (inner,) = made(handler, 4, 4, 3, "init.scope")
    assert inner.container_id == CONTAINER
    assert table.get(4).container is table.get(3)
    assert table.get(2).container is None
    assert [record.record for record in ended(handler, 5, 4, 3, "init.scope")] == [
        "cgroup_destroyed"
    ]
    assert [record.record for record in ended(handler, 6, 3, 2, DOCKER)] == [
        "container_stopped",
        "cgroup_destroyed",
    ]


def test_a_rename_moves_all_below_and_what_it_makes_a_container(handler, table):
    found(handler, 1, 1, 0, "", 4)
    made(handler, 2, 2, 1, "plain", 4)
    made(handler, 3, 3, 2, "in", 4)
    assert renamed(handler, 4, 2, 1, "plain", 4) == []
    rename, start = renamed(handler, 5, 2, 1, DOCKER, 4)
    assert (rename.old_name, rename.old_path, rename.path) == ("plain", "/plain", f"/{DOCKER}")
    assert (start.record, start.cgroup_id) == ("container_started", 2)
    assert table.get(3).path == f"/{DOCKER}/in"
    assert table.get(3).identity.container_id == CONTAINER
    stop, rename = renamed(handler, 6, 2, 1, "plain", 4)
    assert (stop.record, stop.container_id, stop.path) == (
        "container_stopped",
        CONTAINER,
        f"/{DOCKER}",
    )
    assert rename.record == "cgroup_renamed"
    (unknown,) = renamed(handler, 7, 9, 1, "other", 4)
    assert (unknown.record, unknown.path) == ("cgroup_created", "/other")


def test_moves_are_told_while_nobody_else_does(handler, machine):
    def move(time, pid, target):
        return handler.on_cgroup_attach_task(time, pid, 99, 1, 1000, b"sh".ljust(16, b"\0"), target)

    first, second = move(1, 7, 5), move(2, 7, 6)
    assert (first.old_cgroup_id, first.cgroup_id, first.comm) == (None, 5, "sh")
    assert (second.old_cgroup_id, second.cgroup_id) == (5, 6)
    machine.offers["process_table"] = object()
    assert move(3, 7, 8) is None
    del machine.offers["process_table"]
    assert move(4, 7, 9).old_cgroup_id is None, "where it was in between is not known"
    for pid in range(MOVES_COUNT + 10):
        move(5, pid + 100, 5)
    assert len(handler._moves) == MOVES_COUNT


def test_the_memory_controller_moves_to_another_hierarchy(handler, machine, table, caplog):
    found(handler, 1, 1, 0, "", 0)
    made(handler, 2, 2, 1, "a", 0)
    for message in (found, made, ended, renamed):
        assert message(handler, 3, 1, 0, "", 4) == [], "it does not count"
    assert len(table) == 2
    machine.shape("4:memory:/\n0::/\n", "cgroup none rw,memory")
    with caplog.at_level(logging.WARNING):
        assert told(found(handler, 3, 1, 0, "", 4)) == [("cgroup_created", 1, "/")]
        assert ended(handler, 4, 2, 1, "a", 0) == [], "late, of the one before"
    assert "hierarchy 4" in caplog.text
    assert len(caplog.records) == 1
    assert len(table) == 1


def test_the_dead_are_forgotten(handler, table):
    found(handler, 1, 1, 0, "")
    for identity in range(2, GRACE_COUNT + 100):
        made(handler, 2, identity, 1, "x")
        ended(handler, 3, identity, 1, "x")
    assert len(table) == 1
    assert table.get(2) is None
    assert table.get(GRACE_COUNT + 99) is not None
    handler.tick(4 + GRACE_NS)
    assert table.get(GRACE_COUNT + 99) is None


def folder_id(machine, path):
    return (machine.mount / path).stat().st_ino


def test_a_walk_finds_what_is_there(handler, machine):
    (machine.mount / "a" / "b").mkdir(parents=True)
    (machine.mount / "a" / "cgroup.procs").touch()
    assert list(handler.scan("existing_v1")) == []
    records = list(handler.scan("existing"))
    assert told(records) == [
        ("cgroup_created", folder_id(machine, ""), "/"),
        ("cgroup_created", folder_id(machine, "a"), "/a"),
        ("cgroup_created", folder_id(machine, "a/b"), "/a/b"),
    ]
    assert all(record.existing and record.hierarchy == 0 for record in records)
    assert list(handler.scan("existing")) == []


def test_a_walk_in_version_1(handler, machine):
    machine.shape("9:name=systemd:/\n4:cpu,memory:/x\n0::/\n", "cgroup none rw,cpu,memory")
    (machine.mount / "a").mkdir()
    assert list(handler.scan("existing")) == []
    records = list(handler.scan("existing_v1"))
    assert [(record.path, record.hierarchy) for record in records] == [("/", 4), ("/a", 4)]


def test_what_is_not_all_there_is_said(handler, machine, caplog):
    machine.namespace("cgroup:[4026532999]")
    list(handler.scan("existing"))
    assert "not mounted as a whole" in caplog.text
    machine.shape("4:memory:/\n", "cgroup2 cgroup2 rw")
    cgroupfs = hierarchy.Cgroupfs(machine.proc)
    assert cgroupfs.find() == hierarchy.Hierarchy(4, None, is_whole=False)
    machine.shape("0::/\n", "cgroup2 cgroup2 rw", root="/below")
    assert cgroupfs.find().mount_point is None


def test_a_resync_finds_lost_ends_and_lost_names(handler, machine, table):
    (machine.mount / "stays").mkdir()
    (machine.mount / "new name").mkdir()
    top = folder_id(machine, "")
    found(handler, 1, top, 0, "")
    found(handler, 1, folder_id(machine, "stays"), top, "stays")
    found(handler, 1, folder_id(machine, "new name"), top, "old name")
    found(handler, 1, 1 << 40, top, DOCKER)
    records = list(handler.steady(resync=True))
    assert [(record.old_path, record.path) for record in records] == [("/old name", "/new name")]
    assert handler.tick(10 * SECOND) == []
    assert handler.tick(10 * SECOND + CONFIRM_NS - 1) == []
    records = list(handler.tick(10 * SECOND + CONFIRM_NS))
    assert told(records) == [
        ("container_stopped", 1 << 40, f"/{DOCKER}"),
        ("cgroup_destroyed", 1 << 40, f"/{DOCKER}"),
    ]
    assert len(table) == 3
    assert list(handler.tick(20 * SECOND + CONFIRM_NS)) == []


def test_a_resync_in_another_namespace_ends_nobody(handler, machine, table):
    machine.namespace("cgroup:[4026532999]")
    found(handler, 1, folder_id(machine, ""), 0, "")
    found(handler, 1, 1 << 40, folder_id(machine, ""), "outside")
    assert list(handler.steady(resync=True)) == []
    handler.tick(SECOND)
    assert list(handler.tick(SECOND + CONFIRM_NS)) == []
    assert len(table) == 2


def test_a_doubt_that_is_not_confirmed_ends_nobody(handler, machine, table):
    top = folder_id(machine, "")
    found(handler, 1, top, 0, "")
    (machine.mount / "late").mkdir()
    identity = folder_id(machine, "late")
    found(handler, 1, identity, top, "late")
    (machine.mount / "late").rename(machine.mount.parent / "elsewhere")
    assert list(handler.steady(resync=True)) == []
    (machine.mount.parent / "elsewhere").rename(machine.mount / "late")
    handler.tick(SECOND)
    assert list(handler.tick(SECOND + CONFIRM_NS)) == []
    assert table.alive(identity) is not None


def test_a_mount_that_went_away_ends_nobody(handler, machine, table):
    found(handler, 1, 1, 0, "")
    found(handler, 1, 2, 1, "a")
    machine.mount.rmdir()
    assert list(handler.steady(resync=True)) == []
    handler.tick(SECOND)
    assert list(handler.tick(SECOND + CONFIRM_NS)) == []
    assert len(table) == 2


def test_who_waits_for_long_is_told_without_a_scan(handler):
    found(handler, 1, 1, 0, "")
    assert made(handler, 5, 5, 4, "d") == []
    assert made(handler, 6, 4, 3, "c") == []
    assert handler.tick(4 + WAIT_NS) == []
    assert told(handler.tick(5 + WAIT_NS)) == [
        ("cgroup_created", 4, None),
        ("cgroup_created", 5, None),
    ], "those above first"
    assert made(handler, 9, 4, 3, "c") == []


def test_no_more_wait_than_there_is_room_for(handler):
    waiting = WAITING_COUNT + 100
    records = [
        record
        for identity in range(10, 10 + waiting)
        for record in made(handler, identity, identity, 1_000_000 + identity, "x")
    ]
    assert [record.cgroup_id for record in records] == list(range(10, 110)), "the oldest"
    assert len(handler._waiting) == WAITING_COUNT
    for identity in range(10, 10 + waiting):
        ended(handler, identity, identity, 1_000_000 + identity, "x")
    assert not handler._waiting
    assert not handler._awaited


def test_no_more_are_kept_than_there_is_room_for(handler, table, caplog, monkeypatch):
    monkeypatch.setattr(table_module, "ALIVE_COUNT", 5)
    found(handler, 1, 1, 0, "")
    for identity in range(2, 9):
        made(handler, 2, identity, 1, "x")
    assert len(table) == 5
    assert ended(handler, 3, 8, 1, "x") == [], "never created, so never destroyed"
    assert [record.record for record in ended(handler, 4, 2, 1, "x")] == ["cgroup_destroyed"]
    assert len(made(handler, 5, 9, 1, "y")) == 1, "there is room again"
    for now in (6, 7):
        handler.tick(now)
    (line,) = caplog.messages
    assert "4 times a cgroup was left out" in line


@pytest.mark.parametrize("identities", [100, 1_000_000])
def test_nothing_grows_without_bound(handler, table, monkeypatch, identities):
    monkeypatch.setattr(table_module, "ALIVE_COUNT", 300)
    monkeypatch.setattr(table_module, "GRACE_COUNT", 200)
    monkeypatch.setattr(handler_module, "WAITING_COUNT", 100)
    monkeypatch.setattr(handler_module, "MOVES_COUNT", 50)
    chance = random.Random(5)  # noqa: S311 - it is to be the same each time
    for time in range(20_000):
        message = chance.choice([found, found, made, made, ended, renamed])
        message(handler, time, chance.randrange(identities), chance.randrange(identities), "x")
        handler.on_cgroup_attach_task(
            time, chance.randrange(identities), 9, 1, 0, bytes(16), chance.randrange(identities)
        )
        if chance.random() < 0.001:
            list(handler.steady(resync=True))
        assert len(table) <= 300
        assert len(table._orphans) <= 300
        assert len(table._removed) <= 200
        assert len(handler._waiting) <= 100
        assert sum(map(len, handler._awaited.values())) == len(handler._waiting)
        assert len(handler._moves) <= 50
        assert len(handler._suspects) <= 300
        if chance.random() < 0.001:
            handler.tick(time)
    assert table.refused or identities == 100
    list(handler.steady(resync=True))
    handler.tick(time)
    handler.tick(time + CONFIRM_NS)
    assert len(table) == 0, "nothing of this is there"


@pytest.mark.parametrize("upwards", [False, True])
def test_a_chain_of_any_depth(handler, table, upwards):
    depth = 1500
    levels = [(level, level - 1) for level in range(1, depth)]
    records = []
    for identity, parent in reversed(levels) if upwards else levels:
        records += found(handler, 1, identity, parent, "x" if parent else "")
    assert [record.cgroup_id for record in records] == list(range(1, depth)), "from the top"
    assert table.alive(depth - 1).path.count("/") == depth - 2
    records = ended(handler, 2, 2, 1, "x")
    assert [record.cgroup_id for record in records] == list(range(depth - 1, 1, -1))
    assert len(table) == 1


MESSAGES = st.lists(
    st.tuples(
        st.sampled_from([found, made, ended, renamed]),
        st.integers(1, 12),
        st.integers(0, 12),
        st.sampled_from(["a", "b", DOCKER, "", "\udc80".encode("utf-8", "replace").decode()]),
    ),
    max_size=80,
)


@given(MESSAGES)
def test_any_order_gives_whole_lives(messages):
    handler = ContainersHandler(_bare_context())
    records = []
    for time, (message, identity, parent, name) in enumerate(messages):
        records += message(handler, time, identity, parent, name)
    records += handler.steady(resync=False)
    lives = {}
    for record in records:
        kind = record.record
        if kind == "cgroup_created":
            assert record.cgroup_id not in lives
            lives[record.cgroup_id] = "alive"
        elif kind in {"cgroup_destroyed", "cgroup_renamed"}:
            assert lives[record.cgroup_id] == "alive"
            if kind == "cgroup_destroyed":
                lives[record.cgroup_id] = "removed"
    assert len(handler._table) == sum(state == "alive" for state in lives.values())
    assert not handler._waiting
    assert not handler._awaited


def _bare_context() -> Context:
    def nothing(*_: object) -> object:
        return None

    return Context(
        name="containers",
        tunables={"ask_runtimes": 0},
        proc_root=Path("/nonexistent"),
        provide=nothing,
        find=nothing,
        data=nothing,
        live={},
        map=nothing,
        program_fd=nothing,
    )
