# SPDX-License-Identifier: Apache-2.0
"""
Modules that share maps, in whichever order they come and go.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import attrs
import pytest

from kprobe_modules import Collector, hooks, sharing
from kprobe_modules.errors import IncompatibleMapError, ManifestError
from kprobe_modules.libbpf import map as bpf_map
from kprobe_modules.records import Failure
from kprobe_modules.registry import Registry
from tests.support import passing
from tests.support.footprint import assert_gone, held
from tests.support.libbpfs import descriptors
from tests.support.passing import OTHERWISE, PASSED, PASSING, act
from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kprobe_modules import Record
    from kprobe_modules.api import Manifest

SHARED = "passed_events"


@pytest.fixture(autouse=True)
def slot_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "SLOT_KINDS", passing.SLOT_KINDS)


def registry(*manifests: Manifest) -> Registry:
    return Registry({each.name: each for each in manifests})


def attach(collector: Collector, *manifests: Manifest) -> None:
    for each in manifests:
        collector.attach(each, watched=os.getpid())
    collector.flush()


def map_fd(collector: Collector, module: str) -> int:
    return collector._ensemble.attached[module].loaded.map_fd(SHARED)


def map_id(collector: Collector, module: str) -> int:
    return bpf_map.info(map_fd(collector, module)).id


def entries(collector: Collector, module: str) -> dict[int, int]:
    """
    Return the count of each process in the map that a module has.
    """
    return {
        int.from_bytes(key, "little"): int.from_bytes(value[:8], "little")
        for key, value in bpf_map.items(map_fd(collector, module))
    }


def known(records: Iterable[Record], module: str) -> list[int]:
    return [
        each.known for each in records if isinstance(each, passing.Seen) and each.module == module
    ]


# -- maps --------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(PASSING, PASSED), (PASSED, PASSING)])
@pytest.mark.parametrize("leaving", [("passing", "passed"), ("passed", "passing")])
def test_one_map_in_either_order(order: tuple[Manifest, ...], leaving: tuple[str, str]) -> None:
    needs.root()
    before = descriptors()
    with Collector(registry=registry(PASSING, PASSED)) as collector:
        alone = held()
        for _ in range(2):
            attach(collector, *order)
            assert map_id(collector, "passing") == map_id(collector, "passed")
            both = held()
            act(range(1, 8))
            assert entries(collector, "passed") == {os.getpid(): 7}
            # Through the slot, which comes behind the count.
            assert known(collector.flush(), "passed") == list(range(1, 8))
            collector.detach(leaving[0])
            stays = leaving[1]
            assert map_id(collector, stays) in {number for kind, number in held() if kind == "map"}
            # What the exporter knew goes with it, and stays with it.
            assert entries(collector, stays) == ({} if stays == "passed" else {os.getpid(): 7})
            collector.detach(stays)
            assert held() == alone
    assert_gone(both)
    assert descriptors() == before


def test_who_comes_back_finds_the_map() -> None:
    needs.root()
    with Collector() as collector:
        attach(collector, PASSED, PASSING)
        kept = map_id(collector, "passed")
        for _ in range(3):
            collector.detach("passing")
            act([1])
            attach(collector, PASSING)
            assert map_id(collector, "passing") == kept
            act([2])
            assert entries(collector, "passed") == {os.getpid(): 1}


def test_without_the_exporter_the_map_is_empty() -> None:
    needs.root()
    with Collector(registry=registry(PASSED)) as collector:
        attach(collector, PASSED)
        act([1, 2, 3])
        assert known(collector.flush(), "passed") == [0, 0, 0]
        assert entries(collector, "passed") == {}


DIFFERENCES = (
    "map passed_events of module passing: type name is percpu_hash, passing has hash",
    "map passed_events of module passing: key size is 8, passing has 4",
    "map passed_events of module passing: value size is 4, passing has 16",
    "map passed_events of module passing: flags is 1, passing has 0",
    "map passed_events of module passing: max entries is 65, passing has 64",
    "map passed_events of module passing: key is",
    "map passed_events of module passing: value is",
)


@pytest.mark.parametrize("attached", [False, True])
def test_every_difference_with_the_exporter_is_told(*, attached: bool) -> None:
    """
    Also before the exporter comes, who then comes all the same.
    """
    needs.root()
    modules = Registry({} if attached else {"passing": PASSING})
    with Collector(registry=modules) as collector:
        if attached:
            attach(collector, PASSING)
        before = held()
        with pytest.raises(IncompatibleMapError) as refused:
            collector.attach(OTHERWISE)
        assert held() == before
        told = refused.value.differences
        assert str(refused.value).startswith("otherwise: map passed_events of module passing")
        assert len(told) == len(DIFFERENCES)
        for words in DIFFERENCES:
            assert sum(each.startswith(words) for each in told) == 1, (words, told)
        if not attached:
            attach(collector, PASSING)
        attach(collector, PASSED)
        act([1])
        assert entries(collector, "passed") == {os.getpid(): 1}


def test_an_importer_never_stands_in_the_exporters_way() -> None:
    """
    Nobody could know that it declares the map otherwise; it is left alone with its own.
    """
    needs.root()
    with Collector(registry=registry()) as collector:
        alone = held()
        collector.attach(OTHERWISE)
        with pytest.raises(IncompatibleMapError, match="module passing: key size is 4, otherwise"):
            collector.attach(PASSED)
        collector.attach(PASSING, watched=os.getpid())
        told = [each for each in collector.flush() if isinstance(each, Failure)]
        assert [(each.module, each.where) for each in told] == [("otherwise", "imports")]
        assert all(words in told[0].error for words in DIFFERENCES)
        attach(collector, PASSED)
        assert map_id(collector, "passing") == map_id(collector, "passed")
        assert map_id(collector, "passing") != map_id(collector, "otherwise")
        for name in ("passing", "otherwise", "passed"):
            collector.detach(name)
        assert held() == alone


class Fails(passing.PassingHandler):
    def attached(self) -> None:
        act([1, 2, 3])
        msg = "not today"
        raise RuntimeError(msg)


def test_an_exporter_that_fails_leaves_no_entries() -> None:
    needs.root()
    with Collector() as collector:
        attach(collector, PASSED)
        before, ids = descriptors(), held()
        links = {each for each in ids if each[0] == "link"}
        with pytest.raises(RuntimeError, match="not today"):
            collector.attach(attrs.evolve(PASSING, handler=Fails), watched=os.getpid())
        assert entries(collector, "passed") == {}
        # Its own way was closed and opened again meanwhile.
        assert len(descriptors()) == len(before)
        assert {each for each in held() if each[0] != "link"} == ids - links
        attach(collector, PASSING)
        act([4])
        assert entries(collector, "passed") == {os.getpid(): 1}


def test_each_collector_has_its_own() -> None:
    needs.root()
    with Collector() as one, Collector() as other:
        attach(one, PASSING)
        attach(other, PASSED, PASSING)
        assert map_id(one, "passing") != map_id(other, "passing")
        act([1, 2])
        other.detach("passing")
        assert entries(one, "passing") == {os.getpid(): 2}
        assert entries(other, "passed") == {}


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (attrs.evolve(PASSING, exports=("nothing",)), "map nothing: the manifest lists it"),
        (attrs.evolve(PASSED, imports={"nothing": "passing"}), "map nothing: the manifest lists"),
        (
            attrs.evolve(PASSED, imports={"km_counters": "passing"}),
            "map km_counters of module passing: passing exports no such map",
        ),
    ],
)
def test_manifest_object_and_exporter_agree(manifest: Manifest, words: str) -> None:
    needs.root()
    with Collector(registry=registry(PASSING)) as collector:
        with pytest.raises(IncompatibleMapError, match=words):
            collector.attach(manifest)
        assert collector.modules == ()


def test_only_what_can_be_emptied_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    needs.root()
    monkeypatch.setattr(sharing, "EXPORTABLE", ("array",))
    with Collector() as collector, pytest.raises(IncompatibleMapError, match="expected one of arr"):
        collector.attach(PASSING)


def test_a_module_imports_from_others() -> None:
    for imports in ({SHARED: "passing"}, {"tail_calls": "passed"}, {"events": "passed"}):
        with pytest.raises(ManifestError, match="imports what is its own or common"):
            attrs.evolve(PASSING, imports=imports)
