# SPDX-License-Identifier: Apache-2.0
"""
What was emitted and what was lost, as the emit sites counted it.

Every module has a private per-CPU array ``km_counters`` (bpf/km/counters.h), one
entry per message id, whose value is ``struct km_counter``: attempts, and attempts
that failed.  So ``emitted = received + lost`` once the rings are drained.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import attrs

from kprobe_modules.libbpf import map as bpf_map

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kprobe_modules.libbpf import Library
    from kprobe_modules.objectfile import ObjectSpec

__all__ = ["COUNTERS_MAP", "Count", "LossCounters"]

COUNTERS_MAP = "km_counters"

_COUNTER = struct.Struct("<QQ")


@attrs.frozen
class Count:
    """
    One message's counters on one CPU.
    """

    message: str
    cpu: int
    emitted: int
    lost: int


class LossCounters:
    """
    Reads one module's emit counters.

    Args:
        spec: the module's object.
        map_fd: its ``km_counters``; stays the module's.  None if it has none, as it
            never emits.
        library: the libbpf to read it with.
    """

    def __init__(self, spec: ObjectSpec, map_fd: int | None, library: Library) -> None:
        self._messages = tuple((message.id, message.name) for message in spec.messages)
        self._fd = map_fd
        self._library = library
        self._reported: dict[tuple[str, int], int] = {}

    def read(self) -> list[Count]:
        """
        Return the counters of each message on each possible CPU that used it.
        """
        counts: list[Count] = []
        if self._fd is None:
            return counts
        for message_id, name in self._messages:
            values = bpf_map.lookup_percpu(
                self._fd, message_id.to_bytes(4, "little"), library=self._library
            )
            for cpu, value in enumerate(values or ()):
                emitted, lost = _COUNTER.unpack_from(value)
                if emitted:
                    counts.append(Count(name, cpu, emitted, lost))
        return counts

    def new_losses(self, counts: Iterable[Count]) -> list[Count]:
        """
        Return, per message and CPU, what was lost since the last call.
        """
        fresh = []
        for count in counts:
            key = (count.message, count.cpu)
            delta = count.lost - self._reported.get(key, 0)
            if delta > 0:
                self._reported[key] = count.lost
                fresh.append(attrs.evolve(count, lost=delta))
        return fresh
