# SPDX-License-Identifier: Apache-2.0
"""
What is known of a container besides its path.  None stands for what nobody said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "EcsTask",
    "KubernetesContainer",
    "Limits",
    "Metadata",
    "Network",
    "NomadTask",
    "Port",
]

NANO: int = 1_000_000_000
DEFAULT_PERIOD: int = 100_000
"""Microseconds: CFS bandwidth control's own, Documentation/scheduler/sched-bwc.rst."""


@attrs.frozen
class Limits:
    """
    What the container was given at most, as its runtime was told.

    Names and units are those of ``HostConfig`` in Docker's Engine API, and zero there
    means that nothing was asked for, which is None here.
    """

    memory: int | None = None
    """``Memory``: bytes of memory at most (``memory.max``, v1 ``memory.limit_in_bytes``)."""
    memory_reservation: int | None = None
    """``MemoryReservation``: bytes that the kernel reclaims down to when memory is short
    (``memory.low``, v1 ``memory.soft_limit_in_bytes``); the soft limit."""
    memory_swap: int | None = None
    """``MemorySwap``: bytes of memory and swap together at most, -1 for as much swap as
    there is (v1 ``memory.memsw.limit_in_bytes``; v2's ``memory.swap.max`` is the difference)."""
    memory_swappiness: int | None = None
    """``MemorySwappiness``: 0 to 100, how readily anonymous pages are swapped out; cgroup v1
    only.  Zero means zero here, as it does there."""
    cpu_shares: int | None = None
    """``CpuShares``: weight against siblings, 2 to 262144, 1024 where nobody chooses."""
    cpu_period: int | None = None
    """``CpuPeriod``: microseconds that `cpu_quota` is for."""
    cpu_quota: int | None = None
    """``CpuQuota``: microseconds of CPU time per period, of all CPUs together."""
    nano_cpus: int | None = None
    """``NanoCpus``: the same as a number of CPUs, in billionths (``--cpus``)."""
    cpuset_cpus: str | None = None
    """``CpusetCpus``: CPUs that may be used, such as ``0-2,7``."""
    pids: int | None = None
    """``PidsLimit``: processes and threads at most."""

    @property
    def cpus(self) -> float | None:
        """
        Number of CPUs' worth of time, from whichever of the two ways was used.
        """
        if self.nano_cpus is not None:
            return self.nano_cpus / NANO
        if self.cpu_quota is None:
            return None
        return self.cpu_quota / (self.cpu_period or DEFAULT_PERIOD)


@attrs.frozen
class Network:
    """
    A network that the container is part of.
    """

    name: str
    ipv4: str | None = None
    ipv6: str | None = None
    """The global address."""
    mac: str | None = None


@attrs.frozen
class Port:
    """
    A port that a pod's container declares.
    """

    number: int
    protocol: str
    """As written: ``TCP``, ``UDP`` or ``SCTP``."""
    name: str | None = None


@attrs.frozen
class KubernetesContainer:
    """
    What kubelet wrote on a container: ``pkg/kubelet/types/labels.go``.
    """

    container_name: str | None = None
    pod_name: str | None = None
    namespace: str | None = None
    pod_uid: str | None = None
    sandbox_id: str | None = None
    """The container that holds the pod's namespaces."""
    ports: tuple[Port, ...] = ()


@attrs.frozen
class EcsTask:
    """
    What the agent of ECS wrote on a container: "Amazon ECS task metadata", labels.
    """

    cluster: str | None = None
    container_name: str | None = None
    task_arn: str | None = None
    task_family: str | None = None
    task_version: str | None = None


@attrs.frozen
class NomadTask:
    """
    What Nomad tells a task: "Runtime environment settings" of its documentation.
    """

    allocation: str | None = None
    namespace: str | None = None
    job_id: str | None = None
    job_name: str | None = None
    group_name: str | None = None
    task_name: str | None = None
    region: str | None = None
    datacenter: str | None = None


@attrs.frozen
class Metadata:
    """
    What a runtime says of one container.
    """

    container_id: str
    name: str | None = None
    """Without the slash that Docker's API puts before it."""
    image: str | None = None
    """As it was asked for, such as ``nginx:1.27``."""
    image_id: str | None = None
    labels: Mapping[str, str] = attrs.field(factory=dict)
    labels_dropped: int = 0
    """How many labels were left out, as together they were too long."""
    networks: tuple[Network, ...] = ()
    network_mode: str | None = None
    """``bridge``, ``host``, ``none``, ``container:<id>`` or a network's name."""
    limits: Limits = Limits()
    pid: int | None = None
    """The container's first process, in the runtime's PID namespace."""
    kubernetes: KubernetesContainer | None = None
    ecs: EcsTask | None = None
    nomad: NomadTask | None = None
