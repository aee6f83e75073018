# SPDX-License-Identifier: Apache-2.0
"""
One step in the life of handlers, as it stands in a capture.

A step is something that a handler was given or asked to do, with everything that it
saw of the world meanwhile.  It is a head in JSON and a body of bytes::

    u32 bytes of the head, u32 bytes of the body, head, body

The body holds what was observed, one after the other, then what the kind of step needs.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any, Final

import attrs

from kprobe_modules.errors import CaptureError
from kprobe_modules.records import Failure, Lost, Metrics, Stats, Suppressed, as_dict
from kprobe_modules.sinks.values import plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kprobe_modules.records import Record

__all__ = ["Observation", "Step", "decode", "encode"]

_SIZES = struct.Struct("<II")

_TOLD: Final[dict[str, type[Record]]] = {
    kind.record: kind for kind in (Failure, Lost, Metrics, Stats, Suppressed)
}
"""What depends on clocks and counters of the kernel, and is kept as it was said."""


_SENSELESS = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What comes of JSON that is not what was expected."""


@attrs.frozen
class Observation:
    """
    What a handler saw beyond its messages.

    Attributes:
        module: whose handler.
        what: the name by which it asked.
        seen: what it saw, or the error number that it met.
    """

    module: str
    what: str
    seen: bytes | int


@attrs.define
class Step:
    """
    One step.

    Attributes:
        kind: see `kprobe_modules.journal.Journal`; besides ``module``, ``told`` and
            ``totals``.
        module: whose handler; empty where it is all of them, or none.
        now: the framework's time, ns since the epoch.
        facts: what else the kind needs, as JSON has it.
        body: bytes that belong to the facts.
        observed: in the order in which it was seen.
        told: records of the framework that are given back as they were, each with its
            place among the records of the step.
        errors: how many exceptions of handlers were counted.
    """

    kind: str
    module: str = ""
    now: int = 0
    facts: dict[str, Any] = attrs.field(factory=dict)
    body: bytes = b""
    observed: list[Observation] = attrs.field(factory=list)
    told: list[tuple[int, Record]] = attrs.field(factory=list)
    errors: int = 0


def encode(step: Step) -> bytes:
    """
    Return a step as it stands in a block.
    """
    head: dict[str, Any] = {"step": step.kind, "now": step.now}
    if step.module:
        head["module"] = step.module
    head |= step.facts
    parts: list[bytes] = []
    if step.observed:
        head["observed"] = [_observed(each, parts) for each in step.observed]
    if step.told:
        head["told"] = [[place, plain(as_dict(record))] for place, record in step.told]
    if step.errors:
        head["errors"] = step.errors
    text = json.dumps(head, separators=(",", ":")).encode()
    body = b"".join((*parts, step.body))
    return _SIZES.pack(len(text), len(body)) + text + body


def _observed(each: Observation, parts: list[bytes]) -> list[Any]:
    if isinstance(each.seen, int):
        return [each.module, each.what, -each.seen]
    parts.append(each.seen)
    return [each.module, each.what, len(each.seen)]


def decode(content: bytes) -> Iterator[Step]:
    """
    Iterate over the steps of a block.

    Raises:
        CaptureError: the block holds something else.
    """
    position = 0
    while position < len(content):
        try:
            head_size, body_size = _SIZES.unpack_from(content, position)
            start = position + _SIZES.size
            end = start + head_size + body_size
            if end > len(content):
                msg = f"{end - len(content)} bytes are missing"
                raise ValueError(msg)
            head = json.loads(content[start : start + head_size])
            yield _step(head, content[start + head_size : end])
        except (struct.error, *_SENSELESS) as error:
            msg = f"a step is damaged: {type(error).__name__}: {error}"
            raise CaptureError(msg) from error
        position = end


def _step(head: dict[str, Any], body: bytes) -> Step:
    observed: list[Observation] = []
    position = 0
    for module, what, size in head.pop("observed", ()):
        if size < 0:
            observed.append(Observation(str(module), str(what), -size))
            continue
        observed.append(Observation(str(module), str(what), body[position : position + size]))
        position += size
    told = [(int(place), _told(record)) for place, record in head.pop("told", ())]
    return Step(
        kind=str(head.pop("step")),
        module=str(head.pop("module", "")),
        now=int(head.pop("now")),
        body=body[position:],
        observed=observed,
        told=told,
        errors=int(head.pop("errors", 0)),
        facts=head,
    )


def _told(values: dict[str, Any]) -> Record:
    kind = _TOLD[values.pop("record")]
    return kind(**values)
