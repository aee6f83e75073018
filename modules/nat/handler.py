# SPDX-License-Identifier: Apache-2.0
"""
From messages about conntracks to records, with the table that remembers between them.

What the messages promise is written in ``lifetime.h``: every connection is announced at
least once and its end comes once.  The table turns "at least once" into once, and when a
ring was full and something is missing, it makes the sequence whole again: whatever is heard
first of a connection starts it.

Where no program can be attached, ctnetlink tells the same (``ctnetlink.py``).  It tells no
end of a connection that has no events, so those are looked for.
"""
# ruff: noqa: PLR0913, PLR0917 - a message method takes the fields of its message

from __future__ import annotations

from itertools import islice
from struct import Struct
from time import monotonic_ns, time_ns
from typing import TYPE_CHECKING, Any, ClassVar

from kprobe_modules.modules.nat.ctnetlink import ENTRY, FOUND, LOST, NEW, OVER
from kprobe_modules.modules.nat.namespaces import (
    NETNS,
    EventSockets,
    Subscription,
    dump_all,
    show_all,
)
from kprobe_modules.modules.nat.records import NatEnded, NatTranslated
from kprobe_modules.modules.nat.sockets import SocketMatcher
from kprobe_modules.modules.nat.table import Translation, TranslationTable

from kprobe_modules.api import Handler, KprobeModulesError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kprobe_modules.api import Context, Record

    _Ends = tuple[str, int | None, str, int | None, str, int | None, str, int | None]
    _Subject = tuple[int, int, int, str, str, str]

__all__ = ["LOOK_NS", "SOURCE", "NatHandler"]

SOURCE = "ctnetlink"
"""The source that the manifest names."""

LOOK_NS = 3_000_000_000
"""From one look to the next at what ctnetlink tells nothing of: connections without events,
and namespaces that come and go."""

GONE = 2
"""How many looks that do not find a connection, one after the other, end it."""

_COUNTS = Struct("<II")
"""How many network namespaces are new, and how many are gone."""

_TIMES = Struct("<QQ")
"""Nanoseconds since the epoch, and on CLOCK_MONOTONIC."""


def _subject(translation: Translation) -> _Subject:
    """
    Return the fields with which every record about a connection begins, but for the time.
    """
    return (
        translation.conntrack_id,
        translation.netns,
        translation.zone,
        f"ipv{translation.family}",
        translation.transport,
        translation.kind_name,
    )


def _ends(translation: Translation) -> _Ends:
    """
    Return the fields behind these.
    """
    address, port = translation.address, translation.port
    ends = (
        translation.source,
        translation.destination,
        translation.translated_source,
        translation.translated_destination,
    )
    first, second, third, fourth = ((address(end), port(end)) for end in ends)
    return *first, *second, *third, *fourth


class NatHandler(Handler):
    """
    Handles the messages of ``messages.h``, and what ctnetlink tells.
    """

    tick_interval: ClassVar[float] = 0.25

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._table = TranslationTable()
        self._matcher = SocketMatcher(context)
        self._sockets: EventSockets | None = None
        self._last_id = 0
        """The last that was given to a connection which ctnetlink has told of."""
        self._next_look = 0
        """When to look again, nanoseconds since the epoch."""
        self._silent: set[int] = set()
        """Network namespaces that make no events."""
        self._looks = 0
        """How many looks are to follow although no connection needs them: messages of
        ctnetlink were lost."""

    # -- messages -----------------------------------------------------------

    def on_nf_conntrack_alter_reply(
        self,
        time: int,
        conntrack_id: int,
        original_source: bytes,
        original_destination: bytes,
        translated_source: bytes,
        translated_destination: bytes,
        original_source_port: int,
        original_destination_port: int,
        translated_source_port: int,
        translated_destination_port: int,
        netns: int,
        zone: int,
        family: int,
        protocol: int,
        kind: int,
    ) -> Iterable[Record]:
        """
        Enter a connection that was confirmed, unless it is known already.
        """
        heard = Translation(
            conntrack_id, netns, zone, family, protocol, kind,
            (original_source, original_source_port),
            (original_destination, original_destination_port),
            (translated_source, translated_source_port),
            (translated_destination, translated_destination_port),
        )  # fmt: skip
        return self._announced(time, heard)

    def on_existing_conntrack_tuple(
        self,
        time: int,
        conntrack_id: int,
        original_source: bytes,
        original_destination: bytes,
        translated_source: bytes,
        translated_destination: bytes,
        original_source_port: int,
        original_destination_port: int,
        translated_source_port: int,
        translated_destination_port: int,
        netns: int,
        zone: int,
        family: int,
        protocol: int,
        kind: int,
    ) -> Iterable[Record]:
        """
        Enter a connection that was found, unless it is known already.
        """
        heard = Translation(
            conntrack_id, netns, zone, family, protocol, kind,
            (original_source, original_source_port),
            (original_destination, original_destination_port),
            (translated_source, translated_source_port),
            (translated_destination, translated_destination_port),
            existing=True,
        )  # fmt: skip
        return self._announced(time, heard)

    def on_nf_nat_cleanup_conntrack(
        self,
        time: int,
        conntrack_id: int,
        original_source: bytes,
        original_destination: bytes,
        translated_source: bytes,
        translated_destination: bytes,
        original_source_port: int,
        original_destination_port: int,
        translated_source_port: int,
        translated_destination_port: int,
        netns: int,
        zone: int,
        family: int,
        protocol: int,
        kind: int,
        duration: int,
        missed: int,
    ) -> Iterable[Record]:
        """
        End a connection, which was started if that was lost.
        """
        known = self._table.get(conntrack_id)
        if missed:
            return (self._end(time, known, None),) if known is not None else ()
        heard = Translation(
            conntrack_id, netns, zone, family, protocol, kind,
            (original_source, original_source_port),
            (original_destination, original_destination_port),
            (translated_source, translated_source_port),
            (translated_destination, translated_destination_port),
            existing=True,
        )  # fmt: skip
        known = known or self._unwatched(heard)
        if known is not None:
            return (self._end(time, known, None if known.existing else duration),)
        if self._table.has_ended(conntrack_id):
            return ()
        return *self._enter(time, heard), self._end(time, heard, None)

    # -- the table ----------------------------------------------------------

    def _announced(self, time: int, heard: Translation) -> Iterable[Record]:
        """
        Enter a connection that a program has told of.
        """
        if self._table.get(heard.conntrack_id) or self._table.has_ended(heard.conntrack_id):
            return ()
        if self._unwatched(heard) is not None:
            self._table.ignore(heard.conntrack_id)
            return ()
        return self._enter(time, heard)

    def _unwatched(self, heard: Translation) -> Translation | None:
        """
        Return the connection that was found in a dump and is the same, if there is one.
        """
        known = self._table.find(heard.flow)
        return known if known is not None and not known.is_watched else None

    def _enter(self, time: int, translation: Translation) -> list[Record]:
        forgotten = self._table.add(translation)
        if forgotten is not None:
            self._matcher.leave(forgotten)
        said = NatTranslated(
            time, *_subject(translation), *_ends(translation), translation.existing
        )
        return [said, *self._matcher.enter(time, translation)]

    def _end(self, time: int, translation: Translation, duration: int | None) -> Record:
        self._table.end(translation)
        self._matcher.leave(translation)
        return NatEnded(time, *_subject(translation), *_ends(translation), duration)

    # -- ctnetlink ------------------------------------------------------------

    def open_source(self, source: str) -> Subscription:
        """
        Listen to ctnetlink in every network namespace.

        Raises:
            OSError: without ctnetlink, or CAP_NET_ADMIN.
        """
        if source != SOURCE:
            super().open_source(source)
        if self._sockets is None or not self._sockets.users:
            self._sockets = EventSockets(self.context)
        return Subscription(self._sockets)

    def read_source(self, source: str) -> Iterable[Record]:
        """
        Report what ctnetlink has told.
        """
        del source
        return self._observe("events", self._heard_now)

    def _heard_now(self) -> Iterable[bytes]:
        return self._sockets.read() if self._sockets is not None else ()

    def _observe(self, what: str, look: Callable[[], Iterable[bytes]]) -> list[Record]:
        """
        Report what entries say; they are of now.
        """
        raw = self.context.observe(
            what, lambda: b"".join((_TIMES.pack(time_ns(), monotonic_ns()), *look()))
        )
        now = _TIMES.unpack_from(raw)
        records: list[Record] = []
        for entry in ENTRY.iter_unpack(raw[_TIMES.size :]):
            records += self._told(now, entry[0], entry[6], _translation(entry))
        return records

    def _told(
        self, now: tuple[int, int], what: int, kernel_id: int, heard: Translation
    ) -> Iterable[Record]:
        """
        Report what one entry says.
        """
        time, monotonic = now
        if what == LOST:
            self.context.log.warning(
                "ctnetlink has lost messages of network namespace %d; what is there is looked "
                "at again",
                heard.netns,
            )
            self._looks, self._next_look = GONE, 0
            return ()
        known = self._table.find(heard.flow)
        is_same = known is not None and known.kernel_id in (None, kernel_id)
        if what == OVER:
            if known is None or not is_same:
                return ()
            duration = None if known.began is None else monotonic - known.began
            return (self._end(time, known, duration),)
        if known is not None and is_same:
            known.kernel_id, known.missed = kernel_id, 0
            return ()
        # One that has ended unheard had the same ends.
        before = [self._end(time, known, None)] if known is not None else []
        heard.conntrack_id = self._last_id = max(self._last_id + 1, time)
        heard.existing = what == FOUND
        heard.is_watched = what == NEW
        heard.began = monotonic if what == NEW else None
        return *before, *self._enter(time, heard)

    # -- looking --------------------------------------------------------------

    def _listens(self) -> bool:
        return SOURCE in (self.context.live.get("start"), self.context.live.get("end"))

    def _follow_namespaces(self, now: int) -> list[Record]:
        """
        Listen in new network namespaces; end what was in those that are gone.
        """
        raw = self.context.observe("namespaces", self._follow)
        counts, numbers = _COUNTS.unpack_from(raw), [*NETNS.iter_unpack(raw[_COUNTS.size :])]
        rest = iter(number for (number,) in numbers)
        new, gone = (set(islice(rest, count)) for count in counts)
        self._silent = set(rest)
        records = [self._end(now, each, None) for each in self._table if each.netns in gone]
        if new:
            records += self._observe("dump", lambda: dump_all(self.context, new))
        return records

    def _follow(self) -> bytes:
        if self._sockets is None:
            return bytes(_COUNTS.size)
        new, gone, silent = self._sockets.follow()
        numbers = map(NETNS.pack, (*new, *gone, *silent))
        return b"".join((_COUNTS.pack(len(new), len(gone)), *numbers))

    def _look(self, now: int) -> list[Record]:
        """
        Find connections of which nothing was told, and those that have ended so.
        """
        everywhere = self._looks > 0
        self._looks = max(0, self._looks - 1)
        candidates = [
            each
            for each in self._table
            if everywhere or not each.is_watched or each.netns in self._silent
        ]
        places = None if everywhere else {each.netns for each in candidates} | self._silent
        for each in candidates:
            each.missed += 1
        records = self._observe("dump", lambda: dump_all(self.context, places))
        return records + [
            self._end(now, each, None)
            for each in candidates
            if each.missed >= GONE and self._table.get(each.conntrack_id) is each
        ]

    # -- the rest of a module's life ----------------------------------------

    def attached(self) -> None:
        """
        Refuse to be told of connections by programs without being told of their ends.

        Raises:
            KprobeModulesError: where a user has chosen so.
        """
        live = self.context.live
        by_programs = [hook for hook in ("start", "existing") if live.get(hook, SOURCE) != SOURCE]
        if live.get("end") == SOURCE and by_programs:
            msg = f"hook end is served by {SOURCE}, expected the same of {', '.join(by_programs)}"
            raise KprobeModulesError(msg)

    def poke(self, hook: str) -> None:
        """
        Make ctnetlink write all connections, in every network namespace.
        """
        del hook
        show_all(self.context)

    def scan(self, hook: str) -> Iterable[Record]:
        """
        Report what ctnetlink says is there.
        """
        del hook
        return self._observe("dump", lambda: dump_all(self.context))

    def steady(self, *, resync: bool) -> Iterable[Record]:
        """
        After a loss, look for connections whose end was lost.
        """
        if resync and not self._listens():
            self._table.compare(self.context.map("seen_conntracks"))
        return ()

    def tick(self, now: int) -> Iterable[Record]:
        """
        Look for what nobody tells, and find the sockets of connections.
        """
        records: list[Record] = []
        if now >= self._next_look:
            self._next_look = now + LOOK_NS
            if self._listens():
                records += self._follow_namespaces(now)
            if self._table.unwatched or self._looks or self._silent:
                records += self._look(now)
        records += [self._end(now, each, None) for each in self._table.gone(now)]
        self._table.warn_of_forgotten(self.context)
        return [*records, *self._matcher.tick(now)]

    def detached(self) -> None:
        """
        Follow the sockets of other modules no more.
        """
        self._matcher.close()


def _translation(entry: tuple[Any, ...]) -> Translation:
    """
    Make a connection, without an id yet, of what an entry says.
    """
    (
        _, family, protocol, kind, zone, netns, kernel_id,
        source, destination, before, behind,
        source_port, destination_port, before_port, behind_port,
    ) = entry  # fmt: skip
    return Translation(
        0, netns, zone, family, protocol, kind,
        (source, source_port),
        (destination, destination_port),
        (before, before_port),
        (behind, behind_port),
        kernel_id=kernel_id,
    )  # fmt: skip
