# SPDX-License-Identifier: Apache-2.0
"""
Codes of logs: what an object says of them, and what the numbers on the wire mean.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kprobe_modules import btf, objectfile
from kprobe_modules.codes import Argument, Site, read_codes, read_sites
from kprobe_modules.diagnostics import Diagnostics
from kprobe_modules.errors import LayoutError
from tests.support.btfwriter import BtfWriter

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = ROOT / "tests" / "bpf" / "objects"


def generator() -> objectfile.ObjectSpec:
    return objectfile.read((OBJECTS / "generator.x86_64.bpf.o").read_bytes(), "generator")


def test_codes_have_the_names_and_arguments_of_the_source() -> None:
    codes = {code.name: code for code in generator().codes}
    assert codes["odd"].id == 256
    assert [each.name for each in codes["odd"].arguments] == ["balance", "parity", "large"]
    assert codes["plain"].arguments == ()
    assert codes["counted"].arguments[0].unit == "count"
    # The framework's are there, in front.
    assert codes["map_full"].id == 1
    assert [code.id for code in generator().codes] == sorted(code.id for code in generator().codes)


@pytest.mark.parametrize("arch", ["x86_64", "arm64"])
def test_sites_are_the_lines_that_log(arch: str) -> None:
    spec = objectfile.read((OBJECTS / f"generator.{arch}.bpf.o").read_bytes(), "generator")
    source = OBJECTS / "generator.bpf.c"
    text = source.read_text(encoding="utf-8")
    calls = re.finditer(r"\bkm_log\(ctx[^;]*;", text)
    expected = {text.count("\n", 0, call.end()) + 1 for call in calls}
    assert {site.line for site in spec.sites.values()} == expected
    assert {site.file for site in spec.sites.values()} == {"tests/bpf/objects/generator.bpf.c"}


def test_an_object_that_never_logs_has_none() -> None:
    spec = objectfile.read((OBJECTS / "hooked.x86_64.bpf.o").read_bytes(), "mismatched")
    assert (spec.codes, dict(spec.sites), spec.diagnostics) == ((), {}, ())


@pytest.mark.parametrize(
    ("argument", "word", "expected"),
    [
        (Argument("a", 8), 2**64 - 1, 2**64 - 1),
        (Argument("a", 8, signed=True), 2**64 - 7, -7),
        (Argument("a", 4, signed=True), 2**64 - 7, -7),
        (Argument("a", 4), 2**64 - 7, 2**32 - 7),
        (Argument("a", 2, signed=True), 0x8000, -0x8000),
        (Argument("a", 1, boolean=True), 0x101, True),
        (Argument("a", 1, boolean=True), 0x100, False),
        (Argument("a", 1, values=(("UP", 0), ("DOWN", 1))), 1, "DOWN"),
        (Argument("a", 1, values=(("UP", 0), ("DOWN", 1))), 2, 2),
    ],
)
def test_a_word_is_read_as_the_argument_is_declared(
    argument: Argument, word: int, expected: object
) -> None:
    value = argument.read(word)
    assert (value, type(value)) == (expected, type(expected))


def test_a_log_that_no_code_explains_still_says_its_numbers() -> None:
    log = Diagnostics("generator", generator()).on_bpf_log(5, 1, 999, 999, 7, 8, 9)
    assert (log.code, log.file, log.line) == ("code_999", "", 0)
    assert log.arguments == {"argument_0": 7, "argument_1": 8, "argument_2": 9}


def written(enumerators: list[tuple[str, int]], members: dict[str, list[str]]) -> btf.Btf:
    """
    Write a union of codes as the macro does.
    """
    writer = BtfWriter()
    enum = writer.enum("km_doors_code", enumerators, size=2)
    structs = {
        name: writer.struct(
            name, 8 * len(fields), [(each, writer.plain("u64"), 64 * n) for n, each in fields]
        )
        for name, fields in ((name, list(enumerate(each))) for name, each in members.items())
    }
    rows = [("code", enum, 0), *((name, id_, 0) for name, id_ in structs.items())]
    union = writer.union("km_doors_codes", 32, rows)
    writer.section("km.types", [(writer.variable("km_module_codes", union), 0, 32)])
    return btf.parse(writer.to_bytes(), "doors")


def test_declarations_are_read() -> None:
    found = read_codes(
        written([("KM_DOORS_CODE_STUCK", 256), ("KM_DOORS_CODE_IDLE", 257)], {"stuck": ["door"]})
    )
    assert [(code.name, code.id, len(code.arguments)) for code in found] == [
        ("stuck", 256, 1),
        ("idle", 257, 0),
    ]


@pytest.mark.parametrize(
    ("enumerators", "members", "sentence"),
    [
        ([("KM_DOORS_STUCK", 256)], {}, "KM_DOORS_STUCK must begin with KM_DOORS_CODE_"),
        ([("KM_DOORS_CODE_STUCK", 256)], {"open": ["a"]}, "no enumerator for member open"),
        ([("KM_DOORS_CODE_STUCK", 0)], {}, "code stuck is 0"),
        (
            [("KM_DOORS_CODE_STUCK", 256), ("KM_DOORS_CODE_IDLE", 256)],
            {},
            "code idle is 256, expected a name and a number of its own",
        ),
        (
            [("KM_DOORS_CODE_STUCK", 256)],
            {"stuck": ["a", "b", "c", "d"]},
            "arguments of code stuck: expected a struct of up to 3 numbers",
        ),
    ],
)
def test_a_bad_declaration_is_refused_by_name(
    enumerators: list[tuple[str, int]], members: dict[str, list[str]], sentence: str
) -> None:
    with pytest.raises(LayoutError, match=re.escape(sentence)):
        read_codes(written(enumerators, members))


def test_damaged_sites_are_refused() -> None:
    with pytest.raises(LayoutError, match="has 100 bytes, expected a multiple of 128"):
        read_sites(bytes(100), "doors")
    assert read_sites(
        (3).to_bytes(4, "little") + (77).to_bytes(4, "little") + b"a.c".ljust(120, b"\0"), "doors"
    ) == {3: Site("a.c", 77)}
