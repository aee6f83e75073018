# SPDX-License-Identifier: Apache-2.0
"""
What libbpf prints: kept for error messages, and sent to a logger.

libbpf has one print function per process and library.  Ours serves the calls
made by this package only: what other users of the same library print goes to
whoever was there before.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import ctypes
import os
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from logging import Logger

__all__ = ["Messages"]

LOGGER = "kprobe_modules.libbpf"
KEPT = 50
_DEBUG = 2  # enum libbpf_print_level
_ROOM = 16384

# The third argument is a va_list.  On both supported architectures a function
# receives it as a pointer (an array decays on x86-64, a large struct is passed
# by reference on arm64), and it is only ever handed on to vsnprintf.
_PrintFunction = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


def filtered(address: int, /) -> int:
    """
    Stand in for native code, which would drop what nobody reads before it gets here.
    """
    return address


def set_quiet(value: bool, /) -> bool:  # noqa: FBT001 - as the native one
    """
    Stand in for native code.
    """
    return value


if os.environ.get("KPROBE_MODULES_PURE", "") in {"", "0"}:
    with contextlib.suppress(ImportError):
        from kprobe_modules.libbpf._print import filtered, set_quiet


class Messages:
    """
    Receive what one libbpf prints.

    Safe to use from several threads: each sees the lines of its own calls.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._vsnprintf = ctypes.CDLL(None).vsnprintf
        self._vsnprintf.argtypes = (
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_void_p,
            ctypes.c_void_p,
        )
        self._mine = threading.local()
        self._recent: collections.deque[str] = collections.deque(maxlen=KEPT)
        self._callback = _PrintFunction(self._print)
        self._set_print = library.libbpf_set_print
        ours = ctypes.cast(self._callback, ctypes.c_void_p).value
        before = self._set_print(filtered(ours or 0))
        self._before = before
        self._chain = _PrintFunction(before) if before else None
        # libbpf outlives the interpreter; this object does not.
        atexit.register(self._set_print, before)

    @property
    def recent(self) -> tuple[str, ...]:
        """
        The last warnings and notes, of any thread, oldest first.
        """
        return tuple(self._recent)

    @contextlib.contextmanager
    def listen(self) -> Iterator[list[str]]:
        """
        Collect the warnings and notes printed by this thread's calls.
        """
        lines: list[str] = []
        outer = getattr(self._mine, "lines", None)
        self._mine.lines = lines
        quiet = set_quiet(_listener() is None)
        try:
            yield lines
        finally:
            set_quiet(quiet)
            self._mine.lines = outer
            if outer is not None:
                outer.extend(lines)

    def _print(self, level: int, template: int, arguments: int) -> int:
        lines: list[str] | None = getattr(self._mine, "lines", None)
        if lines is None:
            return self._chain(level, template, arguments) if self._chain else 0
        log = _listener()
        if level >= _DEBUG and log is None:
            return 0
        room = ctypes.create_string_buffer(_ROOM)
        self._vsnprintf(room, _ROOM, template, arguments)
        text = room.value.decode("utf-8", "replace").rstrip()
        if level < _DEBUG:
            lines.append(text.removeprefix("libbpf: "))
            del lines[:-KEPT]
            self._recent.append(lines[-1])
        if log is not None:
            log.debug("%s", text)
        return 0


def _listener() -> Logger | None:
    """
    Return the logger if it wants to hear of this.

    Who has not imported logging has not asked for it, and importing it takes a
    tenth of the time to the first record.
    """
    logging = sys.modules.get("logging")
    if logging is None or not hasattr(logging, "getLogger"):  # a thread may be importing it
        return None
    log: Logger = logging.getLogger(LOGGER)
    return log if log.isEnabledFor(logging.DEBUG) else None
