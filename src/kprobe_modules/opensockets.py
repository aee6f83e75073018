# SPDX-License-Identifier: Apache-2.0
"""
The sockets that a handler knows to be open, and the last that were.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from struct import Struct
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from kprobe_modules.suspects import Suspects

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kprobe_modules.handler import Context, MapAccess

__all__ = ["ENDED_COUNT", "OPEN_COUNT", "OpenSockets"]

ENDED_COUNT = 8192
"""How many sockets that have ended are remembered."""

OPEN_COUNT = 1 << 16
"""How many open sockets are kept at most."""

_ID = Struct("<Q")


class Named(Protocol):
    """
    What a table of sockets asks of them.
    """

    @property
    def socket_id(self) -> int:
        """
        The number that no other socket gets.
        """


SocketT = TypeVar("SocketT", bound=Named)


class OpenSockets(Generic[SocketT]):
    """
    Sockets by id.

    Attributes:
        forgotten: open sockets that had to make room for others; what is heard of one of
            them starts it anew.
    """

    def __init__(self) -> None:
        self.forgotten = 0
        self._open: dict[int, SocketT] = {}
        self._ended: OrderedDict[int, SocketT] = OrderedDict()
        self._suspects: Suspects[int] = Suspects()
        self._followers: list[deque[tuple[SocketT, bool]]] = []

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[SocketT]:
        """
        Iterate over a copy of those that are open.
        """
        return iter(list(self._open.values()))

    def get(self, socket_id: int) -> SocketT | None:
        """
        Return the open socket with that id.
        """
        return self._open.get(socket_id)

    def ended(self, socket_id: int) -> SocketT | None:
        """
        Return the socket with that id if it is one of the last that have ended.
        """
        return self._ended.get(socket_id)

    def add(self, socket: SocketT) -> None:
        """
        Enter a socket that is open; the one entered first goes when they are too many.
        """
        self._open[socket.socket_id] = socket
        for changes in self._followers:
            changes.append((socket, True))
        if len(self._open) > OPEN_COUNT:
            self.remove(next(iter(self._open.values())))
            self.forgotten += 1

    def remove(self, socket: SocketT) -> None:
        """
        Take a socket out, without a trace.
        """
        if self._open.pop(socket.socket_id, None) is not None:
            for changes in self._followers:
                changes.append((socket, False))

    def end(self, socket: SocketT) -> None:
        """
        Take a socket out, and remember that it has ended.
        """
        self.remove(socket)
        self._ended[socket.socket_id] = socket
        while len(self._ended) > ENDED_COUNT:
            self._ended.popitem(last=False)

    def follow(self) -> deque[tuple[SocketT, bool]]:
        """
        Return a queue for another module's handler, which empties it in each of its ticks.

        It gets each socket that is entered (true) and each that is taken out (false), in
        order, beginning with those that are open.  One whose port changes is taken out
        and entered again.
        """
        changes = deque((socket, True) for socket in self._open.values())
        self._followers.append(changes)
        return changes

    def unfollow(self, changes: deque[tuple[SocketT, bool]]) -> None:
        """
        Put nothing more into a queue that `follow` has returned.
        """
        self._followers = [each for each in self._followers if each is not changes]

    def compare(self, found: MapAccess) -> None:
        """
        Suspect those that the kernel's side does not have.

        Args:
            found: its table; each value begins with the socket's id.
        """
        alive = {_ID.unpack(value)[0] for value in found.values(_ID.size)}
        for socket_id in self._open.keys() - alive:
            self._suspects.add(socket_id)

    def gone(self, now: int) -> list[SocketT]:
        """
        Return those suspected for long enough whose end has not come; they stay in the table.

        Args:
            now: nanoseconds since the epoch.
        """
        due = map(self.get, self._suspects.due(now))
        return [socket for socket in due if socket is not None]

    def warn_of_forgotten(self, context: Context) -> None:
        """
        Log how many had to make room for others since this was asked last.
        """
        if self.forgotten:
            context.log.warning(
                "%d sockets were forgotten, as more than %d are open", self.forgotten, OPEN_COUNT
            )
            self.forgotten = 0
