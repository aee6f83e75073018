# SPDX-License-Identifier: Apache-2.0
"""
The data channel: per-CPU rings read in step with control messages.

A program that announces a payload with a control message writes the payload to
``data_channel`` on the same CPU first.  The handler of the control message asks
for that CPU's data up to the message's time.  Rings are shared, so what belongs to
other modules is kept for them, within bounds.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING

from kprobe_modules.handler import DataChunk

if TYPE_CHECKING:
    from kprobe_modules.clock import Clock
    from kprobe_modules.rings import PerfRings

__all__ = ["DataChannel"]

_HEADER = struct.Struct("<QHHHH")
"""``struct km_header`` (bpf/km/header.h): time, module, message, length, cpu."""

KEEP_BYTES = 8 << 20
"""Per module and CPU: payload that nobody asks for is dropped, oldest first, beyond this."""

KEEP_NS = 2_000_000_000
"""Payload that no control message asked for within this time is dropped."""


class _Queue:
    """
    One module's unread chunks of one CPU.
    """

    def __init__(self) -> None:
        self.chunks: deque[tuple[int, int, bytes]] = deque()
        self.bytes = 0

    def push(self, time: int, message: int, payload: bytes) -> int:
        self.chunks.append((time, message, payload))
        self.bytes += len(payload)
        dropped = 0
        while self.bytes > KEEP_BYTES:
            self.pop()
            dropped += 1
        return dropped

    def pop(self) -> tuple[int, int, bytes]:
        chunk = self.chunks.popleft()
        self.bytes -= len(chunk[2])
        return chunk


class DataChannel:
    """
    Sorts what the data rings deliver by module and CPU.

    Attributes:
        unclaimed: chunks dropped because no handler asked for them, per module id.
        received: messages per module id, message id and CPU.
    """

    def __init__(self, rings: PerfRings, clock: Clock) -> None:
        self.rings = rings
        self._clock = clock
        self._queues: dict[tuple[int, int], _Queue] = {}
        self._owners: set[int] = set()
        self.unclaimed: dict[int, int] = {}
        self.received: dict[tuple[int, int, int], int] = {}

    def adopt(self, module: int) -> None:
        """
        Keep from now on what comes from a module.

        Args:
            module: the module's id in this collector.
        """
        self._owners.add(module)

    def crowded(self, most: int) -> bool:
        """
        Tell whether more than *most* bytes wait in the rings.
        """
        return self.rings.drainer.pending() > most

    def pull(self, until: int) -> None:
        """
        Take everything that is not newer than *until* (CLOCK_MONOTONIC, ns) out of the rings.

        It is kept for the handlers, within bounds.
        """
        for cpu in self.rings.cpus:
            self._pull(cpu, until)

    def _pull(self, cpu: int, until: int) -> None:
        for frame in self.rings.read(cpu, until):
            time, module, message, length, _cpu = _HEADER.unpack_from(frame)
            if module not in self._owners:
                # Left over from one that was detached.
                continue
            payload = frame[_HEADER.size : length]
            key = (module, message, cpu)
            self.received[key] = self.received.get(key, 0) + 1
            queue = self._queues.setdefault((module, cpu), _Queue())
            dropped = queue.push(time, message, payload)
            if dropped:
                self.unclaimed[module] = self.unclaimed.get(module, 0) + dropped

    def take(self, module: int, cpu: int, until: int) -> list[DataChunk]:
        """
        Return a module's chunks of one CPU, in ring order, not newer than *until*.

        Args:
            module: the module's id in this collector.
            cpu: the CPU whose ring is read.
            until: nanoseconds since the epoch.
        """
        offset = self._clock.offset
        self._pull(cpu, until - offset)
        queue = self._queues.get((module, cpu))
        chunks = []
        while queue is not None and queue.chunks and queue.chunks[0][0] <= until - offset:
            time, message, payload = queue.pop()
            chunks.append(DataChunk(time + offset, cpu, message, payload))
        return chunks

    def expire(self, now: int) -> None:
        """
        Follow CPUs that came or went, and drop what no control message asked for in time.

        Args:
            now: CLOCK_MONOTONIC, nanoseconds.
        """
        _, departed = self.rings.refresh()
        for cpu in departed:
            # Its ring is closed at the next look, if it is empty then.
            self._pull(cpu, now)
        self.pull(now - KEEP_NS)
        for (module, _cpu), queue in self._queues.items():
            while queue.chunks and queue.chunks[0][0] < now - KEEP_NS:
                queue.pop()
                self.unclaimed[module] = self.unclaimed.get(module, 0) + 1

    def forget(self, module: int) -> bool:
        """
        Drop everything of a module that was detached; tell whether others are left.
        """
        self._owners.discard(module)
        self.unclaimed.pop(module, None)
        self._queues = {key: queue for key, queue in self._queues.items() if key[0] != module}
        self.received = {key: count for key, count in self.received.items() if key[0] != module}
        return bool(self._owners)

    def close(self) -> None:
        """
        Close the rings.
        """
        self.rings.close()
