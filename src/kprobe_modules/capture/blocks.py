# SPDX-License-Identifier: Apache-2.0
"""
The file: a preface, then blocks, each of which can be read without the others.

::

    preface   MAGIC, u16 version, u16 reserved
    block     u32 bytes stored, u32 bytes when inflated, u8 kind, u8 encoding,
              u16 reserved, u32 CRC-32 of these 12 bytes and of what follows
              what is stored

All numbers are little endian.  The first block is the heading, one object of JSON.
A file that was cut off, or damaged, is good up to the block where that shows.

A capture is a series of files, ``FILE`` the newest and ``FILE.1``, ``FILE.2`` before
it: all bear the series' id and their own number in it.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from typing import TYPE_CHECKING, Any, Final

import attrs

from kprobe_modules.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

__all__ = [
    "HEADING",
    "LARGEST_BLOCK",
    "PREAMBLE",
    "STEPS",
    "VERSION",
    "Block",
    "Part",
    "encode",
    "part_path",
]

#: As in PNG: what a transfer in text mode would spoil is in front.
MAGIC: Final = b"\x89KMC\r\n\x1a\n"
VERSION: Final = 1
"""Raised when a reader of an older version would misunderstand the file."""

_PREFACE = struct.Struct("<8sHH")
_BLOCK = struct.Struct("<IIBBHI")
_CHECKED = struct.Struct("<IIBBH")

HEADING: Final = 0
PREAMBLE: Final = 1
"""Modules attached before the file begins, repeated so that it can be read alone."""
STEPS: Final = 2

_RAW, _ZLIB = 0, 1

LARGEST_BLOCK: Final = 256 << 20
"""Bytes when inflated: a damaged file must not ask for all memory."""

LEVEL: Final = 1
"""Of zlib.  Of 13,000 messages about processes, 100 bytes each as steps, level 1 made 20.7
bytes in 0.8 µs, level 6 18.0 in 2.2, level 9 17.8 in 15; lzma 14.1 in 3.5 at best."""


@attrs.frozen
class Block:
    """
    One block of a file.

    Attributes:
        kind: `HEADING`, `PREAMBLE` or `STEPS`.
        content: what was given to `encode`.
    """

    kind: int
    content: bytes


def preface() -> bytes:
    """
    Return what a file begins with.
    """
    return _PREFACE.pack(MAGIC, VERSION, 0)


def encode(block: Block) -> bytes:
    """
    Return a block as it stands in a file, compressed where that helps.
    """
    stored, encoding = zlib.compress(block.content, LEVEL), _ZLIB
    if len(stored) >= len(block.content):
        stored, encoding = block.content, _RAW
    head = _CHECKED.pack(len(stored), len(block.content), block.kind, encoding, 0)
    return head + struct.pack("<I", zlib.crc32(stored, zlib.crc32(head))) + stored


def part_path(path: Path, age: int) -> Path:
    """
    Return where the file stands that is *age* rotations old.
    """
    return path.with_name(f"{path.name}.{age}") if age else path


class Part:
    """
    One file of a capture, read front to back.

    Args:
        path: the file.

    Raises:
        CaptureError: it is no capture, or made by a newer version.
        OSError: it cannot be read.

    Attributes:
        heading: what the capture says about itself.
        cut: why reading ended before the end of the file; None if it did not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cut: str | None = None
        with path.open("rb") as file:
            self._start = self._read_preface(file)
            block = self._block(file)
            self._body = file.tell()
        self.heading = self._heading(block)

    @property
    def series(self) -> str:
        """
        What all files of one capture have in common.
        """
        return str(self.heading.get("series"))

    @property
    def number(self) -> int:
        """
        How many files of the capture came before this one, those included that are gone.
        """
        number = self.heading.get("part")
        return number if isinstance(number, int) else 0

    def _read_preface(self, file: BinaryIO) -> int:
        raw = file.read(_PREFACE.size)
        if len(raw) < _PREFACE.size or raw[: len(MAGIC)] != MAGIC:
            msg = (
                f"{self.path}: not a capture: expected it to begin with {MAGIC!r}, "
                f"found {raw[: len(MAGIC)]!r}"
            )
            raise CaptureError(msg)
        _, version, _ = _PREFACE.unpack(raw)
        if version != VERSION:
            msg = (
                f"{self.path}: capture format {version}, expected {VERSION}: "
                "read it with the kprobe_modules that made it, or a newer one"
            )
            raise CaptureError(msg)
        return _PREFACE.size

    def _heading(self, block: Block | None) -> dict[str, Any]:
        heading = None
        if block is not None and block.kind == HEADING:
            try:
                heading = json.loads(block.content)
            except ValueError:
                heading = None
        if not isinstance(heading, dict):
            msg = f"{self.path}: the heading of the capture is damaged: {self.cut or 'not JSON'}"
            raise CaptureError(msg)
        return heading

    def blocks(self) -> Iterator[Block]:
        """
        Iterate over the blocks behind the heading, up to the end or to where it is cut.
        """
        with self.path.open("rb") as file:
            file.seek(self._body)
            while (block := self._block(file)) is not None:
                yield block

    def _block(self, file: BinaryIO) -> Block | None:
        at = file.tell()
        head = file.read(_BLOCK.size)
        if not head:
            return None
        if len(head) < _BLOCK.size:
            return self._end(at, "the head of a block is incomplete")
        size, inflated, kind, encoding, _, crc = _BLOCK.unpack(head)
        # What is there bounds what is read, whatever the head says.
        if size > os.fstat(file.fileno()).st_size - file.tell():
            return self._end(at, f"a block of {size} bytes is incomplete")
        stored = file.read(size)
        if zlib.crc32(stored, zlib.crc32(head[: _CHECKED.size])) != crc:
            return self._end(at, "the checksum of a block is wrong")
        content = _decoded(stored, inflated, encoding)
        if content is None:
            return self._end(at, "a block is not as long as it says")
        return Block(kind, content)

    def _end(self, at: int, reason: str) -> Block | None:
        size = self.path.stat().st_size
        self.cut = f"at byte {at} of {size}: {reason}"
        return None


def _decoded(stored: bytes, inflated: int, encoding: int) -> bytes | None:
    if inflated > LARGEST_BLOCK or encoding not in (_RAW, _ZLIB):
        return None
    if encoding == _ZLIB:
        inflater = zlib.decompressobj()
        try:
            stored = inflater.decompress(stored, inflated + 1)
        except zlib.error:
            return None
    return stored if len(stored) == inflated else None
