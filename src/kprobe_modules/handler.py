# SPDX-License-Identifier: Apache-2.0
"""
The handler a module brings, and the context the collector gives it.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, ClassVar, Protocol

import attrs

from kprobe_modules.errors import ManifestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from logging import Logger
    from pathlib import Path

    from kprobe_modules.records import Record

__all__ = ["Context", "DataChunk", "Handler", "MapAccess", "Source"]


@attrs.frozen(eq=False, repr=False)
class DataChunk:
    """
    One message of the ``data_channel``, read in step with a control message.
    """

    time: int
    """Nanoseconds since the epoch."""
    cpu: int
    message: int
    """The message id that the program gave."""
    payload: bytes
    """Everything behind the header."""


class Source(Protocol):
    """
    Something with a descriptor that becomes readable, such as a netlink socket.
    """

    def fileno(self) -> int:
        """
        Return the descriptor to wait for.
        """

    def close(self) -> None:
        """
        End it.  Safe to call twice.
        """


class MapAccess(Protocol):
    """
    A BPF map as handlers see it: keys and values are bytes.
    """

    def lookup(self, key: bytes) -> bytes | None:
        """
        Return the value of a key, or None.
        """

    def lookup_percpu(self, key: bytes) -> list[bytes] | None:
        """
        Return the value of a key of a per-CPU map on every possible CPU, or None.
        """

    def update(self, key: bytes, value: bytes) -> None:
        """
        Insert or replace.
        """

    def delete(self, key: bytes) -> bool:
        """
        Delete; tell whether the key was there.
        """

    def keys(self) -> Iterator[bytes]:
        """
        Iterate over keys; what changes meanwhile may be missed or seen twice.
        """

    def values(self, size: int | None = None) -> Iterator[bytes]:
        """
        Iterate over values, or the first *size* bytes of each; not for per-CPU maps.

        Those of a hash map are read in bulk, unless a capture wants to see each.
        """


def _look(_what: str, look: Callable[[], bytes]) -> bytes:
    return look()


@attrs.frozen(eq=False, repr=False)
class Context:
    """
    What a handler may know of the collector that runs it.
    """

    name: str
    """The module's name."""
    tunables: Mapping[str, int | bool]
    """Values of the object's tunables, as they were set."""
    proc_root: Path
    """Where procfs is mounted."""
    provide: Callable[[str, object], None]
    """Offer an object to other modules' handlers under a name, while attached."""
    find: Callable[[str], object | None]
    """Return what some handler offers under a name, or None: it may be absent."""
    data: Callable[[int, int], list[DataChunk]]
    """``data(cpu, until)``: this module's data messages of a CPU, not newer than *until*
    (nanoseconds since the epoch), in the order they were written; each is returned once."""
    live: Mapping[str, str]
    """Hook name to the program or source that is live; a hook without one is absent."""
    map: Callable[[str], MapAccess]
    """``map(name)``: one of the module's own or common maps, once it is loaded."""
    program_fd: Callable[[str], int]
    """``program_fd(name)``: descriptor of one of its programs, once it is loaded."""
    observe: Callable[[str, Callable[[], bytes]], bytes] = _look
    """``observe(what, look)``: what *look* returns, or the `OSError` it raises.

    Whatever a handler reads that is no message, a file of ``/proc`` or what its source
    says, it reads through this, in the thread that called it: a capture keeps what was
    seen, and a replay gives it back without looking.  *what* names it for that; asked
    twice within one call, it is answered in the same order."""

    @property
    def log(self) -> Logger:
        """
        The module's logger.
        """
        # Only who logs pays for the import: a tenth of the time to the first record.
        from logging import getLogger

        return getLogger(f"kprobe_modules.modules.{self.name}")


class Handler:
    """
    Turns one module's messages into records.

    For each message the handler defines ``on_<message>``.  The parameter names
    pick fields of the message's layout; only these are decoded.  ``time`` (ns since
    the epoch) and ``cpu`` come from the header; character arrays and tails arrive
    as bytes.  It returns a record, an iterable of records, or None.

    A message that maps to a record without further thought is named in
    ``direct`` instead, with a record class whose fields all occur in the layout;
    that is the fast path.

    A handler runs under the collector's lock, in the thread that polls.  What it
    raises is counted and reported as a `Failure`, and only that message is lost.
    """

    direct: ClassVar[Mapping[str, type[Record]]] = {}

    tick_interval: ClassVar[float] = 1.0
    """Seconds between calls of `tick`, as long as the collector is polled."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def attached(self) -> None:
        """
        Do what is to be done once all hooks are live, before the first scan.
        """

    def poke(self, hook: str) -> None:
        """
        Make the kernel look at everything that exists.

        Called during a scan when the live alternative of an EXISTING hook is not
        an iterator: the hook is attached for as long as this runs.
        """

    def surroundings(self, hook: str) -> Iterable[AbstractContextManager[object]]:
        """
        Return what to enter for a scan with an iterator, which runs once in each.

        Some iterators see one network namespace only: return one
        `network_namespace` for each that matters.  By default it runs once, here.
        """
        del hook
        return (nullcontext(),)

    def scan(self, hook: str) -> Iterable[Record]:
        """
        Return records of everything that exists, found without the kernel's programs.

        Called when the live alternative of an EXISTING hook is a source.
        """
        del hook
        return ()

    def open_source(self, source: str) -> Source:
        """
        Open what this handler reads itself, for an alternative that is a source.

        Raises:
            OSError: when this machine does not have it; the next alternative is tried.
        """
        msg = f"{self.context.name}: the handler has no source named {source!r}"
        raise ManifestError(msg)

    def read_source(self, source: str) -> Iterable[Record]:
        """
        Return what an open source that is readable says.
        """
        del source
        return ()

    def steady(self, *, resync: bool) -> Iterable[Record]:
        """
        Return what ends a scan, when all that it found has been handled.
        """
        del resync
        return ()

    def tick(self, now: int) -> Iterable[Record]:
        """
        Return what time brings, every `tick_interval` while the collector is polled.

        Args:
            now: nanoseconds since the epoch; everything that happened until then
                has been handled.
        """
        del now
        return ()

    def detached(self) -> None:
        """
        Do what is to be done once the module's last message was handled, before it is freed.
        """
