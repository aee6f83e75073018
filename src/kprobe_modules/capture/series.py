# SPDX-License-Identifier: Apache-2.0
"""
The files of one capture: as they are written, rotated, and read again.
"""

from __future__ import annotations

import errno
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kprobe_modules.capture import blocks
from kprobe_modules.capture.blocks import (
    HEADING,
    LARGEST_BLOCK,
    PREAMBLE,
    STEPS,
    Block,
    Part,
    part_path,
)
from kprobe_modules.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Series", "read_series"]

BLOCK_SIZE: Final = 256 << 10
"""Bytes of steps that are compressed together."""

FLUSH_NS: Final = 1_000_000_000
"""A step waits no longer than this for others to be compressed with, while there are any."""


class Series:
    """
    Writes steps to a file, and begins another when it is full.

    Args:
        path: the newest file.
        heading: what each file says about the capture.
        max_size: bytes of a file; only a step that alone is larger exceeds it.
        rotate: how many older files are kept.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(
        self, path: Path | str, heading: dict[str, Any], *, max_size: int, rotate: int
    ) -> None:
        self._path = Path(path)
        self._heading = heading
        self._max_size = max_size
        self._rotate = rotate
        self._number = 0
        self.written = 0
        self._modules: dict[str, list[bytes]] = {}
        self._before: list[bytes] = []
        """What a file that begins with the pending block has to say first."""
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._pending_since = 0
        self._file: int | None = None
        self._size = 0
        self._empty = True
        try:
            self._open([])
        except OSError:
            self._close_file()
            raise

    def remember(self, module: str, step: bytes) -> None:
        """
        Repeat a step at the beginning of each further file, while the module is attached.
        """
        self._modules.setdefault(module, []).append(step)

    def forget(self, module: str) -> None:
        """
        Forget a module that left.
        """
        self._modules.pop(module, None)

    def write(self, step: bytes, now: int) -> None:
        """
        Append a step.

        Args:
            step: as `kprobe_modules.capture.steps.encode` has it.
            now: CLOCK_MONOTONIC, nanoseconds.

        Raises:
            OSError: the file cannot be written.
        """
        if len(step) + BLOCK_SIZE > LARGEST_BLOCK:
            raise OSError(errno.EFBIG, f"a step of {len(step)} bytes is larger than any block")
        if not self._pending:
            self._pending_since = now
            self._before = [step for steps in self._modules.values() for step in steps]
        self._pending.append(step)
        self._pending_size += len(step)
        if self._pending_size >= BLOCK_SIZE or now - self._pending_since >= FLUSH_NS:
            self.flush()

    def flush(self) -> None:
        """
        Bring what is pending to the file.

        Raises:
            OSError: it cannot be written.
        """
        if not self._pending:
            return
        raw = blocks.encode(Block(STEPS, b"".join(self._pending)))
        if self._size + len(raw) > self._max_size and not self._empty:
            self._next()
        self._append(raw)
        self._empty = False
        self._pending.clear()
        self._pending_size = 0

    def _next(self) -> None:
        self._close_file()
        for age in range(self._rotate, 0, -1):
            with suppress(FileNotFoundError):
                part_path(self._path, age - 1).rename(part_path(self._path, age))
        self._number += 1
        self._open(self._before)

    def _open(self, preamble: list[bytes]) -> None:
        # It holds command lines: nobody else's to read.  Never a file that somebody has
        # open already, or that is known by another name.
        with suppress(FileNotFoundError):
            if self._path.is_file():
                self._path.unlink()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._file = os.open(self._path, flags, 0o600)
        self._size = 0
        self._empty = True
        heading = json.dumps({**self._heading, "part": self._number}).encode()
        self._append(blocks.preface() + blocks.encode(Block(HEADING, heading)))
        if preamble:
            self._append(blocks.encode(Block(PREAMBLE, b"".join(preamble))))

    def _append(self, raw: bytes) -> None:
        assert self._file is not None  # noqa: S101 - nothing is written to what was closed
        view = memoryview(raw)
        while view:
            done = os.write(self._file, view)
            view = view[done:]
            self._size += done
            self.written += done

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def close(self) -> None:
        """
        Write what is pending and close the file.  Safe to call twice.

        Raises:
            OSError: it cannot be written.
        """
        if self._file is None:
            return
        try:
            self.flush()
        finally:
            self._close_file()

    def abandon(self) -> None:
        """
        Close the file as it is.
        """
        self._pending.clear()
        self._close_file()


def read_series(path: Path) -> list[Part]:
    """
    Return the files of the capture whose newest is *path*, the oldest first.

    Files beside it that are of another capture, or none at all, are left out.

    Raises:
        CaptureError: *path* is no capture, or of a newer version.
        OSError: it cannot be read.
    """
    newest = Part(path)
    return [*reversed(list(_older(newest))), newest]


def _older(newest: Part) -> Iterator[Part]:
    last = newest
    age = 1
    while True:
        try:
            part = Part(part_path(newest.path, age))
        except (OSError, CaptureError):
            return
        if part.series != newest.series or part.number != last.number - 1:
            return
        yield part
        last = part
        age += 1
