# SPDX-License-Identifier: Apache-2.0
"""
A daemon on a real Unix socket that answers HTTP as a test wants it: well, badly or never.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Daemon", "Peer", "reply"]


def reply(body: bytes | dict[str, Any], status: str = "200 OK") -> bytes:
    """
    Return a whole HTTP response.
    """
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


class Peer:
    """
    One connection, as the daemon sees it.
    """

    def __init__(self, connection: socket.socket, over: threading.Event) -> None:
        self._connection = connection
        self._over = over
        self.target = ""

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def sleep(self, seconds: float) -> None:
        """
        Do nothing, until the test is over.
        """
        if self._over.wait(seconds):
            raise ConnectionAbortedError


class Daemon:
    """
    Listens at ``path`` and lets ``behave`` talk to each that connects, in a thread of its own.

    With ``uid`` it is that user who listens, which takes root.
    """

    def __init__(self, path: Path, behave: Callable[[Peer], None], uid: int | None = None) -> None:
        self.path = path
        self._uid = uid
        self.targets: list[str] = []
        self._behave = behave
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self.start()

    def start(self) -> None:
        """
        Listen, also again after `stop`.
        """
        self._over.clear()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        # Whoever calls listen() is who SO_PEERCRED names.
        before = os.geteuid()
        if self._uid is not None:
            os.seteuid(self._uid)
        self._listener.listen(64)
        os.seteuid(before)
        thread = threading.Thread(target=self._accept, args=(self._listener,))
        self._threads = [thread]
        thread.start()

    def stop(self) -> None:
        """
        Stop listening and end every conversation; the socket's file is removed.
        """
        self._over.set()
        if self._listener is not None:
            self.path.unlink(missing_ok=True)
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            for thread in self._threads:
                thread.join(10)
            self._listener.close()
            self._listener = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def _accept(self, listener: socket.socket) -> None:
        while not self._over.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._talk, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(10)
            peer = Peer(connection, self._over)
            request = b""
            while b"\r\n\r\n" not in request:
                chunk = connection.recv(4096)
                if not chunk:
                    return
                request += chunk
            peer.target = request.split(b" ")[1].decode()
            self.targets.append(peer.target)
            self._behave(peer)
