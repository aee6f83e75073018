# SPDX-License-Identifier: Apache-2.0
"""
What lies beside objects: the same spec as the object gives, or none.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from kprobe_modules import objectfile, specfile
from kprobe_modules.specjson import from_plain, to_plain

ROOT = Path(__file__).parents[2]
GENERATOR = (ROOT / "tests/bpf/objects/generator.x86_64.bpf.o").read_bytes()
BESIDE = sorted([*ROOT.glob("modules/*/*.spec.json"), *ROOT.glob("src/**/*.spec.json")])


def object_of(beside: Path) -> bytes:
    return beside.with_name(beside.name.replace(".spec.json", ".bpf.o")).read_bytes()


def test_every_object_of_ours_has_one() -> None:
    objects = [*ROOT.glob("modules/*/*.bpf.o"), *ROOT.glob("src/**/*.bpf.o")]
    assert len(BESIDE) == len(objects) >= 4


@pytest.mark.parametrize("path", BESIDE, ids=lambda path: path.name)
def test_it_says_what_the_object_does(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, beside = object_of(path), path.read_bytes()
    expected = objectfile.read(data, "renamed")
    assert beside == specfile.write(data, objectfile.read(data, path.name.partition(".")[0]))
    monkeypatch.setattr(objectfile, "read", None)
    assert specfile.read(data, "renamed", beside) == expected


def test_every_part_of_a_spec_comes_back() -> None:
    spec = objectfile.read(GENERATOR, "generator")
    assert spec.messages
    assert spec.maps
    assert spec.tunables
    assert spec.codes
    assert spec.sites
    again = from_plain(json.loads(json.dumps(to_plain(spec))))
    assert again == spec
    for one, other in zip(again.maps, spec.maps, strict=True):
        # Equality leaves out what is for people.
        for ours, theirs in ((one.key, other.key), (one.value, other.value)):
            assert (ours and [*ours.lines()]) == (theirs and [*theirs.lines()])


def test_of_another_object_it_is_not_used() -> None:
    spec = objectfile.read(GENERATOR, "generator")
    lie = specfile.write(GENERATOR, attrs.evolve(spec, license="none"))
    assert specfile.read(GENERATOR, "generator", lie).license == "none"
    longer = GENERATOR + b"\0"
    changed = bytes([*GENERATOR[:-1], GENERATOR[-1] ^ 1])
    for data in (longer, changed):
        assert specfile.read(data, "generator", lie).license == "GPL"


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: b"[]",
        lambda _: b"\xff",
        lambda good: good[:-9],
        lambda good: good.replace(b'"version":1', b'"version":0'),
        lambda good: good.replace(b'"messages"', b'"massages"'),
        lambda good: good.replace(b'"offset":0', b'"offset":-1'),
        lambda good: good.replace(b'"rodata":"', b'"rodata":"x'),
        lambda good: good.replace(b'[["', b'[[0,"'),
    ],
)
def test_damaged_the_object_is_read(damage) -> None:
    spec = objectfile.read(GENERATOR, "generator")
    good = specfile.write(GENERATOR, spec)
    assert damage(good) != good
    assert specfile.read(GENERATOR, "generator", damage(good)) == spec
    assert specfile.read(GENERATOR, "generator", None) == spec


def test_with_it_pyelftools_is_not_loaded() -> None:
    code = """
import sys
from kprobe_modules import specfile
from kprobe_modules.architecture import machine_arch
from kprobe_modules.maps import collector_spec
from kprobe_modules.modules.processes import MODULE
arch = machine_arch()
specfile.read(MODULE.object_bytes(arch), "processes", MODULE.spec_bytes(arch)).program("start_btf")
collector_spec().map("events")
sys.exit("elftools" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
