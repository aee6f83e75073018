# SPDX-License-Identifier: Apache-2.0
"""
The generator as Python sees it: a process that fills rings on command.
"""

from __future__ import annotations

import os
import socket
import subprocess
from typing import TYPE_CHECKING, Self

import attrs

if TYPE_CHECKING:
    from types import TracebackType

    from tests.bench.workshop import Workshop

__all__ = ["Counts", "Generator"]

MAX_INSTANCES = 16


@attrs.frozen
class Counts:
    """
    What the emit site counted, over CPUs and messages since the last reset.
    """

    emitted: int
    lost: int


class Generator:
    """
    *instances* copies of one program, each over an events map of its own.

    *transport* is ``perf``, ``ringbuf``, or ``none`` to build messages and
    drop them.  ``events[i]`` is the descriptor of instance *i*'s map, open
    until :meth:`close`.
    """

    def __init__(self, workshop: Workshop, instances: int, transport: str = "perf") -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._process = subprocess.Popen(
                [
                    str(workshop.generate()),
                    str(workshop.generator_object()),
                    str(instances),
                    transport,
                    str(theirs.fileno()),
                ],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            theirs.close()
            _, descriptors, _, _ = socket.recv_fds(ours, 1, MAX_INSTANCES)
        self.events: tuple[int, ...] = tuple(descriptors)
        if len(self.events) != instances:
            self.close()
            msg = f"generator gave {len(self.events)} maps, asked for {instances}"
            raise RuntimeError(msg)

    def capacity(self, ring_bytes: int) -> int:
        """
        How many messages, from sequence 0 on, a perf ring of that size holds.
        """
        return int(self._ask(f"capacity {ring_bytes}")[0])

    def fill(self, instance: int, count: int) -> Counts:
        """
        Write *count* messages on every CPU at once, starting from sequence 0.
        """
        self._ask(f"reset {instance}")
        self._ask(f"fill {instance} {count}")
        return self.counts(instance)

    def run(self, instance: int, cpu: int, count: int) -> int:
        """
        Write *count* messages on one CPU; return the kernel's mean ns per run.
        """
        return int(self._ask(f"run {instance} {cpu} {count}")[0])

    def reset(self, instance: int) -> None:
        """
        Zero the sequences and counters of an instance.
        """
        self._ask(f"reset {instance}")

    def start_rate(self, instance: int, cpu: int, milliseconds: int, per_ms: int) -> None:
        """
        Begin writing on *cpu*, paced or (``per_ms=0``) flat out; see :meth:`end_rate`.
        """
        self._say(f"rate {instance} {cpu} {milliseconds} {per_ms}")

    def end_rate(self) -> tuple[int, float]:
        """
        Wait for :meth:`start_rate` to end; return messages and seconds.
        """
        written, nanoseconds = self._hear()
        return int(written), int(nanoseconds) / 1e9

    def counts(self, instance: int) -> Counts:
        """
        What was emitted and lost since the last reset.
        """
        emitted, lost = self._ask(f"counts {instance}")
        return Counts(int(emitted), int(lost))

    def close(self) -> None:
        """
        End the process and close the maps; safe to call twice.
        """
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        for descriptor in self.events:
            os.close(descriptor)
        self.events = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, command: str) -> list[str]:
        self._say(command)
        return self._hear()

    def _say(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def _hear(self) -> list[str]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            msg = f"generator died with status {self._process.wait()}"
            raise RuntimeError(msg)
        return line.split()
