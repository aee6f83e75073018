# SPDX-License-Identifier: Apache-2.0
"""
Fuzz the object reader with atheris: see README.md beside this file.

Whatever the bytes, only ObjectError may come out of reading, describing and
binding; libFuzzer itself reports hangs (-timeout) and memory (-rss_limit_mb).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.support.elfwriter import STT_OBJECT, bpf_object

with atheris.instrument_imports(include=["kprobe_modules"]):
    from kprobe_modules import btf, decode, describe, objectfile, shape
    from kprobe_modules.errors import ObjectError


def read_types(data: bytes) -> None:
    types = btf.parse(data, "fuzz")
    for type_ in types:
        for question in (types.size, types.chain, lambda id_: str(shape.shape(types, id_))):
            try:
                question(type_.id)
            except ObjectError:
                continue
    elf = bpf_object(data, programs=[("kprobe/f", "f")])
    elf.symbol("limit", STT_OBJECT, elf.section(".rodata", bytes(64)))
    read_object(elf.to_bytes())


def read_object(data: bytes) -> None:
    spec = objectfile.read(data, "fuzz")
    json.dumps(describe.as_dict(spec))
    describe.as_text(spec)
    describe.layout_text(spec)
    for message in spec.messages:
        layout = message.layout
        rows = decode.bind(layout, layout.names, "fuzz")(bytes(2 * layout.size))
        if len(list(rows)) != 2:
            msg = f"{message.name}: two rows of zeros are not two tuples"
            raise AssertionError(msg)


def test_one_input(data: bytes) -> None:
    # The first byte chooses the door: types, which an intact ELF is written
    # around, or the whole object.
    read = read_types if data[:1] == b"B" else read_object
    try:
        read(data[1:])
    except ObjectError:
        return


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
