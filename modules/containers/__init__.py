# SPDX-License-Identifier: Apache-2.0
"""
Containers: cgroups made, removed and renamed, and the containers they belong to.

Reports every cgroup that is there when the module is attached or is made later, exactly
once each, with its full path, and what the path says: container, runtime, pod, unit.
Only one hierarchy counts: the memory controller's where that has a version 1 hierarchy
of its own, else version 2.
"""

from __future__ import annotations

import struct

from kprobe_modules.modules.containers.records import (
    CgroupCreated,
    CgroupDestroyed,
    CgroupRenamed,
    ContainerMetadata,
    ContainerStarted,
    ContainerStopped,
    ProcessMoved,
)

from kprobe_modules.api import Alternative, Hook, Manifest

__all__ = ["MODULE"]

_DESCENDANTS_PRE = 2
"""``enum bpf_cgroup_iter_order`` of <linux/bpf.h>: those above first."""

_FROM_THE_ROOT = struct.pack("<IIQ", _DESCENDANTS_PRE, 0, 0)
"""``union bpf_iter_link_info``: order, cgroup_fd, cgroup_id."""

_WALK = Alternative(
    source="walk",
    note="what is found comes from the mounted folders, not from the kernel's own list",
)
_BEFORE = "also reports a cgroup that the kernel then fails to make"

MODULE = Manifest(
    name="containers",
    package="kprobe_modules.modules.containers",
    handler="kprobe_modules.modules.containers.handler:ContainersHandler",
    summary="containers and cgroups: made, removed, renamed",
    version="1",
    common_maps=("events",),
    records=(
        CgroupCreated,
        CgroupDestroyed,
        CgroupRenamed,
        ContainerStarted,
        ContainerStopped,
        ContainerMetadata,
        ProcessMoved,
    ),
    hooks=(
        Hook(
            "end",
            "END",
            (
                "end_btf",
                "end_fexit",
                Alternative("end_return", companions=("end_entry",)),
                Alternative("end_kill", note="not of a cgroup without any controller"),
            ),
            notices="a cgroup is removed",
        ),
        Hook(
            "start",
            "START",
            (
                "start_btf",
                Alternative("start_fexit", note=_BEFORE),
                Alternative("start_kprobe", note=_BEFORE),
                Alternative("start_dir", note=_BEFORE),
            ),
            notices="a cgroup is made",
        ),
        Hook(
            "rename",
            "TELEMETRY",
            (
                "rename_btf",
                "rename_fexit",
                Alternative("rename_return", companions=("rename_entry",)),
            ),
            required=False,
            notices="a cgroup of version 1 gets another name",
        ),
        Hook(
            "move",
            "TELEMETRY",
            (
                "move_btf",
                "move_fexit",
                Alternative("move_return", companions=("move_entry",)),
            ),
            required=False,
            notices="a process is moved to another cgroup",
        ),
        Hook(
            "existing",
            "EXISTING",
            (
                Alternative("existing_iter", link_info=_FROM_THE_ROOT),
                # A tracing program cannot be attached twice before 5.13 (f3a95075549e),
                # as a second scan does.
                "existing_kret",
                "existing_fexit",
                "existing_ctl",
                _WALK,
            ),
            notices="cgroups of version 2 that were there before",
        ),
        Hook(
            "existing_v1",
            "EXISTING",
            ("existing1_kpro", "existing1_fent", _WALK),
            notices="cgroups of version 1 that were there before",
        ),
    ),
)
