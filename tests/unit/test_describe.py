# SPDX-License-Identifier: Apache-2.0
"""
What describe says of an object, with and without a manifest.
"""

from __future__ import annotations

import json

import pytest

from kprobe_modules import describe, objectfile
from kprobe_modules.errors import ObjectError
from kprobe_modules.manifest import Alternative, Hook, Manifest
from tests.support.btfwriter import CONST, VOLATILE, BtfWriter
from tests.support.elfwriter import STT_OBJECT, bpf_object


@pytest.fixture(scope="module")
def spec():
    writer = BtfWriter()
    for program in ("open_fast", "open_slow", "open_return", "fence"):
        function = writer.function(program)
        if program != "fence":
            writer.tag("km_hook:open:START", function)
    members = [
        ("header", writer.header(), 0),
        ("took", writer.typedef("km_ns", writer.plain("u64")), 128),
        ("state", writer.enum("state", [("OPEN", 1), ("SHUT", 2)], 1), 192),
        ("words", writer.array(writer.plain("char"), 0), 200),
    ]
    said = writer.struct("km_modx_said", 32, members)
    key = writer.pointer(writer.plain("s32"))
    events = writer.map("events", type=writer.number(4), key=key, value=key)
    writer.section(".maps", [(writer.scratch("modx", {"said": said}), 0, 32), (events, 0, 24)])
    volatile = writer.add(VOLATILE, "", writer.typedef("km_ns", writer.plain("u64")))
    limit = writer.variable("limit", writer.add(CONST, "", volatile))
    writer.tag("km_doc:how long to wait", limit)
    writer.section(".rodata", [(limit, 0, 8)])
    elf = bpf_object(
        writer.to_bytes(),
        programs=[
            ("fentry/f", "open_fast"),
            ("kprobe/f", "open_slow"),
            ("kretprobe/f", "open_return"),
            ("raw_tp", "fence"),
        ],
    )
    elf.symbol("limit", STT_OBJECT, elf.section(".rodata", (77).to_bytes(8, "little")), size=8)
    return objectfile.read(elf.to_bytes(), "modx")


MANIFEST = Manifest(
    name="modx",
    package="modx",
    handler="modx:Handler",
    summary="watches nothing",
    version="1.2",
    hooks=(
        Hook(
            "open",
            "START",
            (
                "open_fast",
                Alternative(
                    "open_slow",
                    fields_missing=("said.words",),
                    note="slow",
                    companions=("open_return",),
                ),
                Alternative(source="netlink"),
            ),
            notices="something opens",
            awaits="nf_x",
            fields_missing=("said.took",),
        ),
    ),
)


def test_hooks_come_in_the_manifests_order(spec):
    (hook,) = describe.as_dict(spec, MANIFEST)["hooks"]
    assert (hook["name"], hook["tag"], hook["required"]) == ("open", "START", True)
    assert [each["attach"] for each in hook["alternatives"]] == [
        "fentry/f", "kprobe/f", "the handler",
    ]  # fmt: skip
    assert hook["alternatives"][2]["kind"] == "source"
    assert hook["alternatives"][1]["fields_missing"] == ["said.words"]
    assert [each["name"] for each in hook["alternatives"][1]["companions"]] == ["open_return"]


def test_without_a_manifest_the_tags_tell(spec):
    described = describe.as_dict(spec)
    (hook,) = described["hooks"]
    assert hook["required"] is None
    assert [each["name"] for each in hook["alternatives"]] == [
        "open_fast", "open_slow", "open_return",
    ]  # fmt: skip
    assert [each["name"] for each in described["programs"]] == ["fence"]


def test_a_manifest_that_names_no_program_is_refused(spec):
    wrong = Manifest(
        name="modx", package="modx", handler="x:Y", hooks=(Hook("open", "START", ("gone",)),)
    )
    with pytest.raises(ObjectError, match="modx: has no program gone; it has open_fast, open_slow"):
        describe.as_dict(spec, wrong)


def test_messages_maps_and_tunables(spec):
    described = describe.as_dict(spec)
    (message,) = described["messages"]
    assert (message["name"], message["id"], message["size"]) == ("said", 1, 25)
    took, state = message["fields"][5:]
    assert took == {
        "name": "took", "type": "u64", "typedef": "km_ns", "offset": 16, "size": 8,
        "unit": "ns", "values": {},
    }  # fmt: skip
    assert (state["type"], state["values"]) == ("enum", {"OPEN": 1, "SHUT": 2})
    assert (message["tail"]["name"], message["tail"]["type"]) == ("words", "char[]")
    owners = {each["name"]: each["owner"] for each in described["maps"]}
    assert owners == {"km_scratch": "module", "events": "collector"}
    assert described["tunables"] == [
        {
            "name": "limit", "type": "u64", "default": 77, "unit": "ns",
            "doc": "how long to wait", "set_by": "user",
        }
    ]  # fmt: skip


def test_it_is_json(spec):
    described = describe.as_dict(spec, MANIFEST)
    assert json.loads(json.dumps(described)) == described


def test_text_says_it_all(spec):
    text = describe.as_text(spec, MANIFEST)
    for line in (
        "modx 1.2: watches nothing",
        "built for x86_64, licence GPL",
        "  open START required: something opens (awaits kernel module nf_x)",
        "    1. fentry/f (open_fast)",
        "    2. kprobe/f (open_slow) with kretprobe/f (open_return) - slow",
        "       cannot fill said.words",
        "    3. the handler (netlink)",
        "    without any: said.took stay unfilled",
        "  1 said: 25 bytes and a tail",
        "    16  u64     took     ns",
        "    24  enum    state    OPEN=1, SHUT=2",
        "    25  char[]  words",
        "  limit  u64  = 77  ns how long to wait",
    ):
        assert line in text.splitlines()


def test_layout_text_shows_every_byte(spec):
    lines = describe.layout_text(spec).splitlines()
    start = lines.index("message 1 said: struct km_modx_said")
    assert lines[start + 6 : start + 12] == [
        "    16     8 km_ns (u64) took [ns]",
        "    24     1 enum state",
        "              OPEN = 1",
        "              SHUT = 2",
        "    25     0 char[] words",
        "    25       (tail follows)",
    ]
    assert "  limit  u64  = 77" in lines
    assert describe.layout_text(spec) == describe.layout_text(spec)
