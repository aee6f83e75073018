# SPDX-License-Identifier: Apache-2.0
"""
What the containers module says: one record class for each thing that can happen.

The field names are a contract: they are the keys of the JSON output.  A cgroup is
named by ``cgroup_id``, which is not used again while the machine is up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from kprobe_modules.api import Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "CgroupCreated",
    "CgroupDestroyed",
    "CgroupRenamed",
    "ContainerMetadata",
    "ContainerStarted",
    "ContainerStopped",
    "ProcessMoved",
]


@attrs.define(eq=False, repr=False)
class _CgroupRecord(Record):
    """
    What every record about a cgroup has.
    """

    cgroup_id: int
    """Id of the cgroup: the inode number of its folder."""
    parent_cgroup_id: int | None
    """The cgroup above, None for the root."""
    path: str | None
    """All names from the root of the hierarchy, as in ``/proc/PID/cgroup``.  None if
    what was said of a cgroup above was lost."""
    name: str
    """The last of them, empty for the root."""
    hierarchy: int
    """The hierarchy's number in ``/proc/PID/cgroup``: 0 is version 2."""
    container_id: str | None
    """The runtime's id of the container that the path says this belongs to, else None,
    as all that follows."""
    runtime: str | None
    """The runtime, such as ``docker``."""
    pod_uid: str | None
    """Uid of the Kubernetes pod."""
    qos_class: str | None
    """The pod's quality of service: ``guaranteed``, ``burstable`` or ``besteffort``."""
    unit: str | None
    """The systemd service or scope."""


@attrs.define(eq=False, repr=False)
class CgroupCreated(_CgroupRecord, module="containers"):
    """
    A cgroup was made, or was found to be there.
    """

    existing: bool
    """Whether it was found rather than seen being made."""


@attrs.define(eq=False, repr=False)
class CgroupDestroyed(_CgroupRecord, module="containers"):
    """
    A cgroup was removed.
    """


@attrs.define(eq=False, repr=False)
class CgroupRenamed(_CgroupRecord, module="containers"):
    """
    A cgroup got another name, and with it all below another path.
    """

    old_name: str
    old_path: str | None
    """None as `path`."""


@attrs.define(eq=False, repr=False)
class ContainerStarted(_CgroupRecord, module="containers"):
    """
    A container's own cgroup was made or found: the topmost with this container's id.
    """

    existing: bool
    """Whether it was found rather than seen starting."""


@attrs.define(eq=False, repr=False)
class ContainerStopped(_CgroupRecord, module="containers"):
    """
    A container's own cgroup was removed.
    """


@attrs.define(eq=False, repr=False)
class ContainerMetadata(_CgroupRecord, module="containers"):
    """
    What somebody says of a container; may come after the container has stopped.

    What nobody said is None, or missing from a mapping.
    """

    container_name: str | None
    image: str | None
    """As it was asked for, such as ``nginx:1.27``."""
    image_id: str | None
    labels: Mapping[str, str]
    labels_dropped: int
    """How many labels were left out, as together they were too long."""
    limits: Mapping[str, int | str]
    """What the container gets at most: bytes of ``memory``, ``memory_reservation`` and
    ``memory_swap``, ``memory_swappiness``, ``cpu_shares``, microseconds of ``cpu_period``
    and ``cpu_quota``, ``nano_cpus``, ``cpuset_cpus``, ``pids``."""
    networks: Sequence[Mapping[str, str]]
    """Of each network its ``name``, and the container's ``ipv4``, ``ipv6``, ``mac``."""
    network_mode: str | None
    container_pid: int | None
    """The first process, in the runtime's PID namespace."""
    kubernetes: Mapping[str, Any] | None
    ecs: Mapping[str, Any] | None
    nomad: Mapping[str, Any] | None
    source: str
    """Who said it: a runtime and its socket, or a file."""


@attrs.define(eq=False, repr=False)
class ProcessMoved(Record, module="containers"):
    """
    A process was moved to another cgroup.

    Told only while no other module tells what becomes of processes.
    """

    pid: int
    """Process id (the kernel's tgid) in the initial PID namespace."""
    start_time: int
    """When the process started, in nanoseconds since boot, suspend included."""
    parent_pid: int
    """Process id of the parent at that moment; 0 when the kernel is."""
    uid: int
    """Real user id in the initial user namespace."""
    comm: str
    """Command name, at most 15 bytes."""
    cgroup_id: int
    """The cgroup it is in now."""
    old_cgroup_id: int | None
    """The cgroup before, if that was told by an earlier move."""
