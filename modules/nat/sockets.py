# SPDX-License-Identifier: Apache-2.0
"""
Which sockets the translated connections belong to.

The tcp and udp modules offer tables of their sockets.  A connection has two sides: its
initiator is the socket whose ends are those of the first packet as it was sent, the other
one has the ends behind the translation.  Connections and sockets become known in either
order, and are kept by their ends, so that each finds the other.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import attrs
from kprobe_modules.modules.nat.addresses import OwnAddresses
from kprobe_modules.modules.nat.records import NatRemapped

if TYPE_CHECKING:
    from kprobe_modules.modules.nat.table import Translation

    from kprobe_modules.api import Context, Record

__all__ = ["KEEP_NS", "SocketMatcher"]

KEEP_NS = 2_000_000_000
"""How long a socket that is closed is still found: ctnetlink may tell of it late."""

_TABLES = {"tcp": "socket_table", "udp": "udp_socket_table"}
_ANY = frozenset({"0.0.0.0", "::"})  # noqa: S104 - what a socket is bound to, not ours

_Ends = tuple[str, str, int, str, int]
"""Transport, local and remote address with their ports."""
_Place = tuple[str, int | None, int]
"""Transport, network namespace, local port."""


class Socket(Protocol):
    """
    What is asked of the sockets of other modules.
    """

    socket_id: int
    pid: int | None
    local_address: str
    local_port: int
    remote_address: str | None
    remote_port: int | None

    @property
    def netns(self) -> int | None: ...


class Sockets(Protocol):
    """
    A table of them.
    """

    def follow(self) -> deque[tuple[Socket, bool]]: ...

    def unfollow(self, changes: deque[tuple[Socket, bool]]) -> None: ...


@attrs.define(eq=False)
class _Side:
    """
    One side of a connection: its ends, and the same beyond the translation.
    """

    translation: Translation
    here: _Ends
    beyond: _Ends
    address: bytes
    """The local address."""
    told: set[int] = attrs.field(factory=set)
    """The sockets of which it was told that this is theirs."""

    @property
    def place(self) -> _Place:
        return self.here[0], self.translation.netns, self.here[2]

    def remapped(self, time: int, socket: Socket) -> Record:
        self.told.add(socket.socket_id)
        return NatRemapped(
            time,
            self.translation.conntrack_id,
            socket.socket_id,
            socket.pid,
            socket.netns,
            f"ipv{self.translation.family}",
            *self.here,
            *self.beyond[1:],
        )


def _sides(translation: Translation) -> tuple[_Side, _Side]:
    def ends(local: tuple[bytes, int], remote: tuple[bytes, int]) -> _Ends:
        address = translation.address
        return translation.transport, address(local), local[1], address(remote), remote[1]

    source, destination = translation.source, translation.destination
    behind, before = translation.translated_destination, translation.translated_source
    return (
        _Side(translation, ends(source, destination), ends(before, behind), source[0]),
        _Side(translation, ends(behind, before), ends(destination, source), behind[0]),
    )


@attrs.define(eq=False)
class _Followed:
    """
    A table of another module.
    """

    table: Sockets
    changes: deque[tuple[Socket, bool]]


@attrs.define(eq=False)
class _Entry:
    """
    A socket, by what it is found.
    """

    socket: Socket
    ends: _Ends | None
    """None while it is not connected."""
    place: _Place
    closed: int | None = None
    """When that was noticed, nanoseconds since the epoch."""


Key = TypeVar("Key")
Item = TypeVar("Item")


class _Groups(Generic[Key, Item]):
    """
    Items by a key that several may share, in order.
    """

    def __init__(self) -> None:
        self._groups: dict[Key, dict[Item, None]] = {}

    def get(self, key: Key) -> list[Item]:
        return list(self._groups.get(key, ()))

    def add(self, key: Key, item: Item) -> None:
        self._groups.setdefault(key, {})[item] = None

    def remove(self, key: Key, item: Item) -> None:
        group = self._groups.get(key)
        if group is not None:
            group.pop(item, None)
            if not group:
                del self._groups[key]


class SocketMatcher:
    """
    Finds the sockets of connections, and the connections of sockets.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._own = OwnAddresses(context)
        self._followed: dict[str, _Followed] = {}
        self._entries: dict[tuple[str, int], _Entry] = {}
        self._by_ends: _Groups[_Ends, _Entry] = _Groups()
        self._by_place: _Groups[_Place, _Entry] = _Groups()
        """Those that are not connected."""
        self._sides: dict[int, tuple[_Side, _Side]] = {}
        self._sides_by_ends: _Groups[_Ends, _Side] = _Groups()
        self._sides_by_place: _Groups[_Place, _Side] = _Groups()
        self._closed: deque[_Entry] = deque()
        """Sockets that were closed, in order."""

    # -- connections ----------------------------------------------------------

    def enter(self, time: int, translation: Translation) -> list[Record]:
        """
        Report the sockets of a connection that is new, as far as they are known.
        """
        if translation.transport not in _TABLES:
            return []
        records = self.catch_up(time)
        sides = self._sides[translation.conntrack_id] = _sides(translation)
        for side in sides:
            self._sides_by_ends.add(side.here, side)
            self._sides_by_place.add(side.place, side)
            records += [side.remapped(time, entry.socket) for entry in self._sockets_of(time, side)]
        return records

    def leave(self, translation: Translation) -> None:
        """
        Forget a connection that has ended.
        """
        for side in self._sides.pop(translation.conntrack_id, ()):
            self._sides_by_ends.remove(side.here, side)
            self._sides_by_place.remove(side.place, side)

    def _sockets_of(self, time: int, side: _Side) -> list[_Entry]:
        """
        Return the sockets on a side of a connection: first of all those of its namespace.

        In another namespace several may have the same ends; then it is none of them.
        """
        found = self._by_ends.get(side.here)
        near = [each for each in found if each.socket.netns == side.translation.netns]
        if near:
            return [each for each in near if each.closed is None] or near[-1:]
        if len(found) == 1:
            return found
        bound = self._by_place.get(side.place)
        exact = [each for each in bound if each.socket.local_address == side.here[1]]
        if exact:
            return exact
        anywhere = [each for each in bound if each.socket.local_address in _ANY]
        netns = side.translation.netns
        return anywhere if anywhere and self._own.has(time, netns, side.address) else []

    # -- sockets --------------------------------------------------------------

    def catch_up(self, time: int) -> list[Record]:
        """
        Report the connections of sockets that have come since this was called last.
        """
        self._follow()
        records: list[Record] = []
        for transport, followed in self._followed.items():
            changes = followed.changes
            while changes:
                socket, is_open = changes.popleft()
                if is_open:
                    records += self._open(time, transport, socket)
                else:
                    self._close(time, transport, socket)
        return records

    def _follow(self) -> None:
        """
        Notice that modules with sockets have come or gone.
        """
        for transport, name in _TABLES.items():
            table: Sockets | None = self._context.find(name)  # type: ignore[assignment]
            known = self._followed.get(transport)
            if known is not None and known.table is not table:
                known.table.unfollow(known.changes)
                del self._followed[transport]
                for key in [key for key in self._entries if key[0] == transport]:
                    self._forget(self._entries.pop(key))
            if table is not None and transport not in self._followed:
                self._followed[transport] = _Followed(table, table.follow())

    def _open(self, time: int, transport: str, socket: Socket) -> list[Record]:
        ends = None
        if socket.remote_address is not None and socket.remote_port is not None:
            local = transport, socket.local_address, socket.local_port
            ends = *local, socket.remote_address, socket.remote_port
        elif transport == "tcp":
            return []  # it listens
        entry = _Entry(socket, ends, (transport, socket.netns, socket.local_port))
        former = self._entries.pop((transport, socket.socket_id), None)
        if former is not None:
            self._forget(former)
        self._entries[transport, socket.socket_id] = entry
        if ends is not None:
            self._by_ends.add(ends, entry)
            sides = self._sides_by_ends.get(ends)
        else:
            self._by_place.add(entry.place, entry)
            sides = self._sides_by_place.get(entry.place)
        return [
            side.remapped(time, socket)
            for side in sides
            if socket.socket_id not in side.told and entry in self._sockets_of(time, side)
        ]

    def _close(self, time: int, transport: str, socket: Socket) -> None:
        entry = self._entries.pop((transport, socket.socket_id), None)
        if entry is not None:
            entry.closed = time
            self._closed.append(entry)

    def _forget(self, entry: _Entry) -> None:
        if entry.ends is not None:
            self._by_ends.remove(entry.ends, entry)
        else:
            self._by_place.remove(entry.place, entry)

    def tick(self, now: int) -> list[Record]:
        """
        Report what has been found, and forget the sockets that are closed.
        """
        records = self.catch_up(now)
        while self._closed and now - (self._closed[0].closed or now) >= KEEP_NS:
            self._forget(self._closed.popleft())
        return records

    def close(self) -> None:
        """
        Follow no table any more.
        """
        for followed in self._followed.values():
            followed.table.unfollow(followed.changes)
        self._followed.clear()
