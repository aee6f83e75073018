# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import attrs
import pytest

from kprobe_modules.errors import ManifestError
from kprobe_modules.manifest import Alternative, Hook, Manifest
from tests.support.generator import MODULE, GeneratorHandler


def test_a_string_is_an_alternative() -> None:
    hook = Hook("start", "START", ("one", Alternative("two", companions=("three", "four"))))
    assert hook.alternatives[0] == Alternative("one")
    assert hook.alternatives[1].programs == ("three", "four", "two")
    assert Alternative(source="netlink").name == "netlink"
    assert Alternative(source="netlink").programs == ()


@pytest.mark.parametrize("words", [{}, {"program": "one", "source": "two"}])
def test_an_alternative_is_a_program_or_a_source(words: dict[str, str]) -> None:
    with pytest.raises(ManifestError, match="a program or a source, not both or neither"):
        Alternative(**words)  # type: ignore[arg-type]


def test_tags_are_known() -> None:
    with pytest.raises(ManifestError, match="tag is 'BEGIN', expected one of START, END"):
        Hook("start", "BEGIN", ())


@pytest.mark.parametrize("name", ["", "2fast", "Doors", "front-door", "a b"])
def test_names_are_identifiers(name: str) -> None:
    with pytest.raises(ManifestError, match="expected a lower-case identifier"):
        attrs.evolve(MODULE, name=name)


def test_no_hook_is_named_twice() -> None:
    hooks = [Hook("start", "START", ()), Hook("end", "END", ()), Hook("start", "END", ())]
    with pytest.raises(ManifestError, match=r"hooks named twice: start$"):
        Manifest("doors", "doors", GeneratorHandler, hooks)  # type: ignore[arg-type]


def test_a_hook_by_name() -> None:
    hook = Hook("start", "START", ())
    manifest = Manifest("doors", "doors", GeneratorHandler, (hook,))
    assert manifest.hook("start") is hook
    with pytest.raises(ManifestError, match="doors: no hook named 'stop'; there are start"):
        manifest.hook("stop")


def test_objects_are_files_of_the_package() -> None:
    assert MODULE.object_bytes("x86_64")[:4] == b"\x7fELF"
    assert MODULE.object_bytes("arm64") != MODULE.object_bytes("x86_64")
    with pytest.raises(ManifestError, match=r"holds no object file generator\.m68k\.bpf\.o"):
        MODULE.object_bytes("m68k")
    with pytest.raises(ManifestError, match=r"package nowhere\.at\.all holds no object"):
        attrs.evolve(MODULE, package="nowhere.at.all").object_bytes("x86_64")


def test_handlers_are_imported_when_asked_for() -> None:
    assert MODULE.handler_class() is GeneratorHandler
    named = attrs.evolve(MODULE, handler="tests.support.generator:GeneratorHandler")
    assert named.handler_class() is GeneratorHandler
    for wrong in ("tests.support.generator:Nobody", "tests.nowhere:Handler", "nothing"):
        with pytest.raises(ManifestError, match="cannot be imported"):
            attrs.evolve(MODULE, handler=wrong).handler_class()
