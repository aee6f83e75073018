# SPDX-License-Identifier: Apache-2.0
"""
What is installed is what the folders hold, and it installs without any compiler.
"""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.requirements import needs

ROOT = Path(__file__).resolve().parents[2]
DATA = ("*.bpf.o", "*.bpf.c", "*.h", "layout.txt", "py.typed")


@pytest.fixture(scope="module")
def declared() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def homes(declared: configparser.ConfigParser) -> dict[str, Path]:
    """
    Return where the mapped packages live, by name.
    """
    lines = declared["options"]["package_dir"].split("\n")
    mapped = dict(map(str.strip, line.split("=")) for line in lines if line.strip())
    return {
        name or "kprobe_modules": ROOT / folder / ("" if name else "kprobe_modules")
        for name, folder in mapped.items()
    }


def packages(declared: configparser.ConfigParser) -> set[str]:
    return set(declared["options"]["packages"].split())


def test_every_folder_of_code_is_listed_and_no_other(declared: configparser.ConfigParser) -> None:
    found = {
        ".".join((name, *path.parent.relative_to(home).parts))
        for name, home in homes(declared).items()
        for path in home.rglob("__init__.py")
    }
    listed = packages(declared)
    assert found <= listed, f"add to packages in setup.cfg: {', '.join(sorted(found - listed))}"
    assert listed <= found, f"no such folder; remove from setup.cfg: {sorted(listed - found)}"


def test_every_module_is_registered_under_its_own_name(declared: configparser.ConfigParser) -> None:
    lines = declared["options.entry_points"]["kprobe_modules.modules"].split("\n")
    points = dict(map(str.strip, line.split("=")) for line in lines if line.strip())
    folders = {path.parent.name for path in (ROOT / "modules").glob("*/__init__.py")}
    assert points == {name: f"kprobe_modules.modules.{name}:MODULE" for name in folders}


def test_all_licence_texts_are_there() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert "GNU GENERAL PUBLIC LICENSE" in (ROOT / "LICENSES/GPL-2.0.txt").read_text()
    sources = [*(ROOT / "src").rglob("*.bpf.c"), *(ROOT / "modules").rglob("*.bpf.c")]
    sources += (ROOT / "src").rglob("km/*.h")
    assert sources
    for source in sources:
        first = source.read_text().splitlines()[0]
        assert "SPDX-License-Identifier: GPL-2.0 OR Apache-2.0" in first, source


def run(*command: str | Path, **environment: str) -> str:
    """
    Run a command away from the checkout's import path; its own words are in the failure.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)),
        env={**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def copy_of_the_checkout(folder: Path) -> Path:
    """
    Return a copy of what git would commit, so that building leaves nothing in the checkout.
    """
    named = run("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, named.split("\0")):
        if (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    return folder


ASK = """
import json, sys
from importlib.metadata import entry_points
from importlib.resources import files
import kprobe_modules.rings
points = entry_points(group="kprobe_modules.modules")
objects = [
    len(list(files(point.value.partition(":")[0]).iterdir())) and
    any(path.name.endswith(".bpf.o") for path in files(point.value.partition(":")[0]).iterdir())
    for point in points
]
print(json.dumps({
    "modules": sorted(point.name for point in points),
    "objects": all(objects),
    "native": "kprobe_modules.rings._drain" in sys.modules,
    "strays": sorted({"modules", "rings"} & set(sys.modules)),
}))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("editable", [False, True], ids=["plain", "editable"])
def test_installs_without_a_compiler(tmp_path: Path, *, editable: bool) -> None:
    import json

    needs.command("git")
    source = copy_of_the_checkout(tmp_path / "checkout")
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    what = ["--editable", source] if editable else [source]
    # No clang on PATH counts as none: nothing of the build may look for it.
    run(python, "-m", "pip", "install", "--quiet", *what, CC="/bin/false")
    said = json.loads(run(python, "-c", ASK))
    modules = sorted(path.parent.name for path in (ROOT / "modules").glob("*/__init__.py"))
    assert said == {"modules": modules, "objects": True, "native": False, "strays": []}
    run(tmp_path / "venv/bin/kprobe-modules", "--version")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_wheel_holds_all_data_and_the_extension(tmp_path: Path) -> None:
    needs.command("git")
    needs.command("cc", "gcc")
    source = copy_of_the_checkout(tmp_path / "checkout")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, source)
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp311-abi3-" in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "kprobe_modules/rings/_drain.abi3.so" in names
    homes_of = {"src/kprobe_modules": "kprobe_modules", "modules": "kprobe_modules/modules"}
    for home, inside in homes_of.items():
        for pattern in DATA:
            for path in (source / home).rglob(pattern):
                assert f"{inside}/{path.relative_to(source / home)}" in names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"kprobe_modules"}
