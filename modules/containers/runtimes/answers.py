# SPDX-License-Identifier: Apache-2.0
"""
Answers, also as the bytes by which a capture keeps them: one JSON object per line.

What nobody said is left out.  What is unknown here, as a newer version wrote it, is left out too.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs
from kprobe_modules.modules.containers.runtimes.metadata import (
    EcsTask,
    KubernetesContainer,
    Limits,
    Metadata,
    Network,
    NomadTask,
    Port,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Answer", "pack", "unpack"]

_Kind = TypeVar("_Kind", bound=attrs.AttrsInstance)


@attrs.frozen
class Answer:
    """
    What became of one question.
    """

    container_id: str
    runtime: str | None
    cgroup_id: int
    metadata: Metadata | None
    """None when nobody could say."""
    source: str | None
    """Who said it: a runtime with its socket, or a ``cgroup.procs``."""
    error: str | None
    """Why there is no metadata."""
    seconds: float
    """From the question to the answer."""


def pack(answers: Iterable[Answer]) -> bytes:
    """
    Return answers as bytes.
    """
    return b"".join(
        json.dumps(_plain(each), separators=(",", ":")).encode() + b"\n" for each in answers
    )


def unpack(raw: bytes) -> list[Answer]:
    """
    Return the answers that `pack` was given.

    Raises:
        ValueError, TypeError: it was given none of these bytes.
    """
    return [_made(Answer, json.loads(line)) for line in raw.splitlines()]


def _plain(said: attrs.AttrsInstance) -> dict[str, Any]:
    return attrs.asdict(said, filter=lambda _, value: value is not None)


def _made(kind: type[_Kind], said: object) -> _Kind:
    """
    Make an instance of its fields, and those of their fields.
    """
    if not isinstance(said, dict):
        msg = f"expected the fields of {kind.__name__}, found {type(said).__name__}"
        raise TypeError(msg)
    values: dict[str, Any] = {}
    for field in attrs.fields(kind):
        if field.name in said:
            value = said[field.name]
            make = _NESTED.get((kind, field.name))
            values[field.name] = value if make is None else make(value)
        elif field.default is attrs.NOTHING:
            values[field.name] = None
    return kind(**values)


def _one(kind: type[_Kind]) -> Callable[[Any], _Kind]:
    return lambda said: _made(kind, said)


def _several(kind: type[_Kind]) -> Callable[[Any], tuple[_Kind, ...]]:
    return lambda said: tuple(_made(kind, each) for each in said)


_NESTED: Final[dict[tuple[type, str], Callable[[Any], object]]] = {
    (Answer, "metadata"): _one(Metadata),
    (Metadata, "limits"): _one(Limits),
    (Metadata, "networks"): _several(Network),
    (Metadata, "kubernetes"): _one(KubernetesContainer),
    (Metadata, "ecs"): _one(EcsTask),
    (Metadata, "nomad"): _one(NomadTask),
    (KubernetesContainer, "ports"): _several(Port),
}
