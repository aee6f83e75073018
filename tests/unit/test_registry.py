# SPDX-License-Identifier: Apache-2.0
"""
Modules found by entry points of distributions that are made for the test.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from kprobe_modules.errors import RegistryError
from kprobe_modules.registry import Registry
from tests.support.generator import MODULE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GOOD = """
from kprobe_modules.api import Handler, Manifest
MODULE = Manifest(name="{name}", package=__name__, handler=Handler, hooks=())
"""


@pytest.fixture
def install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str, str], None]]:
    """
    Install a distribution with one module: its name, the module's name, its source.
    """
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def make(distribution: str, name: str, source: str) -> None:
        package = distribution.replace("-", "_")
        (tmp_path / f"{package}.py").write_text(source, encoding="utf-8")
        information = tmp_path / f"{package}-1.2.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n", encoding="utf-8"
        )
        (information / "entry_points.txt").write_text(
            f"[kprobe_modules.modules]\n{name} = {package}:MODULE\n", encoding="utf-8"
        )

    yield make
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_third_partys_module_is_found(install: Callable[[str, str, str], None]) -> None:
    install("door-watcher", "doors", GOOD.format(name="doors"))
    registry = Registry()
    assert "doors" in registry.names()
    found = registry.registration("doors")
    assert (found.distribution, found.version) == ("door-watcher", "1.2")
    assert found.target == "door_watcher:MODULE"
    # Only who is loaded is imported.
    assert "door_watcher" not in sys.modules
    assert registry.load("doors").name == "doors"
    assert "door_watcher" in sys.modules


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise RuntimeError('no doors here')", "RuntimeError: no doors here"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("this is no Python", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("x = 1", "AttributeError"),
        ("MODULE = 'a string'", "is a str, expected a Manifest"),
        (GOOD.format(name="windows"), "its manifest is named 'windows'"),
        ("from kprobe_modules.api import Manifest\nMODULE = Manifest('D-', '', '', ())", "'D-'"),
    ],
)
def test_a_broken_one_fails_alone_and_names_its_distribution(
    install: Callable[[str, str, str], None], source: str, words: str
) -> None:
    install("door-watcher", "doors", source)
    install("window-watcher", "windows", GOOD.format(name="windows"))
    registry = Registry()
    with pytest.raises(RegistryError, match="door-watcher") as refused:
        registry.load("doors")
    assert words in str(refused.value)
    assert registry.load("windows").name == "windows"
    assert {"doors", "windows"} <= set(registry.names())


def test_two_distributions_with_one_name(install: Callable[[str, str, str], None]) -> None:
    install("door-watcher", "doors", GOOD.format(name="doors"))
    install("other-watcher", "doors", GOOD.format(name="doors"))
    install("window-watcher", "windows", GOOD.format(name="windows"))
    registry = Registry()
    with pytest.raises(RegistryError, match="registered twice") as refused:
        registry.load("doors")
    assert "door-watcher" in str(refused.value)
    assert "other-watcher" in str(refused.value)
    # The others are not to blame.
    assert registry.load("windows").name == "windows"
    assert {"doors", "windows"} <= set(registry.names())


def test_who_is_not_there() -> None:
    with pytest.raises(RegistryError, match="no module is registered as 'nobody'; registered: "):
        Registry().load("nobody")


def test_who_can_be_had_is_found(install: Callable[[str, str, str], None]) -> None:
    install("door-watcher", "doors", GOOD.format(name="doors"))
    install("broken-watcher", "broken", "import nothing_of_that_name")
    found = Registry().find("doors")
    assert found is not None
    assert found.name == "doors"
    assert Registry().find("broken") is None
    assert Registry().find("windows") is None


def test_exporters_come_before_who_imports_from_them(
    install: Callable[[str, str, str], None],
) -> None:
    imports = 'MODULE = attrs.evolve(MODULE, imports={{"{0}_map": "{0}"}})'
    for name, exporter in (("attics", "beams"), ("beams", "doors"), ("doors", "attics")):
        source = f"import attrs{GOOD.format(name=name)}{imports.format(exporter)}"
        install(f"{name}-watcher", name, source)
    install("broken-watcher", "broken", "import nothing_of_that_name")
    registry = Registry()

    assert list(registry.exporters_first(["attics", "broken", "beams"])) == [
        "beams",
        "attics",
        "broken",
    ]
    # In a circle nobody can be first.
    assert sorted(registry.exporters_first(["attics", "beams", "doors"])) == [
        "attics",
        "beams",
        "doors",
    ]
    manifests = [registry.load("beams"), registry.load("doors")]
    assert list(registry.exporters_first(manifests)) == manifests[::-1]
    assert list(registry.exporters_first(["doors", "doors"])) == ["doors", "doors"]


def test_what_is_no_module_is_refused() -> None:
    registry = Registry()
    with pytest.raises(RegistryError, match=r"expected a list of names or manifests, found 'udp'"):
        list(registry.exporters_first("udp"))
    with pytest.raises(RegistryError, match=r"expected a name or a Manifest, found 7"):
        list(registry.exporters_first([MODULE, 7]))  # type: ignore[list-item]
    with pytest.raises(RegistryError, match=r"expected a name or a Manifest, found None"):
        registry.manifest(None)  # type: ignore[arg-type]
    assert registry.manifest(MODULE) is MODULE


def test_manifests_of_ones_own_come_first() -> None:
    registry = Registry({"generator": MODULE})
    assert registry.load("generator") is MODULE
    assert "generator" in registry.names()
    assert registry.registration("generator").distribution == "given in the program"
