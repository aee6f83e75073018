# SPDX-License-Identifier: Apache-2.0
"""
The connections that are translated, and the last that were.
"""

from __future__ import annotations

from collections import OrderedDict
from struct import Struct
from typing import TYPE_CHECKING

import attrs

from kprobe_modules.api import Suspects, format_address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kprobe_modules.api import Context, MapAccess

__all__ = ["ENDED_COUNT", "KINDS", "TRANSLATED_COUNT", "Flow", "Translation", "TranslationTable"]

KINDS = ("none", "source", "destination", "both")
"""``enum km_nat_kind``."""

TRANSLATED_COUNT = 1 << 17
"""How many connections are kept at most; as many as ``seen_conntracks`` holds."""

ENDED_COUNT = 8192
"""How many that have ended are remembered."""

Flow = tuple[int, int, int, bytes, int, bytes, int]
"""Network namespace, zone, protocol, source and destination with their ports: what no two
connections have in common at a time, but for those that race."""

_TRANSPORTS = {
    1: "icmp",
    6: "tcp",
    17: "udp",
    33: "dccp",
    47: "gre",
    50: "esp",
    51: "ah",
    58: "icmpv6",
    132: "sctp",
    136: "udplite",
}
_WITH_PORTS = frozenset({6, 17, 33, 132, 136})

_ID = Struct("<Q")


@attrs.define(eq=False)
class Translation:
    """
    A connection, and what becomes of it.

    Addresses are 16 bytes in network order, of which IPv4 fills the first four.
    """

    conntrack_id: int
    netns: int
    zone: int
    family: int
    """4 or 6."""
    protocol: int
    kind: int
    source: tuple[bytes, int]
    destination: tuple[bytes, int]
    translated_source: tuple[bytes, int]
    translated_destination: tuple[bytes, int]
    existing: bool = False
    kernel_id: int | None = None
    """What ctnetlink calls it, if that has told of it."""
    is_watched: bool = True
    """Whether its end will be told; else it has to be looked for."""
    began: int | None = None
    """CLOCK_MONOTONIC in ns, if ctnetlink has told of its beginning."""
    missed: int = 0
    """How often one after the other it was looked for and not found."""

    @property
    def flow(self) -> Flow:
        """
        What names it while it lasts.
        """
        return (self.netns, self.zone, self.protocol, *self.source, *self.destination)

    @property
    def kind_name(self) -> str:
        """
        What is translated, for people.
        """
        return KINDS[self.kind] if self.kind < len(KINDS) else str(self.kind)

    @property
    def transport(self) -> str:
        """
        The protocol, for people.
        """
        return _TRANSPORTS.get(self.protocol) or str(self.protocol)

    def address(self, end: tuple[bytes, int]) -> str:
        """
        Return the address of one of its ends, for people.
        """
        return format_address(self.family, end[0])

    def port(self, end: tuple[bytes, int]) -> int | None:
        """
        Return the port of one of its ends, if the protocol has such.
        """
        return end[1] if self.protocol in _WITH_PORTS else None


class TranslationTable:
    """
    Connections by id and by flow.

    Attributes:
        forgotten: connections that had to make room for others; what is heard of one of
            them starts it anew.
        unwatched: those whose end nobody tells.
    """

    def __init__(self) -> None:
        self.forgotten = 0
        self.unwatched: dict[int, Translation] = {}
        self._translated: dict[int, Translation] = {}
        self._by_flow: dict[Flow, Translation] = {}
        self._ended: OrderedDict[int, None] = OrderedDict()
        self._suspects: Suspects[int] = Suspects()

    def __len__(self) -> int:
        return len(self._translated)

    def __iter__(self) -> Iterator[Translation]:
        """
        Iterate over a copy of those that last.
        """
        return iter(list(self._translated.values()))

    def get(self, conntrack_id: int) -> Translation | None:
        """
        Return the connection with that id, while it lasts.
        """
        return self._translated.get(conntrack_id)

    def find(self, flow: Flow) -> Translation | None:
        """
        Return the connection with those ends, while it lasts.
        """
        return self._by_flow.get(flow)

    def has_ended(self, conntrack_id: int) -> bool:
        """
        Tell whether it is one of the last that have ended.
        """
        return conntrack_id in self._ended

    def add(self, translation: Translation) -> Translation | None:
        """
        Enter a connection; return the one entered first, which goes when they are too many.
        """
        self._translated[translation.conntrack_id] = translation
        self._by_flow[translation.flow] = translation
        if not translation.is_watched:
            self.unwatched[translation.conntrack_id] = translation
        if len(self._translated) <= TRANSLATED_COUNT:
            return None
        first = next(iter(self._translated.values()))
        self._remove(first)
        self.forgotten += 1
        return first

    def ignore(self, conntrack_id: int) -> None:
        """
        Take no notice of a connection of that id: it is told of under another one.
        """
        self._ended[conntrack_id] = None
        while len(self._ended) > ENDED_COUNT:
            self._ended.popitem(last=False)

    def end(self, translation: Translation) -> None:
        """
        Take a connection out, and remember that it has ended.
        """
        self._remove(translation)
        self.ignore(translation.conntrack_id)

    def _remove(self, translation: Translation) -> None:
        self._translated.pop(translation.conntrack_id, None)
        self.unwatched.pop(translation.conntrack_id, None)
        if self._by_flow.get(translation.flow) is translation:
            del self._by_flow[translation.flow]

    def compare(self, found: MapAccess) -> None:
        """
        Suspect those that the kernel's side does not have.

        Args:
            found: its table; each value begins with the connection's id.
        """
        alive = {_ID.unpack(value)[0] for value in found.values(_ID.size)}
        for conntrack_id in self._translated.keys() - self.unwatched.keys() - alive:
            self._suspects.add(conntrack_id)

    def gone(self, now: int) -> list[Translation]:
        """
        Return those suspected for long enough whose end has not come; they stay in the table.

        Args:
            now: nanoseconds since the epoch.
        """
        due = map(self.get, self._suspects.due(now))
        return [translation for translation in due if translation is not None]

    def warn_of_forgotten(self, context: Context) -> None:
        """
        Log how many had to make room for others since this was asked last.
        """
        if self.forgotten:
            context.log.warning(
                "%d connections were forgotten, as more than %d are translated",
                self.forgotten,
                TRANSLATED_COUNT,
            )
            self.forgotten = 0
