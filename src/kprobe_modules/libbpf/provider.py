# SPDX-License-Identifier: Apache-2.0
"""
Which libbpf is used, and why.

In order: the file that the caller or ``KPROBE_MODULES_LIBBPF`` names, and then
no other; the copy bundled in our wheel; the system's ``libbpf.so.1``; the copy
inside the extension of an installed pylibbpf, which is opened as a plain shared
library, without importing pylibbpf or its dependencies.  The first that has
every required symbol and is at least version 1.0 is taken; nothing newer wins.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from kprobe_modules.errors import LibbpfNotFoundError
from kprobe_modules.libbpf.messages import Messages
from kprobe_modules.libbpf.symbols import OPTIONAL, REQUIRED

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ENVIRONMENT", "OLDEST", "Candidate", "Library", "candidates", "find", "in_use"]

ENVIRONMENT = "KPROBE_MODULES_LIBBPF"

#: Before 1.0 functions report errors in another way.
OLDEST = (1, 0)

SONAME = "libbpf.so.1"

_REMEDY = (
    "install the system's libbpf 1.x (Debian, Ubuntu: apt install libbpf1), "
    "or pip install 'kprobe_modules[pylibbpf]', "
    f"or name one with {ENVIRONMENT}=/path/to/libbpf.so"
)


@attrs.frozen(eq=False, repr=False)
class Candidate:
    """
    One libbpf that could be used.

    Attributes:
        path: the file, or the soname where the dynamic linker decides.
        origin: ``argument``, ``environment``, ``bundled``, ``system`` or
            ``pylibbpf``.
        version: e.g. ``(1, 1)``; None if it could not be asked.
        refusal: why it is not used; None if it is usable.
    """

    path: str
    origin: str
    version: tuple[int, int] | None = None
    refusal: str | None = None

    def __str__(self) -> str:
        version = ".".join(map(str, self.version)) if self.version else "version unknown"
        return f"{self.origin} {self.path} ({version}): {self.refusal or 'usable'}"


class _Refusal(Exception):  # noqa: N818 (control flow, never leaves this file)
    def __init__(self, reason: str, version: tuple[int, int] | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.version = version


class Library:
    """
    One opened libbpf.

    Safe to share between threads.  Stays open for the life of the process: a
    shared library that others may have opened too is never unloaded.

    Attributes:
        origin: where it came from, as in :class:`Candidate`.
        version: e.g. ``(1, 6)``.
        version_string: what it says of itself, e.g. ``v1.6``.
        c: its functions, with their prototypes.
        optional: names of the optional symbols that it has.
        messages: what it prints.
    """

    def __init__(self, path: str, origin: str) -> None:
        self.origin = origin
        self._name = path
        self.c = _open(path)
        self.version = _version(self.c)
        self.optional = _bind(self.c, self.version)
        self.version_string = self.c.libbpf_version_string().decode("ascii", "replace")
        self.messages = Messages(self.c)

    @property
    def path(self) -> str:
        """
        The file it was loaded from.
        """
        return _file_of(self.c.libbpf_version_string) or self._name

    def __repr__(self) -> str:
        return f"<Library {self.version_string} {self.origin} {self._name}>"


class _DlInfo(ctypes.Structure):
    _fields_ = (
        ("file_name", ctypes.c_char_p),
        ("file_base", ctypes.c_void_p),
        ("symbol_name", ctypes.c_char_p),
        ("symbol_address", ctypes.c_void_p),
    )


def _file_of(function: object) -> str | None:
    """
    Ask the dynamic linker which file a function was loaded from.
    """
    dladdr = ctypes.CDLL(None).dladdr
    dladdr.argtypes = (ctypes.c_void_p, ctypes.POINTER(_DlInfo))
    info = _DlInfo()
    address = ctypes.cast(function, ctypes.c_void_p)  # type: ignore[arg-type]
    if not dladdr(address, ctypes.byref(info)) or not info.file_name:
        return None
    return os.path.realpath(os.fsdecode(info.file_name))


def _open(path: str) -> ctypes.CDLL:
    # RTLD_LOCAL: pylibbpf's extension also exports libbpf's internal names,
    # which must not take the place of another library's.
    try:
        return ctypes.CDLL(path, mode=os.RTLD_LOCAL | os.RTLD_NOW, use_errno=True)
    except OSError as error:
        raise _Refusal(str(error)) from None


def _version(c: ctypes.CDLL) -> tuple[int, int]:
    try:
        version = (int(c.libbpf_major_version()), int(c.libbpf_minor_version()))
    except AttributeError:
        # Both came with 0.6.
        reason = "not a libbpf, or one older than 0.6"
        raise _Refusal(reason) from None
    if version < OLDEST:
        reason = "older than {}.{}".format(*OLDEST)
        raise _Refusal(reason, version)
    return version


def _bind(c: ctypes.CDLL, version: tuple[int, int]) -> frozenset[str]:
    """
    Set the prototypes; return the optional names that exist.
    """
    missing = []
    optional = set()
    for names, wanted in ((REQUIRED, True), (OPTIONAL, False)):
        for name, (result, arguments) in names.items():
            try:
                function = getattr(c, name)
            except AttributeError:
                if wanted:
                    missing.append(name)
                continue
            function.restype = result
            function.argtypes = arguments
            if not wanted:
                optional.add(name)
    if missing:
        reason = "lacks " + ", ".join(sorted(missing))
        raise _Refusal(reason, version)
    return frozenset(optional)


def _bundled() -> Iterator[str]:
    # auditwheel puts grafted libraries beside the package they are for.
    package = Path(__file__).resolve().parent.parent
    folder = package.parent / f"{package.name}.libs"
    yield from sorted(map(str, folder.glob("libbpf*.so*")))


def _pylibbpf() -> Iterator[str]:
    # Asking for the top-level name only does not import the package.
    try:
        spec = importlib.util.find_spec("pylibbpf")
    except (ImportError, ValueError):
        return
    for folder in (spec and spec.submodule_search_locations) or ():
        yield from sorted(map(str, Path(folder).glob("pylibbpf.*.so")))


def _places(path: str | None) -> Iterator[tuple[str, str]]:
    """
    Yield (path, origin) in the order of preference.
    """
    named = os.environ.get(ENVIRONMENT)
    if path:
        yield path, "argument"
    elif named:
        yield named, "environment"
    else:
        for found in _bundled():
            yield found, "bundled"
        yield SONAME, "system"
        for found in _pylibbpf():
            yield found, "pylibbpf"


_lock = threading.RLock()
_opened: dict[str, Library] = {}


def _library(path: str, origin: str) -> Library:
    """
    Return the one Library of a path: its print function is set once.
    """
    with _lock:
        library = _opened.get(path)
        if library is None:
            library = _opened[path] = Library(path, origin)
        return library


def _examine(path: str, origin: str) -> tuple[Library | None, Candidate]:
    try:
        library = _library(path, origin)
    except _Refusal as refusal:
        return None, Candidate(path, origin, refusal.version, refusal.reason)
    return library, Candidate(library.path, origin, library.version)


def candidates(path: str | None = None) -> list[Candidate]:
    """
    Open every libbpf there is and say whether it can be used.

    Args:
        path: a file; if given, or if KPROBE_MODULES_LIBBPF is set, it is the
            only candidate.

    Returns:
        candidates in the order of preference.  :func:`find` takes the first
        whose refusal is None.
    """
    return [_examine(place, origin)[1] for place, origin in _places(path)]


def find(path: str | None = None) -> Library:
    """
    Open the libbpf to use.

    Args:
        path: use this file and no other.

    Raises:
        LibbpfNotFoundError: there is none; the message lists each candidate
            with the reason it was refused, and what to do.
    """
    refused = []
    for place, origin in _places(path):
        library, candidate = _examine(place, origin)
        if library is not None:
            return library
        refused.append(str(candidate))
    message = f"no usable libbpf: {'; '.join(refused)}; {_REMEDY}"
    raise LibbpfNotFoundError(message)


def in_use() -> Library:
    """
    Return a library for calls that exchange descriptors and bytes only.

    Any will do for those, so one that this process has open already is taken
    before another is looked for.

    Raises:
        LibbpfNotFoundError: as :func:`find`.
    """
    # No lock: reading a dict is atomic, and this is on the path of every
    # map operation.
    for library in _opened.values():
        return library
    return find()
