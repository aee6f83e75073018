# SPDX-License-Identifier: Apache-2.0
"""
What is told of the maps and slots that modules share, before any of them is attached.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from kprobe_modules import describe, hooks, objectfile
from kprobe_modules.api import Alternative, Hook
from kprobe_modules.config import Options
from kprobe_modules.doctor import Host
from kprobe_modules.doctor.modules import Surroundings, examine_module
from kprobe_modules.errors import ManifestError
from kprobe_modules.features import Answer, Support
from kprobe_modules.registry import Registry
from tests.support import passing
from tests.support.passing import OTHERWISE, PASSED, PASSING

if TYPE_CHECKING:
    from kprobe_modules.api import Manifest
    from kprobe_modules.doctor import Finding


@pytest.fixture(autouse=True)
def slot_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "SLOT_KINDS", passing.SLOT_KINDS)


@attrs.frozen
class Kernel:
    """
    Has everything but some kinds of program.
    """

    lacks: tuple[str, ...] = ()

    def program(self, kind: str, target: str) -> Answer:
        if kind in self.lacks:
            return Answer(Support.NO, f"it has no {kind}")
        return Answer(Support.YES, target)


def described(manifest: Manifest) -> dict[str, tuple[str, bool]]:
    spec = objectfile.read(manifest.object_bytes("x86_64"), manifest.name)
    told = describe.as_dict(spec, manifest)
    return {each["name"]: (each["owner"], each["exported"]) for each in told["maps"]}


def test_maps_are_described_with_whose_they_are() -> None:
    assert described(PASSING)["passed_events"] == ("module", True)
    assert described(PASSING)["tail_calls"] == ("collector", False)
    assert described(PASSED)["passed_events"] == ("passing", False)
    spec = objectfile.read(PASSING.object_bytes("x86_64"), "passing")
    lines = [line.split() for line in describe.as_text(spec, PASSING).splitlines()]
    assert any(line[:4] == ["passed_events", "module,", "exported", "hash"] for line in lines)


def found(manifest: Manifest, *installed: Manifest) -> dict[str, Finding]:
    registry = Registry({each.name: each for each in (manifest, *installed)})
    surroundings = Surroundings(registry, Kernel(), Host(), Options())  # type: ignore[arg-type]
    examined = examine_module(manifest.name, surroundings.beside(registry.names()))
    return {each.id: each for each in examined.findings}


def test_the_doctor_says_whose_maps_are_imported() -> None:
    map_of_passed = "map.passed.passed_events"
    assert found(PASSING)["map.passing.passed_events"].found == "exported"
    assert found(PASSED, PASSING)[map_of_passed].found == "of module passing"
    assert found(PASSED, PASSING)[map_of_passed].status == "ok"
    alone = found(PASSED)[map_of_passed]
    assert alone.status == "warn"
    assert alone.found.startswith("empty: module passing")


@pytest.mark.parametrize("exports", [(), ("passed_events",)])
def test_the_doctor_finds_an_importer_that_would_be_refused(exports: tuple[str, ...]) -> None:
    exporter = attrs.evolve(PASSING, exports=exports)
    refused = found(OTHERWISE, exporter)["maps.otherwise"]
    assert refused.status == "fail"
    words = "max entries is 65, passing has 64" if exports else "passing exports no such map"
    assert words in refused.found


def test_a_broken_exporter_fails_by_itself() -> None:
    broken = attrs.evolve(PASSING, object_name="nothing")
    assert found(PASSED, broken)["map.passed.passed_events"].status == "ok"


# -- slots -----------------------------------------------------------------------------


def test_slots_are_told_with_who_calls_them() -> None:
    assert found(PASSED, PASSING)["hook.passed.passed"].found == (
        "served_kprobe (slot/passed called by passing)"
    )
    assert found(PASSED)["hook.passed.passed"].found == "own_fentry (fentry/security_task_prctl)"
    spec = objectfile.read(PASSED.object_bytes("x86_64"), "passed")
    told = describe.as_text(spec, PASSED)
    assert "1. slot/passed (served_kprobe)\n" in told
    spec = objectfile.read(PASSING.object_bytes("x86_64"), "passing")
    told = describe.as_text(spec, PASSING)
    assert "1. kprobe/security_task_prctl (pass_kprobe) calling slot/passed\n" in told
    assert "2. fentry/security_task_prctl (pass_fentry)\n" in told


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"source": "netlink", "slot": "a"}, "nothing to attach"),
        ({"program": "one", "slot": "a", "companions": ("two",)}, "nothing to attach"),
        ({"source": "netlink", "calls": ("a",)}, "only programs call slots"),
    ],
)
def test_alternatives_that_cannot_be(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ManifestError, match=words):
        Alternative(**fields)


@pytest.mark.parametrize(
    ("tag", "alternatives", "words"),
    [
        ("START", (Alternative("x", slot="a"), Alternative("y", slot="b")), "several slots: a, b"),
        ("START", (Alternative("x", slot="a"), Alternative("y", calls=("a",))), "calls the slot"),
        ("EXISTING", (Alternative("x", slot="a"),), "by scans only"),
        ("EXISTING", (Alternative("x", calls=("a",)),), "by scans only"),
    ],
)
def test_hooks_that_cannot_be(tag: str, alternatives: tuple[Alternative, ...], words: str) -> None:
    with pytest.raises(ManifestError, match=f"hook h: .*{words}"):
        Hook("h", tag, alternatives)


def test_one_program_serves_a_slot() -> None:
    with pytest.raises(ManifestError, match="passed: slots served twice: passed"):
        attrs.evolve(PASSED, tail_calls={"passed": "own_raw"})


def choosers(**given: tuple[Hook, ...]) -> dict[str, Any]:
    """
    Return what chooses, for each module, the first alternative whose slot is called.
    """

    def choose(listed: tuple[Hook, ...], called: dict[str, str]) -> tuple[hooks.Choice, ...]:
        return tuple(
            hooks.Choice(
                hook, next(each for each in hook.alternatives if each.slot in {"", *called})
            )
            for hook in listed
        )

    return {name: partial(choose, listed) for name, listed in given.items()}


def live(settled: dict[str, tuple[hooks.Choice, ...]]) -> list[str]:
    return [
        choice.alternative.name
        for choices in settled.values()
        for choice in choices
        if choice.alternative
    ]


def test_chains_of_slots_are_followed() -> None:
    """
    Who is served through a slot may call another one.
    """
    last = Hook("last", "START", (Alternative("last_slot", slot="b"), "last_own"))
    served = Alternative("middle_slot", slot="a", calls=("b",))
    middle = Hook("middle", "START", (served, "middle_own"))
    first = Hook("first", "START", (Alternative("first", calls=("a",)),))
    given = choosers(last=(last,), middle=(middle,), first=(first,))
    assert live(hooks.settle(given)) == ["last_slot", "middle_slot", "first"]
    assert hooks.called_slots(hooks.settle(given)) == {"a": "first", "b": "middle"}
    del given["first"]
    assert live(hooks.settle(given)) == ["last_own", "middle_own"]


def test_a_ring_of_slots_is_as_if_nobody_called() -> None:
    """
    Each takes away from the other what it is served by.
    """
    one = Hook("one", "START", (Alternative("one", slot="a"), Alternative("one_b", calls=("b",))))
    two = Hook("two", "START", (Alternative("two", slot="b"), Alternative("two_a", calls=("a",))))
    assert live(hooks.settle(choosers(one=(one,), two=(two,)))) == ["one_b", "two_a"]
