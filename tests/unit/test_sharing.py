# SPDX-License-Identifier: Apache-2.0
"""
What is told of the maps and slots that modules share, before any of them is attached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import pytest

from kprobe_modules import describe, objectfile
from kprobe_modules.config import Options
from kprobe_modules.doctor import Host
from kprobe_modules.doctor.modules import examine_module
from kprobe_modules.features import Answer, Support
from kprobe_modules.registry import Registry
from tests.support.passing import OTHERWISE, PASSED, PASSING

if TYPE_CHECKING:
    from kprobe_modules.api import Manifest
    from kprobe_modules.doctor import Finding


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
    examined = examine_module(manifest.name, registry, Kernel(), Host(), Options())  # type: ignore[arg-type]
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
