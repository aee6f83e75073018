# SPDX-License-Identifier: Apache-2.0
"""
Compile every ``*.bpf.c`` of the repository for both architectures, byte for byte the same anywhere.

``python tools/build_bpf.py`` writes ``<name>.<architecture>.bpf.o`` beside each source; from what
that object says ``<name>.<architecture>.spec.json`` (`kprobe_modules.specfile`; not for objects
of tests) and each module's ``layout.txt``.  ``--check`` builds in a copy of the sources in another
folder, compares, and changes nothing.

The objects are committed, so the bytes must depend on the sources alone: one stated major version
of clang, no header of the system, relative paths, no DWARF.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADERS = Path("src/kprobe_modules/bpf")
#: Folders, relative to the root, whose ``*.bpf.c`` are committed with their objects.
PLACES = ("src/kprobe_modules/bpf", "modules", "tests/bpf", "examples")
CLANG_MAJOR = 14
#: Our name of an architecture and the one that the sources are told.
ARCHITECTURES = {"x86_64": "x86", "arm64": "arm64"}


class BuildError(Exception):
    """
    The objects can't be built here; the text says what is needed.
    """


def main() -> int:
    """
    Build or check; return 1 when the check finds a difference, 2 when nothing could be built.
    """
    parser = argparse.ArgumentParser(description="compile the BPF objects; write layouts and specs")
    parser.add_argument("--check", action="store_true", help="compare with what is there")
    options = parser.parse_args()
    try:
        clang, strip = find_tools()
        if options.check:
            return check(clang, strip)
        for path in build(ROOT, clang, strip):
            print(path)
    except BuildError as error:
        print(f"build_bpf: {error}", file=sys.stderr)
        return 2
    return 0


def find_tools() -> tuple[str, str]:
    """
    Return the paths of clang and of the llvm-strip that belongs to it.

    Raises :exc:`BuildError` when there is none or it is of another major version.
    """
    chosen = os.environ.get("KPROBE_MODULES_CLANG")
    clang = shutil.which(chosen or f"clang-{CLANG_MAJOR}")
    if clang is None:
        wanted = chosen or f"clang-{CLANG_MAJOR}"
        remedy = f"apt-get install clang-{CLANG_MAJOR} llvm-{CLANG_MAJOR}"
        msg = f"no {wanted} here; {remedy}, or name one in KPROBE_MODULES_CLANG"
        raise BuildError(msg)
    found = re.search(r"clang version (\d+)", _run([clang, "--version"], ROOT))
    if found is None or int(found[1]) != CLANG_MAJOR:
        version = found[1] if found else "something else"
        msg = (
            f"{clang} is clang {version}; the committed objects are built with "
            f"clang {CLANG_MAJOR}, and another one gives other bytes"
        )
        raise BuildError(msg)
    beside = Path(clang).resolve().parent / "llvm-strip"
    strip = str(beside) if beside.exists() else shutil.which(f"llvm-strip-{CLANG_MAJOR}")
    if strip is None:
        msg = f"no llvm-strip-{CLANG_MAJOR} here; apt-get install llvm-{CLANG_MAJOR}"
        raise BuildError(msg)
    return clang, strip


def sources(root: Path) -> list[Path]:
    """
    Return every source with a committed object, relative to ``root``.
    """
    return sorted(
        path.relative_to(root) for place in PLACES for path in (root / place).rglob("*.bpf.c")
    )


def build(root: Path, clang: str, strip: str) -> list[Path]:
    """
    Build everything under ``root``; return what was written, relative to it.
    """
    written = []
    for source in sources(root):
        stem = source.name.removesuffix(".bpf.c")
        for architecture, told in ARCHITECTURES.items():
            target = source.with_name(f"{stem}.{architecture}.bpf.o")
            _compile(root, source, target, told, (clang, strip))
            written.append(target)
            if source.parts[0] != "tests":
                beside = source.with_name(f"{stem}.{architecture}.spec.json")
                (root / beside).write_bytes(_spec(root / target, stem))
                written.append(beside)
        if source.parts[0] in ("modules", "examples"):
            layout = source.with_name("layout.txt")
            (root / layout).write_text(_layout(root, source, stem), encoding="utf-8")
            written.append(layout)
    return written


def check(clang: str, strip: str) -> int:
    """
    Build in a copy of the sources and compare the results with the committed ones.
    """
    with tempfile.TemporaryDirectory(prefix="kprobe_modules-") as name:
        copy = Path(name)
        for place in PLACES:
            shutil.copytree(
                ROOT / place,
                copy / place,
                ignore=shutil.ignore_patterns(
                    "*.o", "*.py", "__pycache__", "layout.txt", "*.spec.json"
                ),
            )
        built = build(copy, clang, strip)
        stale = [path for path in built if not _same(copy / path, ROOT / path)]
    known = {path for path in built if path.name.endswith(".bpf.o")}
    orphans = [
        path
        for place in PLACES
        for found in (ROOT / place).rglob("*.bpf.o")
        if (path := found.relative_to(ROOT)) not in known
    ]
    for path in stale:
        print(f"{path}: not what its source gives; run `make bpf` and commit it", file=sys.stderr)
    for path in orphans:
        print(f"{path}: has no source; delete it", file=sys.stderr)
    if not stale and not orphans:
        print(f"{len(built)} generated files are what their sources give")
    return 1 if stale or orphans else 0


def _compile(root: Path, source: Path, target: Path, told: str, tools: tuple[str, str]) -> None:
    clang, strip = tools
    command = [
        clang, "-target", "bpf", "-mcpu=v2", "-g", "-O2", "-Wall", "-Werror", "-nostdinc",
        f"-D__TARGET_ARCH_{told}", "-fdebug-compilation-dir=.", f"-ffile-prefix-map={root}=.",
        "-I", str(HEADERS), *_headers_of_modules(source), "-c", str(source), "-o", str(target),
    ]  # fmt: skip
    _run(command, root)
    # BTF stays: .BTF and .BTF.ext are no debugging sections to llvm-strip.
    _run([strip, "-g", str(target)], root)


def _headers_of_modules(source: Path) -> list[str]:
    """
    Return what lets a module see the headers of those whose maps it imports.
    """
    return ["-I", "modules"] if source.parts[0] in {"modules", "examples"} else []


def _layout(root: Path, source: Path, name: str) -> str:
    """
    Return the text of a module's ``layout.txt``, from the object just built.
    """
    from kprobe_modules import describe, objectfile  # only here: objects build without them

    made = root / source.with_name(f"{name}.{next(iter(ARCHITECTURES))}.bpf.o")
    return describe.layout_text(objectfile.read(made.read_bytes(), name))


def _spec(target: Path, name: str) -> bytes:
    """
    Return what is put beside an object just built, so that nobody needs to read it again.
    """
    from kprobe_modules import objectfile, specfile  # only here: as above

    data = target.read_bytes()
    return specfile.write(data, objectfile.read(data, name))


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.read_bytes() == other.read_bytes()


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        msg = f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr.strip()}"
        raise BuildError(msg)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
