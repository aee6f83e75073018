# SPDX-License-Identifier: Apache-2.0
"""
DNS servers with a known zone, a client that is not ours, and what it says.
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.support.namespaces import Namespace

__all__ = ["ODD_PORT", "SLOW", "Reply", "dig", "oddities", "resolver", "sniffed"]

ODD_PORT = 5300
"""Where the server listens that the resolver asks about ``odd.test``."""

SLOW = 4.0
"""Seconds that ``slow.odd.test`` takes."""

TYPE_TXT = 16
SERVFAIL = 2


# -- a server that does what others rarely do ------------------------------------------


def _odd_answer(query: bytes) -> tuple[bytes | None, float]:
    """
    Return what to send, and after how many seconds.

    ``big4000.odd.test`` is answered with 4000 bytes, ``silent.odd.test`` never.
    """
    end = query.index(b"\0", 12) + 5
    label = query[13 : 13 + query[12]].decode()
    code = SERVFAIL if label == "servfail" else 0
    head = query[:2] + bytes((0x84 | query[2] & 1, 0x80 | code)) + b"\0\1"
    if label == "silent":
        return None, 0
    if label == "servfail":
        return head + bytes(6) + query[12:end], 0
    size = int(label.removeprefix("big")) if label.startswith("big") else 200
    room = size - end - 12
    data = b"".join(
        bytes((min(room - at, 256) - 1,)) + b"x" * (min(room - at, 256) - 1)
        for at in range(0, room, 256)
    )
    record = b"\xc0\x0c" + TYPE_TXT.to_bytes(2, "big") + b"\0\1" + bytes(4)
    answer = head + b"\0\1" + bytes(4) + query[12:end] + record + room.to_bytes(2, "big") + data
    return answer, SLOW if label == "slow" else 0


@contextmanager
def oddities(here: Namespace) -> Iterator[None]:
    """
    Serve ``odd.test`` at `ODD_PORT` while the body runs.
    """
    with here.inside():
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((here.ipv4, ODD_PORT))
    server.settimeout(0.1)
    over = threading.Event()

    def serve() -> None:
        due: list[tuple[float, bytes, tuple[str, int]]] = []
        while not over.is_set():
            due.sort()
            while due and due[0][0] <= time.monotonic():
                _, answer, client = due.pop(0)
                server.sendto(answer, client)
            try:
                query, client = server.recvfrom(1 << 16)
            except TimeoutError:
                continue
            answer, delay = _odd_answer(query)
            if answer is not None and not delay:
                server.sendto(answer, client)
            elif answer is not None:
                due.append((time.monotonic() + delay, answer, client))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        server.close()


# -- Debian's resolver -----------------------------------------------------------------


@attrs.frozen
class Resolver:
    """
    A running dnsmasq.
    """

    pid: int
    _log: Path

    def logged(self, what: str) -> list[tuple[str, ...]]:
        """
        Return the words around *what* (``query``, ``forwarded`` …) of each line that has it.
        """
        pattern = re.compile(rf"/(\d+) {what}(?:\[(\w+)\])? (\S+) (?:from|to) (\S+)")
        text = self._log.read_text(encoding="utf-8")
        return [match.groups() for match in pattern.finditer(text)]


@contextmanager
def resolver(here: Namespace, folder: Path, *zone: str) -> Iterator[Resolver]:
    """
    Run dnsmasq, which knows *zone* (options of its), asks `oddities` about ``odd.test`` and
    says that nothing else exists.
    """
    log = folder / "queries"
    command = here.command(
        needs.command("dnsmasq", "/usr/sbin/dnsmasq"),
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-hosts",
        "--no-resolv",
        "--user=root",
        "--pid-file=",
        "--cache-size=0",
        "--bind-interfaces",
        "--except-interface=lo",
        f"--listen-address={here.ipv4}",
        f"--listen-address={here.ipv6}",
        "--edns-packet-max=4096",
        "--log-queries=extra",
        f"--log-facility={log}",
        f"--server=/odd.test/{here.ipv4}#{ODD_PORT}",
        "--local=/test/",
        *zone,
    )
    with subprocess.Popen(command) as process:
        try:
            _wait(lambda: log.exists() and "started" in log.read_text(encoding="utf-8"))
            yield Resolver(process.pid, log)
        finally:
            process.terminate()


def _wait(ready) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < deadline, "not ready after 120 s"
        time.sleep(0.02)


# -- Debian's client -------------------------------------------------------------------


@attrs.frozen
class Reply:
    """
    A response as ``dig`` shows it.
    """

    query_id: int
    status: str
    flags: frozenset[str]
    name: str
    rdtype: str
    answers: tuple[tuple[str, int, str, str], ...]
    """Owner, TTL, type and value."""
    transport: str
    size: int


def _reply(text: str) -> Reply:
    header = re.search(r"status: (\w+), id: (\d+)\n;; flags: ([\w ]*);", text)
    question = re.search(r"QUESTION SECTION:\n;(\S+)\s+IN\s+(\S+)", text)
    assert header
    assert question
    answers = []
    section = re.search(r"ANSWER SECTION:\n((?:[^\n;][^\n]*\n)+)", text)
    for line in section[1].splitlines() if section else ():
        owner, ttl, _, rdtype, value = line.split(None, 4)
        answers.append((owner.rstrip("."), int(ttl), rdtype, value))
    return Reply(
        int(header[2]),
        header[1],
        frozenset(header[3].split()),
        question[1].rstrip("."),
        question[2],
        tuple(answers),
        "tcp" if "(TCP)" in text else "udp",
        int(re.search(r"rcvd: (\d+)", text)[1]),  # type: ignore[index]
    )


def dig(here: Namespace, server: str, folder: Path, lines: Sequence[str]) -> list[Reply]:
    """
    Ask all of *lines*, each with the options that it has, and return what was answered.
    """
    batch = folder / f"batch-{threading.get_ident()}-{time.monotonic_ns()}"
    batch.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    command = here.command(needs.command("dig"), f"@{server}", "+tries=1", "+time=60", "-f", batch)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    blocks = done.stdout.split(";; ->>HEADER<<-")[1:]
    return [_reply(f";; ->>HEADER<<-{block}") for block in blocks]


# -- and what went over the wire -------------------------------------------------------


@contextmanager
def sniffed(here: Namespace, target: Path, expression: str) -> Iterator[None]:
    """
    Write what passes the namespace's device to a file, as ``tcpdump`` does.
    """
    command = here.command(
        needs.command("tcpdump", "/usr/sbin/tcpdump"),
        "-i", here.device, "-n", "-U", "--immediate-mode", "-B", "8192", "-Z", "root",
        "-w", target, expression,
    )  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "listening on" in process.stderr.readline()
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
