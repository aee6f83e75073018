# SPDX-License-Identifier: Apache-2.0
"""
What Kubernetes, ECS and Nomad leave on the containers they start: labels and variables.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from kprobe_modules.modules.containers.runtimes.metadata import (
    EcsTask,
    KubernetesContainer,
    NomadTask,
    Port,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["ecs", "kubernetes", "nomad", "nomad_variables"]

_KUBERNETES: Final = {
    "container_name": "io.kubernetes.container.name",
    "pod_name": "io.kubernetes.pod.name",
    "namespace": "io.kubernetes.pod.namespace",
    "pod_uid": "io.kubernetes.pod.uid",
    "sandbox_id": "io.kubernetes.sandbox.id",
}
_KUBERNETES_PORTS: Final = "annotation.io.kubernetes.container.ports"
"""JSON: a list of ``{"name": …, "containerPort": …, "protocol": …}``."""

_ECS: Final = {
    "cluster": "com.amazonaws.ecs.cluster",
    "container_name": "com.amazonaws.ecs.container-name",
    "task_arn": "com.amazonaws.ecs.task-arn",
    "task_family": "com.amazonaws.ecs.task-definition-family",
    "task_version": "com.amazonaws.ecs.task-definition-version",
}

_NOMAD: Final = {
    "allocation": "NOMAD_ALLOC_ID",
    "namespace": "NOMAD_NAMESPACE",
    "job_id": "NOMAD_JOB_ID",
    "job_name": "NOMAD_JOB_NAME",
    "group_name": "NOMAD_GROUP_NAME",
    "task_name": "NOMAD_TASK_NAME",
    "region": "NOMAD_REGION",
    "datacenter": "NOMAD_DC",
}
_NOMAD_NAMES: Final = frozenset(_NOMAD.values())
_VALUE_LENGTH: Final = 4096

_MAX_PORT: Final = 65535
_MAX_PORTS: Final = 256


def kubernetes(labels: Mapping[str, str]) -> KubernetesContainer | None:
    """
    Return what kubelet wrote on a container, or None where it wrote nothing.
    """
    said = {field: labels[label] for field, label in _KUBERNETES.items() if label in labels}
    if not said:
        return None
    return KubernetesContainer(**said, ports=_ports(labels.get(_KUBERNETES_PORTS, "")))


def ecs(labels: Mapping[str, str]) -> EcsTask | None:
    """
    Return what the agent of ECS wrote on a container, or None where it wrote nothing.
    """
    said = {field: labels[label] for field, label in _ECS.items() if label in labels}
    return EcsTask(**said) if said else None


def nomad_variables(environment: Iterable[str]) -> dict[str, str]:
    """
    Pick Nomad's variables out of ``NAME=value`` strings, and nothing that may be a secret.
    """
    found = {}
    for entry in environment:
        name, equals, value = entry.partition("=")
        if equals and name in _NOMAD_NAMES:
            found[name] = value[:_VALUE_LENGTH]
    return found


def nomad(environment: Iterable[str]) -> NomadTask | None:
    """
    Return what Nomad tells the task with this environment, or None where it tells nothing.
    """
    variables = nomad_variables(environment)
    said = {field: variables[name] for field, name in _NOMAD.items() if name in variables}
    return NomadTask(**said) if said else None


def _ports(text: str) -> tuple[Port, ...]:
    try:
        entries = json.loads(text) if text else []
    except (ValueError, RecursionError):
        return ()
    if not isinstance(entries, list):
        return ()
    found = []
    for entry in entries[:_MAX_PORTS]:
        number = entry.get("containerPort") if isinstance(entry, dict) else None
        if type(number) is int and 0 < number <= _MAX_PORT:
            name, protocol = entry.get("name"), entry.get("protocol")
            found.append(
                Port(
                    number,
                    protocol if isinstance(protocol, str) else "TCP",
                    name if isinstance(name, str) and name else None,
                )
            )
    return tuple(found)
