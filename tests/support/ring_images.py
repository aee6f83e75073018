# SPDX-License-Identifier: Apache-2.0
"""
Ring memory, written as the kernel writes it, damage included.

A perf ring here has exactly the layout of the records that
``perf_event_output`` leaves; a BPF ring buffer that of kernel/bpf/ringbuf.c.
Both live in ordinary memory, so that a test can put any byte anywhere.
"""

from __future__ import annotations

import struct

from kprobe_modules.rings.framing import RingMemory

__all__ = ["BpfImage", "PerfImage", "message"]

WORD = (1 << 64) - 1

PERF_RECORD_LOST = 2
PERF_RECORD_SAMPLE = 9
BUSY = 1 << 31
DISCARDED = 1 << 30


def message(time: int, key: int, body: bytes = b"", *, cpu: int = 0, length: int = -1) -> bytes:
    """
    Return a wire message; *length* may lie about its size.
    """
    claimed = 16 + len(body) if length < 0 else length
    return struct.pack("<QIHH", time, key, claimed, cpu) + body


def _aligned(size: int) -> int:
    return (size + 7) & ~7


class _Image:
    """
    Positions and data of a ring whose writer is the test.
    """

    kind: str
    copies: int

    def __init__(self, size: int, start: int = 0) -> None:
        self.size = size
        self.positions = bytearray(struct.pack("=QQ", start, start))
        self.data = bytearray(b"\xa5" * (size * self.copies))

    def memory(self) -> RingMemory:
        """
        Return the views that a drainer works on.
        """
        positions = memoryview(self.positions)
        return RingMemory(
            self.kind,  # type: ignore[arg-type]
            positions[:8],
            positions[8:],
            memoryview(self.data),
        )

    @property
    def produced(self) -> int:
        """
        Where the writer stands.
        """
        found: int = struct.unpack_from("=Q", self.positions)[0]
        return found

    @produced.setter
    def produced(self, position: int) -> None:
        struct.pack_into("=Q", self.positions, 0, position & WORD)

    @property
    def consumed(self) -> int:
        """
        Where the reader stands.
        """
        found: int = struct.unpack_from("=Q", self.positions, 8)[0]
        return found

    @consumed.setter
    def consumed(self, position: int) -> None:
        struct.pack_into("=Q", self.positions, 8, position & WORD)

    def room(self) -> int:
        """
        Return the bytes that may still be written.
        """
        return self.size - ((self.produced - self.consumed) & WORD)

    def put(self, position: int, content: bytes) -> None:
        """
        Write anywhere, wrapping, without moving any position.
        """
        for index, byte in enumerate(content):
            at = (position + index) & (self.size - 1)
            for copy in range(self.copies):
                self.data[at + copy * self.size] = byte

    def append(self, content: bytes) -> bool:
        """
        Write at the end and publish it; False if it does not fit.
        """
        if len(content) > self.room():
            return False
        self.put(self.produced, content)
        self.produced += len(content)
        return True


class PerfImage(_Image):
    """
    A perf ring; its size need not be whole pages.
    """

    kind = "perf"
    copies = 1

    @staticmethod
    def record(kind: int, body: bytes, *, size: int = -1) -> bytes:
        """
        Return one record; *size* may lie about it.
        """
        claimed = 8 + len(body) if size < 0 else size
        return struct.pack("<IHH", kind, 0, claimed) + body

    @classmethod
    def sample(cls, content: bytes, *, raw: int = -1, garbage: bytes = b"\xee") -> bytes:
        """
        Return a sample as the kernel pads it: the raw size counts the garbage.
        """
        padded = _aligned(len(content) + 4) - 4
        body = content + (garbage * 8)[: padded - len(content)]
        return cls.record(PERF_RECORD_SAMPLE, struct.pack("<I", padded if raw < 0 else raw) + body)

    @classmethod
    def lost(cls, count: int) -> bytes:
        """
        Return a record that says how many were lost.
        """
        return cls.record(PERF_RECORD_LOST, struct.pack("<QQ", 77, count))


class BpfImage(_Image):
    """
    A BPF ring buffer.
    """

    kind = "bpf"
    copies = 2

    @staticmethod
    def record(content: bytes, flags: int = 0) -> bytes:
        """
        Return one record, padded to 8 bytes.
        """
        body = struct.pack("<II", len(content) | flags, 0x1234) + content
        return body.ljust(_aligned(len(body)), b"\xee")

    def reserve(self, content: bytes) -> int | None:
        """
        Write a record whose writer is not done; return where it is.
        """
        position = self.produced
        return position if self.append(self.record(content, BUSY)) else None

    def commit(self, position: int, flags: int = 0) -> None:
        """
        Finish a reserved record.
        """
        at = position & (self.size - 1)
        header = struct.unpack_from("<I", self.data, at)[0]
        self.put(position, struct.pack("<I", header & ~BUSY | flags))
