# SPDX-License-Identifier: Apache-2.0
"""
Fuzz the parser of DNS messages, and of streams, with atheris: see README.md beside this file.

Whatever the bytes, only MessageError may come out, what dnspython accepts is read alike, and a
stream gives the same messages in whatever pieces it comes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["kprobe_modules"]):
    from kprobe_modules.modules.dns.streams import StreamTable

    from tests.support.dnspython import agree, ours


def messages(data: bytes, size: int) -> list[tuple[bytes, int]]:
    table = StreamTable()
    found = []
    for at in range(0, len(data), size):
        piece = data[at : at + size]
        found += table.feed(1, 0, at, piece, len(piece))
    return found


def test_one_input(data: bytes) -> None:
    agree(data)
    ours(data, len(data) + 1)
    found = messages(data, len(data) or 1)
    for size in (1, 2, 3, 13):
        if messages(data, size) != found:
            msg = f"in pieces of {size} bytes it holds other messages"
            raise AssertionError(msg)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
