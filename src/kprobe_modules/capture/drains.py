# SPDX-License-Identifier: Apache-2.0
"""
What one drain took from the rings, as facts and bytes of a step.
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

from kprobe_modules.errors import CaptureError
from kprobe_modules.rings import Drained, Tails
from kprobe_modules.rings.batch import Batch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["batch", "from_plain", "to_plain"]


def to_plain(drained: Drained) -> tuple[dict[str, Any], bytes]:
    """
    Return the facts about a drain, and its rows, tails and order as bytes.
    """
    described: list[list[int | None]] = []
    parts: list[bytes] = []
    for each in drained.batches:
        tails = each.tails
        described.append(
            [each.key, each.count, each.stride, None if tails is None else tails.blob.nbytes]
        )
        parts.append(bytes(each))
        if tails is not None:
            parts += [_packed("I", tails.offsets), bytes(tails.blob)]
    parts.append(_packed("H", drained.sequence))
    facts: dict[str, Any] = {"batches": described, "newest": drained.newest}
    for name in ("lost", "late", "unknown", "malformed", "skipped"):
        value = getattr(drained, name)
        if value:
            facts[name] = value
    return facts, b"".join(parts)


def _packed(letter: str, values: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(values)}{letter}", *values)


def _unpacked(letter: Literal["H", "I"], raw: bytes) -> memoryview:
    count = len(raw) // struct.calcsize(letter)
    native = struct.pack(f"={count}{letter}", *struct.unpack(f"<{count}{letter}", raw))
    return memoryview(native).cast(letter)


def from_plain(facts: Mapping[str, Any], body: bytes) -> Drained:
    """
    Return the drain that `to_plain` was given.

    Raises:
        CaptureError: facts and bytes contradict each other.
    """
    try:
        return _drained(facts, body)
    except (KeyError, TypeError, ValueError, struct.error) as error:
        msg = f"a drain is damaged: {type(error).__name__}: {error}"
        raise CaptureError(msg) from error


def _drained(facts: Mapping[str, Any], body: bytes) -> Drained:
    reader = _Reader(body)
    batches: list[Batch] = []
    for key, count, stride, tail_size in facts["batches"]:
        rows = reader.take(count * stride)
        tails = None
        if tail_size is not None:
            offsets = _unpacked("I", reader.take(4 * (count + 1)))
            tails = Tails(offsets, memoryview(reader.take(tail_size)))
            if list(offsets) != sorted(offsets) or offsets[-1] != tail_size:
                msg = f"the tails of key {key:#x} overlap"
                raise ValueError(msg)
        batches.append(batch(key, stride, rows, tails))
    sequence = _unpacked("H", reader.rest())
    if Counter(sequence) != Counter({i: each.count for i, each in enumerate(batches)}):
        msg = "the order names other rows than there are"
        raise ValueError(msg)
    return Drained(
        batches=batches,  # type: ignore[arg-type]  # the twins share no base
        sequence=sequence,
        lost=[(cpu, count) for cpu, count in facts.get("lost", ())],
        unknown=int(facts.get("unknown", 0)),
        malformed=int(facts.get("malformed", 0)),
        skipped=int(facts.get("skipped", 0)),
        late=[(key, cpu, count) for key, cpu, count in facts.get("late", ())],
        newest=int(facts["newest"]),
        records=len(sequence),
        more=False,
    )


def batch(key: int, stride: int, rows: bytes, tails: Tails | None) -> Batch:
    """
    Return rows as the pure drainer would.
    """
    made = Batch(rows)
    made.key, made.stride, made.tails = key, stride, tails
    made.count = len(rows) // stride if stride else 0
    return made


class _Reader:
    """
    Takes bytes off the front.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._position = 0

    def take(self, size: int) -> bytes:
        if not 0 <= size <= len(self._body) - self._position:
            msg = f"{size} bytes expected, {len(self._body) - self._position} are left"
            raise ValueError(msg)
        self._position += size
        return self._body[self._position - size : self._position]

    def rest(self) -> bytes:
        return self.take(len(self._body) - self._position)
