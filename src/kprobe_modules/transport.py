# SPDX-License-Identifier: Apache-2.0
"""
Opening the rings that carry messages, over the common maps.

Perf rings are the default.  With ``ringbuf`` the ``events`` map is one BPF ring
buffer, which costs a third as much to write and keeps one order for all CPUs; the
data channel stays a set of perf rings, because its records are read CPU by CPU.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import attrs

from kprobe_modules.byfields import ByFields
from kprobe_modules.errors import ConfigError
from kprobe_modules.libbpf import map as bpf_map
from kprobe_modules.libbpf import perf
from kprobe_modules.rings import BpfRings, Framing, PerfRings

if TYPE_CHECKING:
    from kprobe_modules.libbpf import Library

__all__ = ["FRAMING", "PAGE", "TRANSPORTS", "RingOptions", "open_bpf_rings", "open_perf_rings"]

TRANSPORTS = {"perf": 0, "ringbuf": 1}
"""Name to the value of the ``km_transport`` constant (bpf/km/emit.h)."""

FRAMING = Framing()
"""Where ``struct km_header`` (bpf/km/header.h) keeps time, ids and length."""

PAGE = mmap.PAGESIZE
"""Bytes: rings are counted in pages of the machine."""


def _power_of_two(_instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if value < 1 or value & (value - 1):
        msg = f"{attribute.name} is {value}, expected a power of two"
        raise ConfigError(msg)


@attrs.frozen(eq=False, repr=False)
class RingOptions(ByFields):
    """
    How large rings are, and when they wake their reader.
    """

    transport: str = attrs.field(default="perf")
    pages: int = attrs.field(default=512, validator=_power_of_two)
    """Pages per CPU, a power of two; a page has 4 KiB on most machines."""
    data_pages: int = attrs.field(default=256, validator=_power_of_two)
    """The same for the data channel."""
    watermark: int | None = attrs.field(default=None)
    """Bytes in a ring that wake the reader, at most half a ring; None means a quarter.
    What is left has to hold what comes until the reader runs."""

    @transport.validator
    def _check_transport(self, _attribute: attrs.Attribute[str], value: str) -> None:
        if value not in TRANSPORTS:
            msg = f"transport is {value!r}, expected {' or '.join(TRANSPORTS)}"
            raise ConfigError(msg)

    @watermark.validator
    def _check_watermark(self, _attribute: attrs.Attribute[int | None], value: int | None) -> None:
        if value is not None and not 0 < value < self.pages * PAGE:
            msg = f"watermark is {value} bytes, expected 1 to {self.pages * PAGE - 1} (one ring)"
            raise ConfigError(msg)

    def wakeup(self, pages: int) -> int:
        """
        Return the watermark in bytes for a ring of that many pages.
        """
        size = pages * PAGE
        return size // 4 if self.watermark is None else min(self.watermark, size // 2)


def open_perf_rings(map_fd: int, pages: int, watermark: int, library: Library) -> PerfRings:
    """
    Open one perf ring per online CPU and insert them into a perf-event array.

    The collector owns the files: a perf event leaves the array when the file that
    inserted it closes.

    Raises:
        RingError, PrivilegeError: when the kernel refuses.
    """

    def open_event(cpu: int) -> int:
        return perf.open_bpf_output(cpu, wakeup_watermark=watermark)

    def insert(cpu: int, event_fd: int) -> None:
        bpf_map.update(
            map_fd, cpu.to_bytes(4, "little"), event_fd.to_bytes(4, "little"), library=library
        )

    def remove(cpu: int) -> None:
        bpf_map.delete(map_fd, cpu.to_bytes(4, "little"), library=library)

    return PerfRings(
        pages=pages, open_event=open_event, insert=insert, remove=remove, framing=FRAMING
    )


def open_bpf_rings(map_fd: int, size: int) -> BpfRings:
    """
    Map the one BPF ring buffer behind *map_fd*.
    """
    return BpfRings(map_fd, size, framing=FRAMING)
