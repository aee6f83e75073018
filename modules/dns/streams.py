# SPDX-License-Identifier: Apache-2.0
"""
Messages out of connections, in which each has its length before it (RFC 1035, 4.2.2).

What is seen are pieces: a message may come in several, and several in one.  A piece that is missing
within a message leaves it cut off; where a length is missing nobody can tell where the next message
begins, and the stream is given up until its socket is closed.
"""

from __future__ import annotations

from collections import OrderedDict

from kprobe_modules.modules.dns.message import HEADER_SIZE

__all__ = ["BUFFERED", "KEPT", "STREAM_COUNT", "StreamTable"]

KEPT = 4096
"""Bytes of a message that are always kept: as many as of a datagram."""

BUFFERED = 8 << 20
"""Bytes of messages under way beyond which no more than that is kept of one."""

_LONGEST = 0xFFFF

STREAM_COUNT = 1024
"""How many streams are followed at most."""

_LENGTH_SIZE = 2


class _LostError(Exception):
    """
    What follows cannot be told apart any more.
    """


class _Stream:
    """
    One direction of a connection.
    """

    __slots__ = ("given_up", "kept", "left", "length", "position", "prefix")

    def __init__(self, position: int) -> None:
        self.position = position
        """Of the next byte."""
        self.prefix = b""
        """The first byte of a length, as long as the second is missing."""
        self.length = 0
        """Of the message that is under way."""
        self.left = 0
        """Bytes of it that are still to come."""
        self.kept = bytearray()
        """What is there of it, without holes."""
        self.given_up = False

    def take(self, data: bytes, room: int, done: list[tuple[bytes, int]]) -> None:
        """
        Go on with bytes; append the messages that end in them, each with its length.

        No more than *room* bytes of a message are kept.
        """
        at = 0
        self.position += len(data)
        while at < len(data):
            if not self.left:
                at = self._begin(data, at)
                continue
            part = data[at : at + self.left]
            at += len(part)
            if len(self.kept) + self.left == self.length:
                self.kept += part[: max(room - len(self.kept), 0)]
            self.left -= len(part)
            if not self.left:
                self._end(done)

    def skip(self, count: int, done: list[tuple[bytes, int]]) -> None:
        """
        Go on behind bytes that are missing.
        """
        if not count:
            return
        if count > self.left:
            raise _LostError
        self.position += count
        self.left -= count
        if not self.left:
            self._end(done)

    def _begin(self, data: bytes, at: int) -> int:
        """
        Read a length, or what there is of it; return the offset behind it.
        """
        following = at + _LENGTH_SIZE - len(self.prefix)
        self.prefix += data[at:following]
        if len(self.prefix) == _LENGTH_SIZE:
            self.length = self.left = int.from_bytes(self.prefix, "big")
            self.prefix = b""
            if self.length < HEADER_SIZE:
                raise _LostError
        return following

    def _end(self, done: list[tuple[bytes, int]]) -> None:
        done.append((bytes(self.kept), self.length))
        self.kept.clear()


class StreamTable:
    """
    Streams by socket and direction.

    Attributes:
        given_up: how many streams had something missing, or did not carry DNS.
        forgotten: how many had to make room for others, in the midst of a message.
    """

    def __init__(self) -> None:
        self.given_up = 0
        self.forgotten = 0
        self._buffered = 0
        """Bytes that all streams keep."""
        self._streams: OrderedDict[tuple[int, int], _Stream] = OrderedDict()

    def feed(
        self, socket_id: int, direction: int, offset: int, payload: bytes, length: int
    ) -> list[tuple[bytes, int]]:
        """
        Go on with a piece; return the messages that end in it.

        Args:
            socket_id: whose stream it is.
            direction: which of its two.
            offset: of the piece in the stream.  The first piece is taken to begin with a message.
            payload: the piece, or its beginning.
            length: bytes of the whole piece.

        Returns:
            Each message, or its beginning, with the length of the whole.
        """
        stream = self._stream(socket_id, direction, offset)
        if stream.given_up:
            return []
        done: list[tuple[bytes, int]] = []
        self._buffered -= len(stream.kept)
        try:
            if offset > stream.position:
                stream.skip(offset - stream.position, done)
            known = stream.position - offset
            if known < length:
                room = _LONGEST if self._buffered < BUFFERED else KEPT
                stream.take(payload[known:], room, done)
                stream.skip(offset + length - stream.position, done)
        except _LostError:
            self._give_up(stream)
        self._buffered += len(stream.kept)
        return done

    def give_up(self, socket_id: int, direction: int) -> None:
        """
        Follow a stream no longer, as it does not carry DNS.
        """
        stream = self._streams.get((socket_id, direction))
        if stream is not None and not stream.given_up:
            self._buffered -= len(stream.kept)
            self._give_up(stream)

    def close(self, socket_id: int) -> None:
        """
        Forget the streams of a socket.
        """
        for direction in (0, 1):
            stream = self._streams.pop((socket_id, direction), None)
            self._buffered -= len(stream.kept) if stream else 0

    def _stream(self, socket_id: int, direction: int, offset: int) -> _Stream:
        key = socket_id, direction
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream(offset)
            if len(self._streams) > STREAM_COUNT:
                _, oldest = self._streams.popitem(last=False)
                self._buffered -= len(oldest.kept)
                self.forgotten += bool(oldest.left or oldest.prefix)
        self._streams.move_to_end(key)
        return stream

    def _give_up(self, stream: _Stream) -> None:
        stream.given_up = True
        stream.kept.clear()
        self.given_up += 1
