# SPDX-License-Identifier: Apache-2.0
"""
What is read out of an inspection, and what is not.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kprobe_modules.modules.containers.runtimes import (
    EcsTask,
    KubernetesContainer,
    Limits,
    Network,
    NomadTask,
    Port,
)
from kprobe_modules.modules.containers.runtimes.inspection import (
    LABELS_LENGTH,
    NonsenseError,
    read_inspection,
)

ID = "9ec39b91f3d70e1beff50a308f77067065ea6be0d91a3378375056cd4422cf3d"

#: Fields and types as in "Inspect a container" of Docker's Engine API, version 1.43.
SAID: dict[str, Any] = {
    "Id": ID,
    "Name": "/web",
    "Image": "sha256:72297848456d5d37d1262630108ab308d3e9ec7ed1c3286a32fe09856619a782",
    "State": {"Status": "running", "Pid": 1234},
    "Config": {
        "Image": "nginx:1.27",
        "Labels": {"com.example.owner": "shop"},
        "Env": ["PATH=/bin", "SECRET=hunter2"],
    },
    "HostConfig": {
        "NetworkMode": "front",
        "Memory": 268435456,
        "MemoryReservation": 134217728,
        "MemorySwap": 536870912,
        "MemorySwappiness": 42,
        "CpuShares": 512,
        "CpuPeriod": 50000,
        "CpuQuota": 75000,
        "NanoCpus": 0,
        "CpusetCpus": "0-2,7",
        "PidsLimit": 100,
    },
    "NetworkSettings": {
        "IPAddress": "",
        "Networks": {
            "front": {
                "IPAddress": "172.18.0.2",
                "GlobalIPv6Address": "fd00::2",
                "MacAddress": "02:42:ac:12:00:02",
            },
            "back": {"IPAddress": "172.19.0.3", "GlobalIPv6Address": "", "MacAddress": ""},
        },
    },
}


def read(**changed: Any) -> Any:
    return read_inspection(json.dumps({**SAID, **changed}).encode(), ID)


def with_labels(labels: dict[str, Any], env: list[Any] | None = None) -> Any:
    return read(Config={**SAID["Config"], "Labels": labels, "Env": env or []})


def limits(**said: Any) -> Limits:
    return read(HostConfig=said).limits


def test_an_inspection() -> None:
    found = read()

    assert found.container_id == ID
    assert found.name == "web"
    assert found.image == "nginx:1.27"
    assert found.image_id == SAID["Image"]
    assert found.labels == {"com.example.owner": "shop"}
    assert found.pid == 1234
    assert found.network_mode == "front"
    assert found.networks == (
        Network("front", "172.18.0.2", "fd00::2", "02:42:ac:12:00:02"),
        Network("back", "172.19.0.3"),
    )
    assert found.kubernetes is found.ecs is found.nomad is None


def test_each_limit_is_itself() -> None:
    assert read().limits == Limits(
        memory=268435456,
        memory_reservation=134217728,
        memory_swap=536870912,
        memory_swappiness=42,
        cpu_shares=512,
        cpu_period=50000,
        cpu_quota=75000,
        nano_cpus=None,
        cpuset_cpus="0-2,7",
        pids=100,
    )


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("Memory", "memory"),
        ("MemoryReservation", "memory_reservation"),
        ("MemorySwap", "memory_swap"),
        ("MemorySwappiness", "memory_swappiness"),
        ("CpuShares", "cpu_shares"),
        ("CpuPeriod", "cpu_period"),
        ("CpuQuota", "cpu_quota"),
        ("NanoCpus", "nano_cpus"),
        ("PidsLimit", "pids"),
    ],
)
def test_a_limit_alone(key: str, field: str) -> None:
    assert limits(**{key: 77}) == Limits(**{field: 77})


def test_limits_that_are_none() -> None:
    zero = ("Memory", "MemoryReservation", "MemorySwap", "CpuShares", "CpuPeriod", "CpuQuota",
            "NanoCpus", "PidsLimit")  # fmt: skip
    assert limits(**dict.fromkeys(zero, 0), CpusetCpus="", MemorySwappiness=None) == Limits()
    assert limits(CpuQuota=-1, PidsLimit=-1, MemorySwappiness=-1) == Limits()


def test_limits_where_zero_and_minus_one_mean_something() -> None:
    assert limits(MemorySwappiness=0).memory_swappiness == 0
    assert limits(MemorySwap=-1).memory_swap == -1


def test_cpus() -> None:
    assert limits(NanoCpus=1_500_000_000).cpus == 1.5
    assert limits(CpuPeriod=50_000, CpuQuota=75_000).cpus == 1.5
    assert limits(CpuQuota=25_000).cpus == 0.25
    assert limits(CpuPeriod=50_000).cpus is None


def test_kubernetes() -> None:
    found = with_labels({
        "io.kubernetes.container.name": "nginx",
        "io.kubernetes.pod.name": "web-6467d7f488-9npbb",
        "io.kubernetes.pod.namespace": "shop",
        "io.kubernetes.pod.uid": "2c9f8a79-5391-454b-88cb-86190881cb96",
        "io.kubernetes.sandbox.id": "f" * 64,
        "annotation.io.kubernetes.container.ports": json.dumps([
            {"name": "http", "containerPort": 80, "protocol": "TCP"},
            {"containerPort": 53, "protocol": "UDP"},
            {"containerPort": 70000}, {"containerPort": "81"}, {"containerPort": True}, 7,
        ]),
    })  # fmt: skip

    assert found.kubernetes == KubernetesContainer(
        "nginx",
        "web-6467d7f488-9npbb",
        "shop",
        "2c9f8a79-5391-454b-88cb-86190881cb96",
        "f" * 64,
        (Port(80, "TCP", "http"), Port(53, "UDP")),
    )


@pytest.mark.parametrize("ports", ["", "{", "{}", "null", "[" * 100_000])
def test_kubernetes_ports_that_are_none(ports: str) -> None:
    labels = {"io.kubernetes.pod.name": "web"}
    if len(ports) < 4096:
        labels["annotation.io.kubernetes.container.ports"] = ports
    assert with_labels(labels).kubernetes == KubernetesContainer(pod_name="web")


def test_ecs() -> None:
    prefix = "com.amazonaws.ecs."
    found = with_labels({
        f"{prefix}cluster": "prod",
        f"{prefix}container-name": "app",
        f"{prefix}task-arn": "arn:aws:ecs:eu-west-1:1:task/prod/5a0d5ceddf6c44c1928d367a815d890f",
        f"{prefix}task-definition-family": "shop",
        f"{prefix}task-definition-version": "7",
    })  # fmt: skip

    assert found.ecs == EcsTask(
        "prod",
        "app",
        "arn:aws:ecs:eu-west-1:1:task/prod/5a0d5ceddf6c44c1928d367a815d890f",
        "shop",
        "7",
    )


def test_nomad_and_nothing_else_of_the_environment() -> None:
    found = with_labels({}, [
        "NOMAD_ALLOC_ID=84407c34-35e1-b0cb-4a8f-f3b6c9a8cc81",
        "NOMAD_NAMESPACE=default",
        "NOMAD_JOB_ID=shop",
        "NOMAD_JOB_NAME=shop=1",
        "NOMAD_GROUP_NAME=web",
        "NOMAD_TASK_NAME=nginx",
        "NOMAD_REGION=global",
        "NOMAD_DC=dc1",
        "NOMAD_TOKEN=hunter2",
        "NOMAD_META_KEY=hunter2",
        "SECRET=hunter2",
        "NOMAD_DC",
        7,
    ])  # fmt: skip

    assert found.nomad == NomadTask(
        "84407c34-35e1-b0cb-4a8f-f3b6c9a8cc81", "default", "shop", "shop=1", "web", "nginx",
        "global", "dc1",
    )  # fmt: skip
    assert "hunter2" not in str(found)


def test_before_networks_had_names() -> None:
    found = read(NetworkSettings={"IPAddress": "172.17.0.2"})

    assert found.networks == (Network("", "172.17.0.2"),)


def test_labels_too_long_are_counted() -> None:
    found = with_labels({"a": "x", "long": "x" * LABELS_LENGTH, "b": "y", "odd": 7})

    assert found.labels == {"a": "x", "b": "y"}
    assert found.labels_dropped == 2


def test_half_of_a_surrogate_pair() -> None:
    body = json.dumps({**SAID, "Name": "/\ud800", "Config": {"Labels": {"\udc00": "\ud800"}}})
    found = read_inspection(body.encode(), ID)

    assert (found.name, found.labels) == ("?", {"?": "?"})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "expected JSON"),
        (b"<html>", "expected JSON"),
        (b"\xff\xfe\xfd", "expected JSON"),
        (b"[" * 500_000, "expected JSON"),
        (b'{"Id":' + b"9" * 5000 + b"}", "expected JSON"),
        (b"[]", "found list"),
        (b"null", "found NoneType"),
        (b"{}", f"expected container {ID}, found 'None'"),
        (b'{"Id": "abc"}', "found 'abc'"),
        (b'{"Id": ["' + ID.encode() + b'"]}', "expected container"),
    ],
)
def test_nonsense(body: bytes, words: str) -> None:
    with pytest.raises(NonsenseError, match=r"^expected") as raised:
        read_inspection(body, ID)
    assert words in str(raised.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=20,
)
KEYS = {
    "Name": JSON, "Image": JSON, "State": JSON | st.fixed_dictionaries({"Pid": JSON}),
    "Config": JSON | st.fixed_dictionaries({"Image": JSON, "Labels": JSON, "Env": JSON}),
    "HostConfig": JSON | st.dictionaries(st.sampled_from(sorted(SAID["HostConfig"])), JSON),
    "NetworkSettings": JSON | st.fixed_dictionaries({"Networks": JSON, "IPAddress": JSON}),
}  # fmt: skip


@given(st.fixed_dictionaries(KEYS))
def test_lies_of_any_type_are_left_out(said: dict[str, Any]) -> None:
    found = read_inspection(json.dumps({**said, "Id": ID}).encode(), ID)

    for text in (found.name, found.image, found.image_id, found.network_mode):
        assert text is None or (isinstance(text, str) and text.encode())
    for key, value in found.labels.items():
        assert (key + value).encode() is not None
    assert found.pid is None or found.pid > 0


@given(st.binary(max_size=200))
def test_any_bytes(body: bytes) -> None:
    with pytest.raises(NonsenseError):
        read_inspection(body, ID)
