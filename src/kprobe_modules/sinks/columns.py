# SPDX-License-Identifier: Apache-2.0
"""
Aligned columns for a person.

The framework knows no entity, so the columns are the fields that most records
share (who did it); everything else a record has follows as ``name=value``.
"""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, Literal, TypeAlias

import attrs

from kprobe_modules.records import field_names
from kprobe_modules.sinks.values import clock, duration, readable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kprobe_modules.records import Record

__all__ = ["Columns", "Style"]

When: TypeAlias = Literal["clock", "seconds", "time"]


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Style:
    """
    How the columns look.

    Attributes:
        when: ``clock`` for HH:MM:SS.mmm, ``time`` for HH:MM:SS, ``seconds`` since
            the first record.
        uid: whether there is a UID column.
        wide: show everything, and cut nothing at the terminal's edge.
        fields: these columns and no others, in this order.
    """

    when: When = "clock"
    uid: bool = False
    wide: bool = False
    fields: tuple[str, ...] | None = None


@attrs.frozen(eq=False, repr=False)
class _Column:
    name: str
    title: str
    width: int
    right: bool = False


#: Fields that have a column of their own wherever a record has them.
_SHARED = (
    _Column("pid", "PID", 7, right=True),
    _Column("parent_pid", "PPID", 7, right=True),
    _Column("uid", "UID", 6, right=True),
    _Column("comm", "COMM", 16),
)
_WIDTHS = {column.name: column.width for column in _SHARED}
_TITLES = {column.name: column.title for column in _SHARED}

#: Long and rarely read: shown when wide.
_LONG_SUFFIXES = ("_time", "_id")


class Columns:
    """
    Writes records to a binary stream as aligned columns, with a header.

    Args:
        stream: where the lines go; it stays the caller's to close.
        style: what to show.
        width: returns the columns of the terminal, or None when lines are not to
            be cut; by default the stream is asked.
        expected: the records that may come: they size the columns, and a column
            that none of them fills is left out.
    """

    def __init__(
        self,
        stream: IO[bytes],
        style: Style | None = None,
        *,
        width: Callable[[], int | None] | None = None,
        expected: Sequence[type[Record]] = (),
    ) -> None:
        self._stream = stream
        self._style = style or Style()
        self._measure = width or (lambda: _terminal_width(stream))
        self._columns = self._chosen(expected)
        self._shown = frozenset({"module", "record", *(column.name for column in self._columns)})
        self._start: int | None = None
        self._width: int | None = None
        self._rest: dict[type[Record], tuple[str, ...]] = {}

    def _chosen(self, expected: Sequence[type[Record]]) -> tuple[_Column, ...]:
        fields = self._style.fields
        if fields is None:
            filled = {name for kind in expected for name in field_names(kind)}
            shared = [column.name for column in _SHARED if column.name != "uid" or self._style.uid]
            fields = ("time", "module", "record")
            fields += tuple(name for name in shared if not expected or name in filled)
        widths = {
            "time": {"clock": 12, "time": 8, "seconds": 12}[self._style.when],
            "module": max([0, *(len(str(kind.module)) for kind in expected)]),
            "record": max([0, *(len(kind.record) for kind in expected)]),
            **_WIDTHS,
        }
        right = {column.name for column in _SHARED if column.right}
        if self._style.when == "seconds":
            right.add("time")
        return tuple(
            _Column(
                name,
                title := _TITLES.get(name, name.upper()),
                max(len(title), widths.get(name, 0)),
                name in right,
            )
            for name in fields
        )

    def __call__(self, record: Record) -> None:
        """
        Write one line, and the header before the first.
        """
        if self._start is None:
            self._start = record.time
            self._width = self._measure()
            titles = [_pad(column.title, column) for column in self._columns]
            if self._style.fields is None:
                titles.append("DETAILS")
            self._write(" ".join(titles))
        cells = [_pad(self._cell(record, column.name), column) for column in self._columns]
        if self._style.fields is None:
            cells.append(self._details(record))
        self._write(" ".join(cells))

    def flush(self) -> None:
        """
        Flush the stream, and notice if the terminal was resized.
        """
        self._stream.flush()
        self._width = self._measure()

    def _write(self, line: str) -> None:
        line = line.rstrip()
        if self._width is not None and not self._style.wide:
            line = line[: self._width]
        self._stream.write(line.encode("utf-8", "backslashreplace") + b"\n")

    def _cell(self, record: Record, name: str) -> str:
        if name == "time":
            return self._when(record.time)
        value = getattr(record, name, None)
        return "-" if value is None else _shown(name, value)

    def _when(self, time: int) -> str:
        if self._style.when == "seconds":
            return f"{(time - (self._start or 0)) / 1e9:.6f}"
        return clock(time, milliseconds=self._style.when == "clock")

    def _details(self, record: Record) -> str:
        kind = type(record)
        names = self._rest.get(kind)
        if names is None:
            names = self._rest[kind] = tuple(
                name
                for name in field_names(kind)
                if name not in self._shown and (self._style.wide or not _hidden(name))
            )
        details = []
        for name in names:
            value = getattr(record, name)
            if value is True:
                details.append(name)
            elif value is not None and value is not False and value not in ("", b"", (), []):
                details.append(f"{name}={_shown(name, value)}")
        return " ".join(details)


def _hidden(name: str) -> bool:
    return name == "uid" or name.endswith(_LONG_SUFFIXES)


def _shown(name: str, value: object) -> str:
    """
    Return a value as text; names say which integers are times.
    """
    if type(value) is int and (name == "duration" or name.endswith("_duration")):
        return duration(value)
    if type(value) is int and name.endswith("_time"):
        return clock(value)
    return readable(value)


def _pad(text: str, column: _Column) -> str:
    return text.rjust(column.width) if column.right else text.ljust(column.width)


def _terminal_width(stream: IO[bytes]) -> int | None:
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError, AttributeError):
        return None
