# SPDX-License-Identifier: Apache-2.0
"""
Whatever happens to an object's bytes, the reader returns or raises ObjectError, soon.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kprobe_modules import decode, describe, objectfile
from kprobe_modules.elf import read_elf
from kprobe_modules.errors import ObjectError

ROOT = Path(__file__).resolve().parents[2]
COLLECTOR = ROOT / "src" / "kprobe_modules" / "bpf" / "collector.x86_64.bpf.o"
OBJECTS = [COLLECTOR, *sorted((ROOT / "modules").glob("*/*.x86_64.bpf.o"))[:1]]
CONTENTS = {path.name: path.read_bytes() for path in OBJECTS}

#: Seconds of our own CPU time; an intact object takes some milliseconds.
SOON = 2.0

bounded = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])


def read_soon(data: bytes) -> bool:
    """
    Read and use an object; return whether it was accepted.
    """
    start = time.process_time()
    try:
        spec = objectfile.read(data, "damaged")
        describe.as_text(spec)
        describe.layout_text(spec)
        for message in spec.messages:
            decode.bind(message.layout, message.layout.names, "test")
    except ObjectError:
        return False
    finally:
        assert time.process_time() - start < SOON
    return True


@pytest.mark.parametrize("name", CONTENTS)
def test_intact_objects_are_accepted(name):
    assert read_soon(CONTENTS[name])


@pytest.mark.parametrize("name", CONTENTS)
def test_no_truncation_is_accepted(name):
    data = CONTENTS[name]
    step = max(1, len(data) // 997)
    assert not any(read_soon(data[:length]) for length in range(0, len(data), step))


@bounded
@given(st.sampled_from(sorted(CONTENTS)), st.data())
def test_changed_bytes(name, data):
    mutated = bytearray(CONTENTS[name])
    for _ in range(data.draw(st.integers(1, 20))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    read_soon(bytes(mutated))


@bounded
@given(st.sampled_from(sorted(CONTENTS)), st.data())
def test_changed_words_of_the_types(name, data):
    # Most of an object is code: aim where the reader looks.
    content = CONTENTS[name]
    section = read_elf(content, name).section(".BTF")
    assert section is not None
    mutated = bytearray(content)
    words = st.sampled_from([0, 1, 4, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])
    for _ in range(data.draw(st.integers(1, 8))):
        at = section.offset + data.draw(st.integers(0, section.size // 4 - 1)) * 4
        mutated[at : at + 4] = data.draw(words).to_bytes(4, "little")
    read_soon(bytes(mutated))


@bounded
@given(st.sampled_from(sorted(CONTENTS)), st.data())
def test_moved_pieces(name, data):
    content = CONTENTS[name]
    start = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(start, min(len(content), start + 512)))
    to = data.draw(st.integers(0, len(content)))
    read_soon(content[:to] + content[start:end] + content[to:])


@bounded
@given(st.binary(max_size=400))
def test_random_bytes(data):
    assert not read_soon(data)
    assert not read_soon(b"\x7fELF\2\1\1" + data)
