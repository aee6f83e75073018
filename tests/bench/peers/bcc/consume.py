# SPDX-License-Identifier: Apache-2.0
"""
The bcc peer: a Python callback per event that casts the sample to a struct.

Run by the distribution's own interpreter (``/usr/bin/python3``), because
Debian installs bcc there; it therefore imports nothing of this project::

    consume.py MAP_FD PAGES

Commands on stdin: ``drain MODE EXPECTED checked|unchecked`` (it always sums); each is
answered by one JSON object.

bcc builds its tables from programs that it compiled itself.  Here the rings
must be filled by the same program as everybody's, so the table is bcc's own
:class:`PerfEventArray` given a descriptor; opening, reading and calling back are
bcc's code unchanged.
"""

from __future__ import annotations

import ctypes as ct
import json
import os
import sys
import time
from typing import Any, ClassVar

from bcc import BPF  # type: ignore[import-not-found]
from bcc.table import PerfEventArray  # type: ignore[import-not-found]


class Header(ct.Structure):
    _fields_: ClassVar = [
        ("time", ct.c_uint64),
        ("module", ct.c_uint16),
        ("message", ct.c_uint16),
        ("length", ct.c_uint16),
        ("cpu", ct.c_uint16),
    ]


class Beat(ct.Structure):
    _fields_: ClassVar = [
        ("header", Header),
        ("sequence", ct.c_uint64),
        ("value", ct.c_uint64),
        ("pid", ct.c_uint32),
        ("uid", ct.c_uint32),
    ]


class Renamed(ct.Structure):
    _fields_: ClassVar = [
        ("header", Header),
        ("sequence", ct.c_uint64),
        ("pid", ct.c_uint32),
        ("parent_pid", ct.c_uint32),
        ("comm", ct.c_char * 16),
    ]


class Moved(ct.Structure):
    _fields_: ClassVar = [
        ("header", Header),
        ("sequence", ct.c_uint64),
        ("from_cgroup", ct.c_uint64),
        ("to_cgroup", ct.c_uint64),
        ("pid", ct.c_uint32),
        ("uid", ct.c_uint32),
        ("flags", ct.c_uint32),
        ("depth", ct.c_uint32),
    ]


class Opened(ct.Structure):
    _fields_: ClassVar = [
        ("header", Header),
        ("sequence", ct.c_uint64),
        ("cookie", ct.c_uint64),
        ("pid", ct.c_uint32),
        ("uid", ct.c_uint32),
        ("family", ct.c_uint16),
        ("kind", ct.c_uint16),
        ("port", ct.c_uint16),
        ("backlog", ct.c_uint16),
        ("comm", ct.c_char * 16),
    ]


class Connected(ct.Structure):
    _fields_: ClassVar = [
        ("header", Header),
        ("sequence", ct.c_uint64),
        ("cookie", ct.c_uint64),
        ("pid", ct.c_uint32),
        ("uid", ct.c_uint32),
        ("family", ct.c_uint16),
        ("state", ct.c_uint16),
        ("source_port", ct.c_uint16),
        ("destination_port", ct.c_uint16),
        ("source", ct.c_uint8 * 16),
        ("destination", ct.c_uint8 * 16),
    ]


class Exited(ct.Structure):
    _fields_: ClassVar = [
        ("header", Header),
        ("sequence", ct.c_uint64),
        ("start", ct.c_uint64),
        ("duration", ct.c_uint64),
        ("cgroup_id", ct.c_uint64),
        ("pid", ct.c_uint32),
        ("parent_pid", ct.c_uint32),
        ("uid", ct.c_uint32),
        ("exit_code", ct.c_uint32),
        ("comm", ct.c_char * 16),
        ("executable", ct.c_char * 32),
    ]


class Rings(PerfEventArray):  # type: ignore[misc]
    """
    bcc's perf buffers over an events map that somebody else created.
    """

    def __init__(self, map_fd: int) -> None:
        # TableBase.__init__ asks the compiled module for these.
        self.bpf = self
        self.perf_buffers: dict[Any, Any] = {}
        self.map_id = 0
        self.map_fd = map_fd
        self.Key = ct.c_int
        self.Leaf = ct.c_uint
        self.flags = 0
        self.ttype = 4
        self.max_entries = os.cpu_count() or 1
        self._name = "events"
        self._cbs: dict[int, Any] = {}
        self._open_key_fds: dict[int, int] = {}
        self._event_class = None

    def consume(self) -> None:
        BPF.perf_buffer_consume(self)


class Tally:
    """
    What the callback saw since the last reset.
    """

    def __init__(self) -> None:
        self.reset()
        pointer = ct.POINTER
        self._header = pointer(Header)
        self._beat = pointer(Beat)
        self._renamed = pointer(Renamed)
        self._moved = pointer(Moved)
        self._opened = pointer(Opened)
        self._connected = pointer(Connected)
        self._exited = pointer(Exited)

    def reset(self) -> None:
        self.events = self.lost = self.malformed = self.sequence = self.checksum = 0

    def on_lost(self, count: int) -> None:
        self.lost += count

    def on_event(self, _cpu: int, data: int, size: int) -> None:
        self.events += 1
        header = ct.cast(data, self._header).contents
        if size < header.length:
            self.malformed += 1
            return
        message = header.message
        if message == 1:
            beat = ct.cast(data, self._beat).contents
            self.sequence += beat.sequence
            self.checksum += beat.value + beat.pid + beat.uid
        elif message == 2:
            renamed = ct.cast(data, self._renamed).contents
            self.sequence += renamed.sequence
            self.checksum += renamed.pid + renamed.parent_pid + renamed.comm[0]
        elif message == 3:
            moved = ct.cast(data, self._moved).contents
            self.sequence += moved.sequence
            self.checksum += moved.from_cgroup + moved.to_cgroup
            self.checksum += moved.pid + moved.uid + moved.flags + moved.depth
        elif message == 4:
            opened = ct.cast(data, self._opened).contents
            self.sequence += opened.sequence
            self.checksum += opened.cookie + opened.pid + opened.uid + opened.family
            self.checksum += opened.kind + opened.port + opened.backlog + opened.comm[0]
        elif message == 5:
            connected = ct.cast(data, self._connected).contents
            self.sequence += connected.sequence
            self.checksum += connected.cookie + connected.pid + connected.uid
            self.checksum += connected.family + connected.state
            self.checksum += connected.source_port + connected.destination_port
            self.checksum += connected.source[0] + connected.destination[0]
        elif message == 6:
            exited = ct.cast(data, self._exited).contents
            self.sequence += exited.sequence
            self.checksum += exited.start + exited.duration + exited.cgroup_id
            self.checksum += exited.pid + exited.parent_pid + exited.uid + exited.exit_code
            self.checksum += exited.comm[0] + exited.executable[0]
        else:
            self.malformed += 1


def main(arguments: list[str]) -> int:
    map_fd, pages = int(arguments[1]), int(arguments[2])
    tally = Tally()
    rings = Rings(map_fd)
    rings.open_perf_buffer(tally.on_event, page_cnt=pages, lost_cb=tally.on_lost)
    print("ready", flush=True)
    for line in sys.stdin:
        if not line.startswith("drain "):
            return 2
        tally.reset()
        started = time.monotonic_ns()
        rings.consume()
        took = time.monotonic_ns() - started
        answer = {
            "ns": took,
            "events": tally.events,
            "lost": tally.lost,
            "malformed": tally.malformed,
            "sequence": tally.sequence,
            "checksum": tally.checksum,
        }
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
