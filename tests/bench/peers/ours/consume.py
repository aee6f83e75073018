# SPDX-License-Identifier: Apache-2.0
"""
Our consumer: the framework's own rings, opened over the generator's map.

::

    python -m tests.bench.peers.ours.consume MAP_FD PAGES

Besides ``drain MODE EXPECTED checked|unchecked`` (modes ``merged``, ``unmerged``, ``records``) it
answers ``watch SECONDS`` with what a polling loop saw and cost, and ``empty 1``
with the time of a drain that finds nothing.  The clock runs
around the drain alone; contents and order are checked after it has stopped.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import TYPE_CHECKING, Any

import attrs

from kprobe_modules import libbpf
from kprobe_modules.dispatch import Binding, Dispatcher, Faults
from kprobe_modules.intake import STREAM_BUDGET
from kprobe_modules.transport import PAGE, RingOptions, open_bpf_rings, open_perf_rings
from tests.bench.peers import Seen
from tests.bench.peers.ours.messages import BenchHandler, spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kprobe_modules.rings import Drained


__all__ = ["Consumer"]

HEADER_FIELDS = frozenset({"time", "module", "message", "length", "cpu"})


class Consumer:
    """
    Rings over *map_fd*, and a dispatcher that knows the generator's messages.
    """

    def __init__(self, map_fd: int, pages: int, transport: str = "perf") -> None:
        if transport == "perf":
            library = libbpf.find()
            watermark = RingOptions(pages=pages).wakeup(pages)
            self.rings: Any = open_perf_rings(map_fd, pages, watermark, library)
        else:
            self.rings = open_bpf_rings(map_fd, pages * PAGE)
        self.drainer = self.rings.drainer
        self.offset = time.time_ns() - time.monotonic_ns()
        self.binding = Binding("bench", 0, spec(), BenchHandler())
        self.binding.register(self.drainer)
        self.dispatcher = Dispatcher(Faults(time.time_ns), time.time_ns)
        self.dispatcher.add(self.binding)

    def drain(self, mode: str, *, check: bool = True) -> Seen:
        """
        Empty the rings in one of the modes; count, or *check*, what came out.
        """
        if mode == "records":
            return self._drain_records()
        merge = mode == "merged"
        started = time.monotonic_ns()
        drained = self.drainer.drain(merge=merge, time_offset=self.offset)
        took = time.monotonic_ns() - started
        if check:
            return self._check(took, drained, merged=merge)
        lost = sum(count for _, count in drained.lost)
        return Seen(took, drained.records, lost, drained.malformed + drained.unknown, 0, 0)

    def _drain_records(self) -> Seen:
        """
        One record object per event, each handed to Python code that reads it.
        """
        events = sequence = 0
        more = True
        started = time.monotonic_ns()
        while more:
            # In the parts that the collector's own records() takes them in.
            drained = self.drainer.drain(time_offset=self.offset, budget=STREAM_BUDGET)
            for record in self.dispatcher.dispatch(drained):
                events += 1
                sequence += record.sequence  # type: ignore[attr-defined]
            more = drained.more
        took = time.monotonic_ns() - started
        return Seen(took, events, 0, 0, sequence, 0)

    def empty(self) -> dict[str, int]:
        """
        Time a drain that finds nothing.
        """
        started = time.monotonic_ns()
        drained = self.drainer.drain(time_offset=self.offset)
        took = time.monotonic_ns() - started
        return {"ns": took, "events": drained.records}

    def watch(self, seconds: float) -> dict[str, float]:
        """
        Poll as the collector does for a while; say what came and what it cost.
        """
        events = lost = drains = 0
        deadline = time.monotonic() + seconds
        before = resource.getrusage(resource.RUSAGE_SELF)
        started = time.monotonic()
        while time.monotonic() < deadline:
            self.rings.wait(0.1)
            drained = self.drainer.drain(time_offset=self.offset)
            events += drained.records
            lost += sum(count for _, count in drained.lost)
            drains += 1
        elapsed = time.monotonic() - started
        after = resource.getrusage(resource.RUSAGE_SELF)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {
            "events": events,
            "lost": lost,
            "drains": drains,
            "seconds": elapsed,
            "cpu_seconds": spent,
        }

    def close(self) -> None:
        """
        Close the rings.
        """
        self.rings.close()

    def _check(self, took: int, drained: Drained, *, merged: bool) -> Seen:
        messages = {slot.message.id: slot.message for slot in self.binding.slots.values()}
        sequence = checksum = disorder = 0
        rows: list[Iterator[tuple[int, int, int]]] = []
        for batch in drained.batches:
            layout = messages[batch.key >> 16].layout
            decoded = [_named(layout.names, row) for row in layout.struct.iter_unpack(batch)]
            sequence += sum(row["sequence"] for row in decoded)
            checksum += sum(_checksum(row) for row in decoded)
            rows.append(iter([(row["time"], row["cpu"], row["sequence"]) for row in decoded]))
        if merged:
            disorder = _disorder([next(rows[index]) for index in drained.sequence])
        else:
            disorder = sum(_disorder(list(batch), by_time=False) for batch in rows)
        malformed = drained.malformed + drained.unknown + disorder
        lost = sum(count for _, count in drained.lost)
        return Seen(took, drained.records, lost, malformed, sequence, checksum)


def _named(names: tuple[str, ...], row: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(names, row, strict=True))


def _checksum(row: dict[str, Any]) -> int:
    """
    The sum the peers make: integers, and the first byte of each array.
    """
    return sum(
        value if isinstance(value, int) else value[0]
        for name, value in row.items()
        if name not in HEADER_FIELDS and name != "sequence"
    )


def _disorder(rows: list[tuple[int, int, int]], *, by_time: bool = True) -> int:
    """
    How many rows are older than the one before, or out of step on their CPU.
    """
    wrong = 0
    last_time = 0
    last: dict[int, int] = {}
    for when, cpu, sequence in rows:
        wrong += by_time and when < last_time
        expected = last.get(cpu, -1) + 1
        wrong += sequence != expected if by_time else sequence < expected
        last_time, last[cpu] = when, sequence
    return wrong


def main(arguments: list[str]) -> int:
    """
    Obey commands until stdin ends.
    """
    consumer = Consumer(int(arguments[1]), int(arguments[2]), os.environ.get("TRANSPORT", "perf"))
    print("ready", flush=True)
    for line in sys.stdin:
        command, argument, *rest = line.split()
        if command == "drain":
            seen = consumer.drain(argument, check="checked" in rest)
            answer: dict[str, Any] = attrs.asdict(seen)
        elif command == "empty":
            answer = consumer.empty()
        else:
            answer = consumer.watch(float(argument))
        print(json.dumps(answer), flush=True)
    consumer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
