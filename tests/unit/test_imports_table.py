# SPDX-License-Identifier: Apache-2.0
"""
Who may know whom.

``TABLE`` is the diagram of the house: a room (a file or a folder of the package) and the rooms it
imports.  The test reads every import with :mod:`ast` and compares; a room that wants to know one
more either has the wrong contents or gets a line here, with a reviewer's eye on it.
"""

from __future__ import annotations

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "kprobe_modules"
FOLDERS = {
    PACKAGE: ROOT / "src" / PACKAGE,
    f"{PACKAGE}.modules": ROOT / "modules",
    f"{PACKAGE}.rings": ROOT / "rings",
}
ENTITIES = ("processes", "containers", "tcp", "udp", "nat", "dns", "tcpdata")
THIRD_PARTY = {"attr", "attrs"}

#: Room → the rooms it may import.
TABLE = {
    # for people
    "__main__": "cli",
    "cli": "errors",
    "commands": "architecture attached capture cli collector config describe doctor errors "
    "features headstart hooks journal libbpf maps metrics objectfile records registry sinks "
    "transport",
    "doctor": "architecture capabilities config errors features hooks libbpf manifest maps "
    "objectfile registry rings sharing spec transport",
    "config": "byfields errors",
    "describe": "codes errors layout manifest objectfile spec",
    # the public surface: for agents, and for modules
    "__init__": "attached collector dispatch errors handler manifest records registry "
    "subscriptions transport",
    "api": "addresses decode errors handler libbpf manifest namespaces opensockets records "
    "socketscan suspects",
    # the composing rooms
    "capture": "attached dispatch errors handler journal records registry resources rings sinks "
    "specjson stacks",
    "collector": "attached clock delivery dispatch ensemble errors headstart intake journal libbpf "
    "manifest records registry subscriptions transport",
    "ensemble": "admission attached clock dispatch errors features headstart hooks intake journal "
    "libbpf loader manifest metrics records resources rings sharing slots stacks",
    "admission": "architecture attached dispatch features handler headstart intake journal libbpf "
    "loader manifest maps resources sharing spec specfile stacks",
    "metrics": "errors libbpf records",
    "journal": "attached dispatch handler records",
    "delivery": "dispatch records subscriptions",
    "attached": "byfields dispatch errors hooks libbpf loader losses manifest records",
    "intake": "channel clock errors libbpf maps rings transport",
    "channel": "clock errors handler rings",
    "resources": "errors handler libbpf loader records",
    "subscriptions": "dispatch errors records",
    "dispatch": "decode diagnostics errors handler layout records rings rows spec stacks",
    "diagnostics": "decode errors records spec stacks",
    "stacks": "errors",
    "headstart": "architecture kernelbtf libbpf manifest",
    "loader": "architecture errors features hooks libbpf manifest maps missed sharing spec tunable",
    "missed": "libbpf",
    "transport": "byfields errors libbpf rings",
    "slots": "attached dispatch errors features hooks journal libbpf records",
    "sharing": "architecture errors libbpf manifest maps spec specfile",
    "losses": "byfields libbpf spec",
    "maps": "architecture errors libbpf spec specfile",
    "hooks": "errors features manifest spec",
    "registry": "entrypoints errors manifest",
    # what modules are made of
    "manifest": "byfields errors handler records",
    "handler": "errors records",
    "opensockets": "handler suspects",
    "socketscan": "handler namespaces",
    "namespaces": "libbpf",
    "sinks": "errors records",
    "records": "byfields errors",
    # what an object file says, without a kernel
    "decode": "errors layout rows",
    "specfile": "objectfile spec specjson",
    "specjson": "codes layout shape spec",
    "objectfile": "btf codes elf errors layout mapdefinition section spec tunable",
    "mapdefinition": "btf errors shape spec",
    "tunable": "btf errors layout shape spec",
    "spec": "byfields codes errors layout shape",
    "codes": "btf byfields errors layout shape",
    "layout": "btf byfields errors shape",
    "section": "errors",
    "shape": "btf byfields errors",
    "btf": "errors",
    "elf": "errors",
    # what the kernel says
    "features": "byfields capabilities errors kernelbtf libbpf symbols",
    "kernelbtf": "btf errors",
    "entrypoints": "byfields",
    "libbpf": "capabilities errors",
    "rings": "errors",
    "rows": "",
    "symbols": "errors",
    "capabilities": "errors",
    "clock": "errors",
    "architecture": "",
    "byfields": "",
    "errors": "",
    # each of these sees api and itself
    "modules": "api",
}  # fmt: skip

ADVICE = {
    "rings": "rings move bytes and know no message: pass what is needed as an argument",
    "libbpf": "libbpf is the bottom: let the caller combine it with the other room",
    "modules": "modules import kprobe_modules.api only: what is missing is added there",
    "records": "records know nothing of BPF: give them plain values",
    "sinks": "sinks know records only: give them plain values",
}


@attrs.frozen
class Import:
    """
    One import: by which module, of which, in which line.
    """

    path: Path
    line: int
    importer: str
    imported: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: imports {self.imported}"


def python_files() -> Iterator[tuple[str, Path]]:
    """
    Yield every module's dotted name and file.
    """
    for prefix, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join((prefix, *parts)).removesuffix(".__init__"), path


def imports() -> Iterator[Import]:
    """
    Yield every import of the package, at any depth of a file.
    """
    for name, path in python_files():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found = _imported_from(node, package)
            else:
                continue
            for imported in found:
                yield Import(path, node.lineno, name, imported)


def _imported_from(node: ast.ImportFrom, package: str) -> list[str]:
    base = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*above, *([node.module] if node.module else [])])
    if base in FOLDERS:
        return [f"{base}.{alias.name}" for alias in node.names]
    return [base]


def room(name: str) -> str | None:
    """
    Return the room that a module is in; None for what is not ours.
    """
    package, _, rest = name.partition(".")
    if package != PACKAGE:
        return None
    first = rest.split(".")[0] or "__init__"
    if first in TABLE or (FOLDERS[PACKAGE] / f"{first}.py").exists():
        return first
    folder = FOLDERS[PACKAGE] / first
    return first if folder.is_dir() else "__init__"


ALL = tuple(imports())


def test_imports_follow_the_table() -> None:
    refused = []
    for found in ALL:
        one, other = room(found.importer), room(found.imported)
        if one is None or other is None or one in {other, "modules"}:
            continue
        if one not in TABLE:
            refused.append(f"{found}: room {one} is not in TABLE; say there what it may know")
        elif other not in TABLE[one].split():
            advice = ADVICE.get(one, "move the code, pass a value, or change TABLE on purpose")
            refused.append(f"{found}, which {one} may not know: {advice}")
    assert not refused, "\n".join(refused)


def test_table_lists_no_room_that_is_gone() -> None:
    known = {room(name) for name, _ in python_files()} | {"__init__"}
    listed = set(TABLE) | {other for line in TABLE.values() for other in line.split()}
    assert listed <= known, f"remove from TABLE: {', '.join(sorted(listed - known))}"


def test_table_has_a_top_and_a_bottom() -> None:
    try:
        order = [*TopologicalSorter({one: TABLE[one].split() for one in TABLE}).static_order()]
    except CycleError as error:
        pytest.fail(f"rooms that know each other are one room: {' → '.join(error.args[1])}")
    assert order[0] == "errors"


def test_only_libbpf_and_its_like_touch_ctypes() -> None:
    refused = [
        f"{found}: pointers stay in libbpf/; give that room a function and call it"
        for found in ALL
        if found.imported.split(".")[0] == "ctypes" and room(found.importer) != "libbpf"
    ]
    assert not refused, "\n".join(refused)


def test_modules_know_the_api_and_themselves() -> None:
    refused = []
    for found in ALL:
        if room(found.importer) != "modules" or room(found.imported) is None:
            continue
        own = ".".join(found.importer.split(".")[:3])
        if found.imported.startswith((f"{PACKAGE}.api", own)):
            continue
        refused.append(f"{found}: {ADVICE['modules']}")
    assert not refused, "\n".join(refused)


def test_the_framework_imports_no_module() -> None:
    refused = [
        f"{found}: the framework meets modules through the registry"
        for found in ALL
        if room(found.imported) == "modules" and room(found.importer) != "modules"
    ]
    assert not refused, "\n".join(refused)


def test_short_names_are_not_imported() -> None:
    refused = [
        f"{found}: write {PACKAGE}.{found.imported}, or one file becomes two modules"
        for found in ALL
        if found.imported.split(".")[0] in {"modules", "rings"}
    ]
    assert not refused, "\n".join(refused)


def test_only_declared_dependencies_are_imported_at_the_top() -> None:
    """
    The rest is an extra, and is imported where it is used.
    """
    refused = []
    for name, path in python_files():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.Import | ast.ImportFrom) or getattr(node, "level", 0):
                continue
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
            )
            for top in {imported.split(".")[0] for imported in names}:
                if top in sys.stdlib_module_names or top in {PACKAGE, *THIRD_PARTY}:
                    continue
                refused.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name} imports {top}")
    assert not refused, "import these inside the function that needs them:\n" + "\n".join(refused)


def test_the_framework_names_no_entity_in_python() -> None:
    refused = []
    for name, path in python_files():
        if room(name) == "modules":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = {id(node) for node in _docstrings(tree)}
        for node in ast.walk(tree):
            if id(node) in documented:
                continue
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            refused += [
                f"{where}: {word!r}: the module says this in its manifest, object or records"
                for word in _words(node)
            ]
    assert not refused, "\n".join(refused)


def test_the_framework_names_no_entity_in_c() -> None:
    refused = []
    names = re.compile(rf"\b(?:km|KM)_(?:{'|'.join(ENTITIES)})_\w+", re.IGNORECASE)
    for folder in (FOLDERS[PACKAGE], FOLDERS[f"{PACKAGE}.rings"]):
        for path in sorted([*folder.rglob("*.h"), *folder.rglob("*.c")]):
            code = re.sub(
                r"/\*.*?\*/|//[^\n]*", "", path.read_text(encoding="utf-8"), flags=re.DOTALL
            )
            refused += [
                f"{path.relative_to(ROOT)}: {name}: belongs in that module's folder"
                for name in names.findall(code)
            ]
    assert not refused, "\n".join(refused)


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    """
    Yield strings that stand alone: docstrings, and what describes an attribute.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


def _words(node: ast.AST) -> Iterator[str]:
    """
    Yield the entity names that a node spells out, as a whole string, in a path, or in a name.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        for part in re.split(r"[./:_-]", node.value) if " " not in node.value else ():
            if part in ENTITIES:
                yield node.value
        return
    name = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "name", None)
    if isinstance(name, str) and set(name.lower().split("_")) & set(ENTITIES):
        yield name
