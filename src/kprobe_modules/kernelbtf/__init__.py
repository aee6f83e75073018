# SPDX-License-Identifier: Apache-2.0
"""
What the running kernel's BTF knows: functions, BTF tracepoints, iterators.

BTF is world readable, so none of this needs privileges.  The BTF of kernel
modules came with Linux 5.11; before it a module's functions are not found.

A kernel has some 100,000 types, and a module asks for ten of them.  Native code indexes
their names.  Where it is not installed, or ``KPROBE_MODULES_PURE=1`` asks to do without,
nothing is parsed: the name is searched among the strings, then the eight bytes that a
type of that name and kind begins with among the types.
"""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kprobe_modules.btf import MAGIC, Kind
from kprobe_modules.errors import NotSupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kprobe_modules.kernelbtf import _index

    Index: type[_index.Index] | None
    Contents: type[_index.Contents]
elif os.environ.get("KPROBE_MODULES_PURE", "") not in {"", "0"}:
    Index = None
else:
    try:
        from kprobe_modules.kernelbtf._index import Contents, Index
    except ImportError:
        Index = None

__all__ = ["KernelBtf"]

_SYS = Path("/sys")
_HEADER: Final = struct.Struct("=HBBIIIII")
_WORD: Final = struct.Struct("=I")
_LINKAGES: Final = 2  # BTF_FUNC_STATIC, _GLOBAL, _EXTERN
_KINDS: Final = 1 << Kind.FUNC | 1 << Kind.TYPEDEF

_ABSENT: Final = -1
_PRESENT: Final = -2
"""In the place of a type's number: it is there, but what its number is is not known."""


class KernelBtf:
    """
    Look names up in the kernel's BTF.

    The first question costs some milliseconds, and answers are remembered.
    :meth:`close` gives the memory back (8 MB) and keeps the answers; a new question
    afterwards reads the file again.  Kernel modules are those loaded when first asked
    about; make a new object to see others.  Safe to use from several threads.
    """

    def __init__(self, *, sys: Path = _SYS) -> None:
        self._folder = sys / "kernel" / "btf"
        self._lock = threading.RLock()
        self._vmlinux: _Image | None = None
        self._modules: dict[str, _Image] | None = None
        self._places: dict[tuple[str, Kind], tuple[str, int] | None] = {}
        """The file that has a type, and the type's number among those of the file."""

    @property
    def available(self) -> bool:
        """
        Whether the kernel has BTF at all (CONFIG_DEBUG_INFO_BTF).
        """
        return (self._folder / "vmlinux").exists()

    @property
    def lets_others_run(self) -> bool:
        """
        Whether other threads run while BTF is read: native code does it.
        """
        return Index is not None

    def read(self) -> None:
        """
        Do now what the first question would wait for.

        Raises:
            NotSupportedError: the kernel has no BTF.
        """
        with self._lock:
            self._base()

    def has_function(self, name: str) -> bool:
        """
        Say whether the kernel, or a loaded module, has a function in its BTF.

        Raises:
            NotSupportedError: the kernel has no BTF.
        """
        return self.home(name) is not None

    def has_tracepoint(self, name: str) -> bool:
        """
        Say whether ``tp_btf/name`` exists: a typedef ``btf_trace_name``.

        Raises:
            NotSupportedError: the kernel has no BTF.
        """
        return self.tracepoint_home(name) is not None

    def has_iterator(self, name: str) -> bool:
        """
        Say whether ``iter/name`` exists: a function ``bpf_iter_name``.

        Raises:
            NotSupportedError: the kernel has no BTF.
        """
        return self.home(f"bpf_iter_{name}") == "vmlinux"

    def home(self, function: str) -> str | None:
        """
        Return ``vmlinux`` or the kernel module whose BTF has a function.

        Raises:
            NotSupportedError: the kernel has no BTF.
        """
        return self._home(function, Kind.FUNC)

    def tracepoint_home(self, name: str) -> str | None:
        """
        Return ``vmlinux`` or the kernel module whose BTF has a tracepoint.

        Raises:
            NotSupportedError: the kernel has no BTF.
        """
        return self._home(f"btf_trace_{name}", Kind.TYPEDEF)

    def type_id(self, function: str) -> int | None:
        """
        Return the id of a function in ``vmlinux``, as ``attach_btf_id`` has it.

        None if it is in no such place, or cannot be told without the compiled part.

        Raises:
            NotSupportedError: the kernel has no BTF.
        """
        place = self._place(function, Kind.FUNC)
        if place is None or place[0] != "vmlinux" or place[1] == _PRESENT:
            return None
        return place[1] + 1  # 0 is void

    def close(self) -> None:
        """
        Give the memory back; answers given so far stay.
        """
        with self._lock:
            self._modules = None
            self._vmlinux = None

    def _home(self, name: str, kind: Kind) -> str | None:
        place = self._place(name, kind)
        return place and place[0]

    def _place(self, name: str, kind: Kind) -> tuple[str, int] | None:
        with self._lock:
            if (name, kind) not in self._places:
                self._places[name, kind] = self._find(name, kind)
            return self._places[name, kind]

    def _find(self, name: str, kind: Kind) -> tuple[str, int] | None:
        number = self._base().number(name, kind)
        if number != _ABSENT:
            return "vmlinux", number
        for module, btf in self._split().items():
            number = btf.number(name, kind)
            if number != _ABSENT:
                return module, number
        return None

    def _base(self) -> _Image:
        if self._vmlinux is None:
            path = self._folder / "vmlinux"
            if not path.exists():
                feature = "BTF"
                reason = f"there is no {path}; CONFIG_DEBUG_INFO_BTF is off"
                raise NotSupportedError(feature, reason)
            self._vmlinux = _Image(path, None)
        return self._vmlinux

    def _split(self) -> dict[str, _Image]:
        """
        Open the BTF of all loaded kernel modules.
        """
        if self._modules is None:
            base = self._base()
            self._modules = {}
            for path in sorted(self._folder.iterdir()):
                if path.name != "vmlinux":
                    try:
                        self._modules[path.name] = _Image(path, base)
                    except NotSupportedError:
                        continue  # unloaded meanwhile
        return self._modules


class _Image:
    """
    The bytes of one file of BTF; a kernel module's (*base*) has new strings and types only.
    """

    def __init__(self, path: Path, base: _Image | None) -> None:
        try:
            self._data = _contents(path)
            magic, _, _, header, types, types_size, strings, strings_size = _HEADER.unpack_from(
                self._data
            )
        except (OSError, struct.error) as error:
            raise NotSupportedError(_feature(path), str(error)) from error
        self._types = range(header + types, header + types + types_size)
        self._strings = range(header + strings, header + strings + strings_size)
        if magic != MAGIC or max(self._types.stop, self._strings.stop) > len(self._data):
            reason = f"{len(self._data)} bytes with header {self._data[:24].hex()}"
            raise NotSupportedError(_feature(path), reason)
        self._base = base
        #: Offsets of a module's own strings go on where its base's end.
        self._first = len(base._strings) if base else 0  # noqa: SLF001 - of the same class
        self.index: _index.Index | None = None
        above = base.index if base else None
        if Index is not None and (base is None or above is not None):
            places = (
                (self._types.start, self._types.stop),
                (self._strings.start, self._strings.stop),
            )
            self.index = Index(self._data, *places, _KINDS, above)

    def number(self, name: str, kind: Kind) -> int:
        """
        Return the number of the type of that name and kind among this file's own types.

        The first is 0; ``_ABSENT`` without one, ``_PRESENT`` if it cannot be counted.
        """
        if self.index is not None:
            found = self.index.find(name.encode(), kind)
            # Behind a kind of type that is newer than this may be what is not in the index.
            if found >= 0 or self.index.whole:
                return found
        there = any(kind in self._kinds(offset) for offset in self._offsets(name))
        return _PRESENT if there else _ABSENT

    def _offsets(self, name: str) -> Iterator[int]:
        """
        Find a whole string: what types that bear the name refer to it by.
        """
        if self._base:
            yield from self._base._offsets(name)  # noqa: SLF001 - of the same class
        data, wanted = self._searchable(), b"\0" + name.encode() + b"\0"
        at = data.find(wanted, self._strings.start, self._strings.stop)
        while at >= 0:
            yield self._first + at + 1 - self._strings.start
            at = data.find(wanted, at + 1, self._strings.stop)

    def _searchable(self) -> bytes:
        if not isinstance(self._data, bytes):
            self._data = bytes(self._data)
        return self._data

    def _kinds(self, name: int) -> Iterator[int]:
        """
        Find what looks like the first two words of a type of that name; yield its kind.

        Members and parameters begin with a name, too, but the id of a type follows
        it, and none is as large as a kind in the highest byte makes a word.  Beside
        the kinds that are looked for stands nothing, or a function's linkage.
        """
        data, word = self._searchable(), _WORD.pack(name)
        at = data.find(word, self._types.start, self._types.stop)
        while 0 <= at < self._types.stop - 2 * _WORD.size:
            (info,) = _WORD.unpack_from(data, at + _WORD.size)
            if (at - self._types.start) % _WORD.size == 0 and info & 0xFFFFFF <= _LINKAGES:
                yield info >> 24
            at = data.find(word, at + 1, self._types.stop)


def _contents(path: Path) -> bytes | memoryview:
    if Index is None:
        return path.read_bytes()
    with path.open("rb", buffering=0) as stream:
        return memoryview(Contents(stream.fileno()))


def _feature(path: Path) -> str:
    return f"BTF of {path.name}"
