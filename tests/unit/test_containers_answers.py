# SPDX-License-Identifier: Apache-2.0
"""
Answers of runtimes as a capture keeps them.
"""

from __future__ import annotations

import json

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kprobe_modules.modules.containers.runtimes import (
    Answer,
    EcsTask,
    KubernetesContainer,
    Limits,
    Metadata,
    Network,
    NomadTask,
    Port,
    pack,
    unpack,
)

texts = st.text(max_size=20)
maybe = st.none() | texts
numbers = st.integers(-(1 << 63), (1 << 63) - 1)


def filled(kind: type, **given: st.SearchStrategy) -> st.SearchStrategy:
    """
    Return instances whose other fields are texts or None.
    """
    rest = {field.name: maybe for field in attrs.fields(kind) if field.name not in given}
    return st.builds(kind, **rest, **given)


ports = st.builds(Port, st.integers(1, 65535), texts, maybe)
metadata = filled(
    Metadata,
    container_id=texts,
    labels=st.dictionaries(texts, texts, max_size=4),
    labels_dropped=st.integers(0, 9),
    networks=st.lists(filled(Network, name=texts), max_size=3).map(tuple),
    limits=st.builds(
        Limits,
        **{
            field.name: maybe if field.name == "cpuset_cpus" else st.none() | numbers
            for field in attrs.fields(Limits)
        },
    ),
    pid=st.none() | numbers,
    kubernetes=st.none()
    | filled(KubernetesContainer, ports=st.lists(ports, max_size=3).map(tuple)),
    ecs=st.none() | filled(EcsTask),
    nomad=st.none() | filled(NomadTask),
)
answers = st.builds(
    Answer, texts, maybe, numbers, st.none() | metadata, maybe, maybe, st.floats(0, 1e6)
)


@given(st.lists(answers, max_size=4))
def test_what_is_packed_is_unpacked(several: list[Answer]) -> None:
    assert unpack(pack(several)) == several


def test_a_newer_version_may_say_more_and_an_older_one_less() -> None:
    answer = Answer("c", "docker", 7, Metadata("c", name="n"), "docker at /s", None, 0.5)
    said = json.loads(pack([answer]))
    said["mood"] = "good"
    said["metadata"]["colour"] = {"is": "blue"}
    del said["seconds"], said["metadata"]["networks"]
    (again,) = unpack(json.dumps(said).encode() + b"\n")
    assert attrs.evolve(again, seconds=0.5) == answer


@pytest.mark.parametrize("raw", [b"{", b"[1]\n", b'{"metadata":{"limits":7}}\n'])
def test_what_is_no_answer_is_refused(raw: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        unpack(raw)
