# SPDX-License-Identifier: Apache-2.0
"""
Whose cgroup a path names: container, pod, unit, Nomad allocation or ECS task.

Nothing but the path is looked at: no daemon is asked, no file is read.  A path is
walked from the top, one component at a time, and what lies deeper wins, so that a
container inside a container is itself and not the one around it.

Who writes which path:

* Docker, and what speaks to runc: ``docs/systemd.md`` of opencontainers/runc
  (``slice:prefix:name`` becomes ``slice/prefix-name.scope``), else the driver
  "cgroupfs", which has a plain folder per id;
* Kubernetes: ``pkg/kubelet/cm/cgroup_manager_linux.go``, ``pod_container_manager_linux.go``;
* CRI-O: ``internal/config/cgmgr``; Podman: ``libpod/container_internal_linux.go``,
  ``libpod/oci_conmon_linux.go``;
* LXC, LXD, Incus: lxc.container.conf(5), ``lxc.cgroup.dir``;
* systemd: "Control Group APIs and Delegation", systemd.slice(5), systemd-nspawn(1);
* Nomad: ``client/lib/cgroupslib``; ECS: ``agent/taskresource/cgroup`` of its agent.
"""

from __future__ import annotations

import re
import string
from typing import Any, Final

import attrs

__all__ = ["Identity", "identify"]

_HEX: Final = frozenset("0123456789abcdef")
_ID_LENGTH: Final = 64

_RUNTIMES: Final = {
    "docker": "docker",
    "cri-containerd": "containerd",
    "containerd": "containerd",
    "nerdctl": "containerd",
    "crio": "cri-o",
    "cri-o": "cri-o",
    "libpod": "podman",
    "libpod-payload": "podman",
}
"""What runtimes put before an id, as in ``docker-<id>.scope``."""

_SUPERVISORS: Final = frozenset({"crio-conmon", "libpod-conmon"})
"""The same for processes that watch over a container and are not inside."""

_PARENTS: Final = {
    "docker": "docker",
    "ecs": "docker",
    "actions_job": "docker",
    "default": "containerd",
    "k8s.io": "containerd",
    "libpod-conmon": "podman",
}
"""Folders whose plain ids are containers of a runtime: its default, its namespaces."""

_OVERHEAD: Final = frozenset({"kata_overhead"})
"""Folders with plain ids that are the host's side of a virtual machine, not containers."""

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TASK_ID: Final = re.compile(rf"{_UUID.pattern}|[0-9a-f]{{32}}")
_FARGATE_ID: Final = re.compile(r"[0-9a-f]{32}-[0-9]{5,20}")
_BUILDKIT_ID: Final = re.compile(r"[a-z0-9]{25}")
_POD_UID: Final = re.compile(r"[0-9A-Za-z_-]{8,128}")
_POD_SLICE: Final = re.compile(
    rf"(?:.{{1,128}}-)?kubepods(?:-(besteffort|burstable))?(?:-pod({_POD_UID.pattern}))?\.slice"
)
_PODMAN_POD: Final = re.compile(r"(?:.{1,128}-)?libpod_pod_([0-9a-f]{64})\.slice")
_ECS_SLICE: Final = re.compile(rf"ecstasks-({_TASK_ID.pattern})\.slice")
_NOMAD_TASK: Final = re.compile(rf"({_UUID.pattern})[.-](.{{1,200}}?)(?:\.scope)?")
_VIRTUAL_MACHINE: Final = re.compile(r"qemu-[0-9]+-.+")
_LIBVIRT_LXC: Final = re.compile(r"lxc-[0-9]+-(.+)")
_USER_SLICE: Final = re.compile(r"user-([0-9]{1,10})\.slice")
_ESCAPE: Final = re.compile(r"\\x([0-9a-f]{2})")
_UNIT_CHARACTERS: Final = frozenset(string.ascii_letters + string.digits + ":-_.\\@")
_UNIT_LENGTH: Final = 255

_QOS: Final = frozenset({"besteffort", "burstable"})


@attrs.frozen
class Identity:
    """
    What a cgroup's path says about it.  What the path does not say is None.
    """

    container_id: str | None = None
    """The id that the runtime knows the container by: 64 hexadecimal digits for most,
    the name for LXC and systemd-nspawn, ``<allocation>.<task>`` for a task that Nomad
    runs without another runtime."""
    runtime: str | None = None
    """``docker``, ``containerd``, ``cri-o``, ``podman``, ``lxc``, ``systemd-nspawn``,
    ``libvirt-lxc``, ``nomad``, ``garden`` or ``buildkit``.  None with a container where
    the path tells the id alone, as Kubernetes' does with the driver "cgroupfs"."""
    root: str | None = None
    """The part of the path that is the container's own cgroup; what lies below it was
    made inside the container, or by its runtime for it."""
    pod_uid: str | None = None
    """Uid of the Kubernetes pod, as in the label ``io.kubernetes.pod.uid``: static pods
    have 32 hexadecimal digits without hyphens."""
    qos_class: str | None = None
    """Kubernetes' quality of service: ``guaranteed``, ``burstable`` or ``besteffort``."""
    pod_id: str | None = None
    """Id of the Podman pod, 64 hexadecimal digits."""
    unit: str | None = None
    """The systemd service or scope: the container's own where it has a systemd inside,
    else the host's."""
    user_unit: str | None = None
    """The service or scope of a user's service manager, below ``user@<uid>.service``."""
    slice: str | None = None
    """The innermost systemd slice around the unit, ``-.slice`` for none but the root."""
    uid: int | None = None
    """Id of the user whose slice this is on the host: who runs a rootless container."""
    machine: str | None = None
    """Name in ``machine.slice``, of a container or a virtual machine."""
    nomad_allocation: str | None = None
    nomad_task: str | None = None
    ecs_task: str | None = None
    """Id of the ECS task, the last part of its ARN."""
    is_root: bool = False
    """Whether the path itself is the container's own cgroup."""


def identify(path: str) -> Identity:
    """
    Tell what a cgroup's path says, in time proportional to its length.

    Args:
        path: path from the root of its hierarchy, as in ``/proc/PID/cgroup``.  Leading
            ``/..`` of a reader in a cgroup namespace is skipped.  Any string is allowed.
    """
    walk = _Walk()
    components = path.split("/")
    root = 0
    last = 0
    for number, name in enumerate(components):
        if not name or name in {".", ".."}:
            continue
        last = number
        if walk.enter(name):
            root = number
    if walk.found["container_id"] is not None:
        walk.found["root"] = "/".join(components[: root + 1])
        walk.found["is_root"] = root == last
    return Identity(**walk.found)


class _Walk:
    """
    The way down a path: what has been found so far, and the components above.
    """

    def __init__(self) -> None:
        self.found: dict[str, Any] = {"container_id": None}
        self._parent = ""
        self._grandparent = ""
        self._in_kubepods = False
        self._in_ecs = False
        self._in_nomad = False

    def enter(self, name: str) -> bool:
        """
        Take the next component; tell whether it is a container's own cgroup.
        """
        started = False
        self._note_orchestrator(name)
        container = self._container(name)
        if container is not None and container[1] != self.found["container_id"]:
            self.found["runtime"], self.found["container_id"] = container
            started = True
        self._note_unit(name)
        self._grandparent, self._parent = self._parent, name
        return started

    # -- containers ---------------------------------------------------------

    def _container(self, name: str) -> tuple[str | None, str] | None:
        """
        Return runtime and id if a component is a container's own cgroup.
        """
        return (
            self._by_id(name)
            or self._by_name(name)
            or self._by_machine(name)
            or self._by_nomad(name)
            or self._by_builder(name)
        )

    def _by_id(self, name: str) -> tuple[str | None, str] | None:
        """
        Find ``<id>``, ``<prefix>-<id>[.scope]`` and ``<slice>:<prefix>:<id>``.
        """
        prefix, container_id = _prefix_and_id(name)
        if container_id is None or prefix in _SUPERVISORS or self._parent in _OVERHEAD:
            return None
        if prefix is None:
            if self._parent == "libpod_parent":
                # Podman's pods are plain there, their containers are not.
                self.found["pod_id"] = container_id
                return None
            above = _prefix_and_id(self._parent)[0] or self._parent
            return ("docker" if self._in_ecs else _PARENTS.get(above)), container_id
        if prefix in _RUNTIMES:
            return _RUNTIMES[prefix], container_id
        if prefix.startswith("cri-"):
            return prefix.removeprefix("cri-"), container_id
        # Whoever called runc chose the prefix; without ".scope" it could be anything.
        return (None, container_id) if name.endswith(".scope") or ":" in name else None

    def _by_name(self, name: str) -> tuple[str | None, str] | None:
        """
        Find LXC's ``lxc/<name>`` and ``lxc.payload.<name>``, and Garden's ``garden/<handle>``.

        LXC's monitors have folders of their own, ``lxc.monitor``, which say nothing here.
        """
        if name.startswith("lxc.payload."):
            return "lxc", name.removeprefix("lxc.payload.")
        if self._parent in {"lxc", "lxc.payload"}:
            return "lxc", name
        in_garden = self._parent == "garden" or (
            self._grandparent == "garden" and self._parent in {"good", "bad"}
        )
        if in_garden and name not in {"good", "bad"}:
            return "garden", name
        return None

    def _by_machine(self, name: str) -> tuple[str | None, str] | None:
        """
        Find ``machine.slice/machine-<name>.scope`` and ``systemd-nspawn@<name>.service``.
        """
        machine = _machine(name, self._parent)
        if machine is None:
            return None
        self.found["machine"] = machine
        if _VIRTUAL_MACHINE.fullmatch(machine):
            return None
        libvirt = _LIBVIRT_LXC.fullmatch(machine)
        if libvirt is not None:
            return "libvirt-lxc", libvirt[1]
        return "systemd-nspawn", machine

    def _by_nomad(self, name: str) -> tuple[str | None, str] | None:
        """
        Find ``<allocation>.<task>.scope`` below ``nomad.slice``, and older forms.
        """
        if not self._in_nomad:
            return None
        task = _NOMAD_TASK.fullmatch(name)
        if task is not None:
            self.found["nomad_allocation"], self.found["nomad_task"] = task[1], task[2]
            return "nomad", f"{task[1]}.{task[2]}"
        if _UUID.fullmatch(name):
            # Before 1.7 the executor gave its container a random id.
            return "nomad", name
        return None

    def _by_builder(self, name: str) -> tuple[str | None, str] | None:
        """
        Find BuildKit's steps, and ECS' containers on Fargate.
        """
        if self._parent == "buildkit" and _BUILDKIT_ID.fullmatch(name):
            return "buildkit", name
        step = name.removeprefix("docker-").removesuffix(".scope")
        if step != name and name.startswith("docker-") and _BUILDKIT_ID.fullmatch(step):
            # The one in dockerd, with the driver "systemd".
            return "buildkit", step
        if self._in_ecs and _FARGATE_ID.fullmatch(name):
            return None, name
        return None

    # -- orchestrators ------------------------------------------------------

    def _note_orchestrator(self, name: str) -> None:
        if name in {"nomad", "nomad.slice"}:
            self._in_nomad = True
        elif name == "ecs":
            self._in_ecs = True
        elif self._in_ecs and _TASK_ID.fullmatch(name):
            self.found["ecs_task"] = name
        elif name == "kubepods":
            self._in_kubepods = True
        elif name.startswith("pod") and self._in_kubepods:
            uid = name.removeprefix("pod")
            if _POD_UID.fullmatch(uid):
                self._pod(uid, self._parent if self._parent in _QOS else None)
        elif name in _QOS and self._parent == "kubepods":
            self.found["qos_class"] = name
        else:
            self._note_slice(name)

    def _note_slice(self, name: str) -> None:
        """
        Find pods and tasks that are slices, or the slice in ``<slice>:<prefix>:<id>``.
        """
        name = name.partition(":")[0]
        if not name.endswith(".slice"):
            return
        pod = _POD_SLICE.fullmatch(name)
        if pod is not None:
            if pod[2] is not None:
                self._pod(pod[2], pod[1])
            elif pod[1] is not None:
                self.found["qos_class"] = pod[1]
            return
        podman = _PODMAN_POD.fullmatch(name)
        if podman is not None:
            self.found["pod_id"] = podman[1]
        task = _ECS_SLICE.fullmatch(name)
        if task is not None:
            self.found["ecs_task"] = task[1]

    def _pod(self, uid: str, qos_class: str | None) -> None:
        self.found["pod_uid"] = uid.replace("_", "-")
        # Pods of the third class lie above the folders of the other two.
        self.found["qos_class"] = qos_class or "guaranteed"

    # -- systemd ------------------------------------------------------------

    def _note_unit(self, name: str) -> None:
        """
        Follow slices down to a unit, and what a user's manager has below its own.
        """
        name = name.removeprefix("_")  # cg_escape() of src/basic/cgroup-util.c
        if not _is_unit(name):
            return
        unit, user_unit = self.found.get("unit"), self.found.get("user_unit")
        in_manager = isinstance(unit, str) and unit.startswith("user@") and user_unit is None
        if name.endswith(".slice"):
            if unit is not None and not in_manager:
                # A container, or something else with a systemd of its own.
                self._forget_units()
            self.found["slice"] = name
            self._note_uid(name)
        elif unit is None:
            self.found["unit"] = name
            self.found.setdefault("slice", "-.slice")
        elif in_manager:
            self.found["user_unit"] = name
        elif name == "init.scope" and self.found["container_id"] is not None:
            self._forget_units()
            self.found["unit"], self.found["slice"] = name, "-.slice"

    def _forget_units(self) -> None:
        for field in ("unit", "user_unit", "slice"):
            self.found.pop(field, None)

    def _note_uid(self, name: str) -> None:
        if self.found["container_id"] is not None:
            return  # a user of the container
        user = _USER_SLICE.fullmatch(name)
        if user is not None:
            self.found["uid"] = int(user[1])


def _prefix_and_id(name: str) -> tuple[str | None, str | None]:
    """
    Split ``<prefix>-<id>[.scope]`` and ``<slice>:<prefix>:<id>``; a plain id has no prefix.

    Both are None for anything else.
    """
    name = name.removesuffix(".scope")
    container_id = name[-_ID_LENGTH:]
    if len(container_id) != _ID_LENGTH or not _HEX.issuperset(container_id):
        return None, None
    before = name[:-_ID_LENGTH]
    if not before:
        return None, container_id
    if before[-1] == ":":
        return before[:-1].rpartition(":")[2], container_id
    if before[-1] == "-" and len(before) > 1:
        return before[:-1], container_id
    return None, None


def _machine(name: str, parent: str) -> str | None:
    """
    Return the name that systemd-machined knows a unit of ``machine.slice`` by.
    """
    if parent != "machine.slice" and not (
        parent.startswith("machine-") and parent.endswith(".slice")
    ):
        return None
    for start, end in (("machine-", ".scope"), ("systemd-nspawn@", ".service")):
        if name.startswith(start) and name.endswith(end):
            machine = name.removeprefix(start).removesuffix(end)
            return _unescape(machine) if machine else None
    return None


def _unescape(name: str) -> str:
    r"""
    Undo systemd-escape(1): ``\x2d`` is a hyphen.
    """
    escaped = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), escaped)


def _is_unit(name: str) -> bool:
    stem, dot, kind = name.rpartition(".")
    return bool(
        dot
        and stem
        and kind in {"service", "scope", "slice"}
        and len(name) <= _UNIT_LENGTH
        and _UNIT_CHARACTERS.issuperset(name)
    )
