# SPDX-License-Identifier: Apache-2.0
"""
One consumer process, whatever its language.

A consumer is started with the descriptor of an events map and a ring size,
says ``ready`` when its rings are open, and from then on answers each
``drain MODE EXPECTED checked|unchecked`` with one JSON object: nanoseconds by its own monotonic
clock, and what it saw.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Self

import attrs

from tests.bench.schedule import CONSUMER_CPU, scheduled
from tests.bench.workshop import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

__all__ = ["Peer", "Seen"]


@attrs.frozen
class Seen:
    """
    A consumer's answer: *ns* for the drain, sums over all fields for the check.
    """

    ns: int
    events: int
    lost: int
    malformed: int
    sequence: int
    checksum: int


class Peer:
    """
    A running consumer on CPU 0, with rings of *pages* per CPU.

    If *undisturbed*, it runs ahead of ordinary processes.
    """

    def __init__(
        self,
        command: Sequence[str],
        events: int,
        pages: int,
        *,
        environment: Mapping[str, str] | None = None,
        undisturbed: bool = False,
    ) -> None:
        with scheduled(CONSUMER_CPU, undisturbed=undisturbed):
            self._process = subprocess.Popen(
                [*command, str(events), str(pages)],
                pass_fds=(events,),
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        if self._hear() != "ready":
            self.close()
            msg = f"{command[0]} did not start"
            raise RuntimeError(msg)

    @property
    def pid(self) -> int:
        """
        The process id.
        """
        return self._process.pid

    def drain(self, mode: str, expected: int, *, check: bool = True) -> Seen:
        """
        Empty the rings, which hold *expected* messages in all.

        Without *check* a consumer that sums after the clock has stopped does not:
        its next drain would find the caches full of that.
        """
        word = "checked" if check else "unchecked"
        answer = json.loads(self.ask(f"drain {mode} {expected} {word}"))
        return Seen(**answer)

    def ask(self, command: str) -> str:
        """
        Send any command line; return the answer line.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._hear()

    def close(self) -> None:
        """
        End the process; safe to call twice.
        """
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            msg = f"{self._process.args!r} died: status {self._process.wait()}"
            raise RuntimeError(msg)
        return line.strip()
