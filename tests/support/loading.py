# SPDX-License-Identifier: Apache-2.0
"""
Objects that a test loads itself, without a collector.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from kprobe_modules.libbpf import map as bpf_map
from kprobe_modules.objectfile import read

if TYPE_CHECKING:
    from kprobe_modules.libbpf import BpfObject

__all__ = ["counters", "make_ring_buffer", "scan"]


def make_ring_buffer(opened: BpfObject, data: bytes) -> None:
    """
    Have an object that was not loaded yet use the other transport, as the collector does.
    """
    events = opened.maps["events"]
    events.set_type(27)
    events.set_key_size(0)
    events.set_value_size(0)
    events.set_max_entries(1 << 16)
    (tunable,) = (item for item in read(data, "object").tunables if item.name == "km_transport")
    constants = bytearray(opened.maps[".rodata"].initial_value())
    constants[tunable.offset] = 1
    opened.maps[".rodata"].set_initial_value(bytes(constants))


def counters(opened: BpfObject, message: int) -> tuple[int, int]:
    """
    Return how many messages of a kind were attempted, and how many found no room.
    """
    values = bpf_map.lookup_percpu(opened.maps["km_counters"].fd, struct.pack("<I", message))
    assert values is not None
    emitted, lost = zip(*(struct.unpack("<QQ", value) for value in values), strict=True)
    return sum(emitted), sum(lost)


def scan(opened: BpfObject, program: str) -> bytes:
    """
    Run an iterator once; return what it writes.
    """
    with opened.programs[program].attach_iter() as link:
        fd = link.create_iter()
        try:
            return os.read(fd, 4096)
        finally:
            os.close(fd)
