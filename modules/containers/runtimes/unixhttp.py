# SPDX-License-Identifier: Apache-2.0
"""
One HTTP request over a Unix socket, with an end to it in time and in size.

`http.client` knows HTTP; what it lacks is AF_UNIX, a deadline for the whole exchange instead
of each read (a byte now and then would keep it waiting forever), and a limit.
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = ["AbsentError", "Exchanges", "Reply", "UnreachableError", "get"]


OVERHEAD: Final = 1 << 17
"""Bytes that may come besides the body: heads, lengths of chunks, what is read ahead."""

_CREDENTIALS: Final = struct.Struct("iII")
"""``struct ucred`` of <linux/socket.h>: pid, uid, gid."""


class UnreachableError(OSError):
    """
    Nobody answered properly: no socket, nobody listening, too slow, or hung up.
    """


class AbsentError(UnreachableError):
    """
    There is no such socket.
    """


@attrs.frozen
class Reply:
    """
    What came back, whatever its status.
    """

    status: int
    body: bytes
    """At most ``limit`` bytes and one more, which says that there was more."""


class Exchanges:
    """
    The connections that are open, so that somebody else can end them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._over = False

    @contextmanager
    def holding(self, connection: socket.socket) -> Iterator[None]:
        """
        Know the connection while this lasts, and close it then.
        """
        with connection:
            with self._lock:
                self._open.add(connection)
            try:
                yield
            finally:
                with self._lock:
                    self._open.discard(connection)

    def check(self) -> None:
        """
        Raise `UnreachableError` after `cancel`: to be called once a connection is made.
        """
        with self._lock:
            if self._over:
                msg = "no more requests: closing"
                raise UnreachableError(msg)

    def cancel(self) -> None:
        """
        Make whoever waits for an answer fail now, and everybody from now on.
        """
        with self._lock:
            self._over = True
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # not connected yet: its owner will call `check`


class _BoundedSocket(socket.socket):
    """
    A socket whose every wait ends at one moment, and that takes so much and no more.

    The second is for what `http.client` does not count: heads, and chunks of length -1.
    """

    deadline: float = 0.0
    room: int = 0

    def arm(self) -> None:
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self.settimeout(remaining)

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        self.arm()
        count = super().recv_into(buffer, nbytes, flags)
        self.room -= count
        if self.room < 0:
            msg = "it does not end"
            raise http.client.HTTPException(msg)
        return count

    def sendall(self, data: ReadableBuffer, flags: int = 0) -> None:
        self.arm()
        super().sendall(data, flags)


class _Connection(http.client.HTTPConnection):
    """
    `http.client.HTTPConnection` over a socket that is connected already.
    """

    def __init__(self, connection: socket.socket) -> None:
        super().__init__("localhost")
        self.sock = connection

    def connect(self) -> None:
        """
        Refuse to connect again, as `http.client` would by itself, over TCP.
        """
        raise http.client.NotConnected


def get(
    path: str,
    target: str,
    *,
    seconds: float,
    limit: int,
    exchanges: Exchanges,
    uid: int | None = None,
) -> Reply:
    """
    Return the reply to ``GET target`` from whoever listens at the Unix socket *path*.

    Args:
        path: of the socket.
        target: the path in the request, of ASCII letters, digits and ``/._-``.
        seconds: how long all of it may take.
        limit: bytes of the body that are wanted at most; one more is returned if there is more.
        exchanges: knows the connection meanwhile.
        uid: who has to be listening, if that matters.  A user's path can lead to any socket,
            and this process may be allowed to talk to more than the user is.

    Raises:
        AbsentError: there is no such socket.
        UnreachableError: with the reason, also after `Exchanges.cancel`.
    """
    connection = _BoundedSocket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.room = limit + OVERHEAD
    connection.deadline = time.monotonic() + seconds
    with exchanges.holding(connection):
        try:
            connection.arm()
            connection.connect(path)
            exchanges.check()
            if uid is not None:
                _check_peer(connection, uid)
            return _exchange(connection, target, limit)
        except TimeoutError:
            msg = f"no complete answer within {seconds:g} s"
            raise UnreachableError(msg) from None
        except BlockingIOError:
            # connect() to a Unix socket does not wait for room in the backlog, unix(7).
            msg = "it accepts no more connections"
            raise UnreachableError(msg) from None
        except FileNotFoundError as error:
            raise AbsentError(error.strerror) from None
        except UnreachableError:
            raise
        except OSError as error:
            raise UnreachableError(error.strerror or str(error)) from error
        except (http.client.HTTPException, ValueError) as error:
            # ValueError is what http.client makes of lengths below zero.
            msg = f"no complete HTTP answer: {type(error).__name__} {str(error)[:120]}"
            raise UnreachableError(msg) from error


def _check_peer(connection: socket.socket, uid: int) -> None:
    """
    Refuse a listener of somebody else's: unix(7), SO_PEERCRED.
    """
    size = _CREDENTIALS.size
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _, found, _ = _CREDENTIALS.unpack(raw)
    if found != uid:
        msg = f"expected user {uid} to listen there, found {found}"
        raise UnreachableError(msg)


def _exchange(connection: socket.socket, target: str, limit: int) -> Reply:
    client = _Connection(connection)
    client.request("GET", target, headers={"Accept": "application/json", "Connection": "close"})
    with client.getresponse() as response:
        body = response.read(limit + 1)
        # A head that was cut short looks complete to http.client.
        headless = not body and response.length is None and not response.chunked
        if headless or (response.length and len(body) <= limit):
            raise http.client.IncompleteRead(body, response.length)
        return Reply(response.status, body)
