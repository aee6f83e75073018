# SPDX-License-Identifier: Apache-2.0
"""
What was emitted, lost and suppressed, as the emit sites counted it.

Every module has a private per-CPU array ``km_counters`` (bpf/km/counters.h), one
entry per message id, whose value is ``struct km_counter``: attempts, and attempts
that failed.  So ``emitted = received + lost`` once the rings are drained.  One that
logs has ``km_log_state`` too (bpf/km/log.h), which counts the logs that were too many.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import attrs

from kprobe_modules.byfields import ByFields
from kprobe_modules.libbpf import map as bpf_map

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kprobe_modules.libbpf import Library
    from kprobe_modules.spec import ObjectSpec

__all__ = ["COUNTERS_MAP", "LOG_STATE_MAP", "Count", "LossCounters", "SuppressedLogs"]

COUNTERS_MAP = "km_counters"

LOG_STATE_MAP = "km_log_state"

_COUNTER = struct.Struct("<QQ")

_LOG_STATE = struct.Struct("<QQQ")
"""``struct km_log_state``: since, passed, suppressed."""


@attrs.frozen(eq=False, repr=False)
class Count(ByFields):
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
        self._messages = tuple(
            (message.id, message.name) for message in (*spec.messages, *spec.diagnostics)
        )
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


class SuppressedLogs:
    """
    Reads how many logs of one module were not written, per CPU.

    Args:
        map_fd: its ``km_log_state``; stays the module's.  None if it never logs.
        library: the libbpf to read it with.
    """

    def __init__(self, map_fd: int | None, library: Library) -> None:
        self._fd = map_fd
        self._library = library
        self._reported: dict[int, int] = {}

    def read(self) -> dict[int, int]:
        """
        Return the logs suppressed since the module was attached, by CPU.
        """
        if self._fd is None:
            return {}
        values = bpf_map.lookup_percpu(self._fd, bytes(4), _LOG_STATE.size, library=self._library)
        totals = (_LOG_STATE.unpack_from(value)[2] for value in values or ())
        return {cpu: total for cpu, total in enumerate(totals) if total}

    def new(self) -> dict[int, int]:
        """
        Return, by CPU, what was suppressed since the last call.
        """
        fresh = {}
        for cpu, total in self.read().items():
            delta = total - self._reported.get(cpu, 0)
            if delta:
                self._reported[cpu] = total
                fresh[cpu] = delta
        return fresh
