# SPDX-License-Identifier: Apache-2.0
"""
One HTTP request against daemons that answer well, badly, slowly and not at all.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
from kprobe_modules.modules.containers.runtimes.unixhttp import (
    AbsentError,
    Exchanges,
    Reply,
    UnreachableError,
    get,
)

from tests.support.daemon import Daemon, Peer, reply

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIMIT = 10_000
PATIENCE = 0.5
"""Seconds that a request may take here."""
SLACK = 5.0
"""Seconds by which a busy machine may be late."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def ask(path: Path, seconds: float = PATIENCE, exchanges: Exchanges | None = None) -> Reply:
    return get(
        str(path), "/x/json", seconds=seconds, limit=LIMIT, exchanges=exchanges or Exchanges()
    )


def chunked(*chunks: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)


def whole(peer: Peer) -> None:
    peer.send(reply(b"hello"))


def in_chunks(peer: Peer) -> None:
    peer.send(chunked(b"hel", b"lo", b""))


def until_the_end(peer: Peer) -> None:
    peer.send(b"HTTP/1.0 200 OK\r\n\r\nhello")


def in_pieces(peer: Peer) -> None:
    for byte in reply(b"hello"):
        peer.send(bytes([byte]))


def after_a_continue(peer: Peer) -> None:
    peer.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + reply(b"hello"))


@pytest.mark.parametrize("behave", [whole, in_chunks, until_the_end, in_pieces, after_a_continue])
def test_an_answer(path: Path, behave: Callable[[Peer], None]) -> None:
    with Daemon(path, behave) as daemon:
        assert ask(path, SLACK) == Reply(200, b"hello")
        assert daemon.targets == ["/x/json"]


def test_another_status_is_an_answer_too(path: Path) -> None:
    with Daemon(path, lambda peer: peer.send(reply(b"none", "404 Not Found"))):
        assert ask(path, SLACK) == Reply(404, b"none")


def test_nothing_there(path: Path) -> None:
    with pytest.raises(AbsentError, match="No such file"):
        ask(path)


def test_nobody_listens(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))

        with pytest.raises(UnreachableError, match="refused") as raised:
            ask(path)
    assert not isinstance(raised.value, AbsentError)


def test_a_file_that_is_no_socket(path: Path) -> None:
    path.touch()
    with pytest.raises(UnreachableError, match="refused"):
        ask(path)


def test_a_path_too_long(path: Path) -> None:
    with pytest.raises(UnreachableError, match="too long"):
        ask(path / ("x" * 200))


def silent(peer: Peer) -> None:
    peer.sleep(60)


def drip_body(peer: Peer) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
    drip(peer, b"x")


def drip_head(peer: Peer) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\nX: ")
    drip(peer, b"x")


def drip_continues(peer: Peer) -> None:
    drip(peer, b"HTTP/1.1 100 Continue\r\n\r\n")


def drip_chunks(peer: Peer) -> None:
    peer.send(chunked(b"x"))
    drip(peer, b"1\r\nx\r\n")


def drip(peer: Peer, data: bytes) -> None:
    while True:
        peer.send(data)
        peer.sleep(0.02)


@pytest.mark.parametrize("behave", [silent, drip_body, drip_head, drip_continues, drip_chunks])
def test_too_slow(path: Path, behave: Callable[[Peer], None]) -> None:
    """
    The deadline is for all of it: a byte now and then does not move it.
    """
    with Daemon(path, behave):
        started = time.monotonic()
        with pytest.raises(UnreachableError, match=r"within 0\.5 s"):
            ask(path)
        assert PATIENCE <= time.monotonic() - started < PATIENCE + SLACK


def test_does_not_accept(path: Path) -> None:
    """
    Nobody takes connections, and the backlog is full: connecting would wait without end.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        waiting = []
        for _ in range(2):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(0)
            client.connect_ex(str(path))
            waiting.append(client)

        with pytest.raises(UnreachableError, match="no more connections"):
            ask(path)
        for client in waiting:
            client.close()


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x50",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000,
    ],
    ids=range(13),
)
def test_cut_short_or_not_http(path: Path, said: bytes) -> None:
    with Daemon(path, lambda peer: peer.send(said)), pytest.raises(UnreachableError):
        ask(path, SLACK)


@pytest.mark.parametrize("length", [b"1e9", b"-5", b"five", b"\xff"])
def test_a_length_that_is_none_ends_with_the_connection(path: Path, length: bytes) -> None:
    said = b"HTTP/1.1 200 OK\r\nContent-Length: " + length + b"\r\n\r\nhello"
    with Daemon(path, lambda peer: peer.send(said)):
        assert ask(path, SLACK) == Reply(200, b"hello")


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 4000 + b"\r\n",
    ],
    ids=["endless", "long", "chunk", "longest"],
)
def test_too_much(path: Path, head: bytes) -> None:
    """
    No more is taken than the limit, however much there is.
    """
    sent = 0

    def flood(peer: Peer) -> None:
        nonlocal sent
        peer.send(head)
        while True:
            peer.send(b"x" * 65536)
            sent += 65536

    with Daemon(path, flood):
        found = ask(path, SLACK)
    assert (found.status, len(found.body)) == (200, LIMIT + 1)
    assert sent < 1 << 24


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "more"),
    [
        (CHUNKED + b"-1\r\n", b"x" * 65536),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        (CHUNKED, b"1;" + b"x" * 60000 + b"\r\nx\r\n"),
    ],
    ids=["chunk", "heads", "extensions"],
)
def test_too_much_besides_the_body(path: Path, head: bytes, more: bytes) -> None:
    sent = 0

    def flood(peer: Peer) -> None:
        nonlocal sent
        peer.send(head)
        while True:
            peer.send(more)
            sent += len(more)

    with Daemon(path, flood), pytest.raises(UnreachableError, match="does not end"):
        ask(path, 60)
    assert sent < 1 << 20


def test_cancelled_while_waiting(path: Path) -> None:
    exchanges = Exchanges()
    with Daemon(path, silent) as daemon:
        timer = threading.Timer(0.2, exchanges.cancel)
        timer.start()
        started = time.monotonic()
        with pytest.raises(UnreachableError):
            ask(path, 60, exchanges)
        assert time.monotonic() - started < SLACK
        timer.join()

        with pytest.raises(UnreachableError, match="closing"):
            ask(path, 60, exchanges)
        assert len(daemon.targets) == 1
