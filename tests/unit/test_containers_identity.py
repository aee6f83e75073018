# SPDX-License-Identifier: Apache-2.0
r"""
Paths as they were printed somewhere, and what each of them says.

Each sample names where such a path is documented or shown.  ``{A}`` and ``{B}`` stand for ids of
64 hexadecimal digits, ``{P}`` for a pod's uid, ``{p}`` for the same with "_" as slices spell it.
"""

from __future__ import annotations

import time
from typing import Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kprobe_modules.modules.containers.identity import Identity, identify

A = "9ec39b91f3d70e1beff50a308f77067065ea6be0d91a3378375056cd4422cf3d"
B = "ec08435e04266c5ba381fccbb829f626d11d8ddf5f8f547263c7a2d79ab4787a"
P = "2c9f8a79-5391-454b-88cb-86190881cb96"
STATIC = "36b6d6be73b1065af369b3985edafa09"
ALLOCATION = "84407c34-35e1-b0cb-4a8f-f3b6c9a8cc81"
TASK = "5a0d5ceddf6c44c1928d367a815d890f"
NAMES = {"A": A, "B": B, "P": P, "p": P.replace("-", "_")}

USER = "/user.slice/user-1000.slice/user@1000.service"
SLICES = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{p}.slice"


@attrs.frozen
class Sample:
    """
    A path, the container's own part of it, the rest of what it says, and where it comes from.
    """

    path: str
    root: str | None
    says: dict[str, Any]
    source: str


def expand(value: Any) -> Any:
    if isinstance(value, str):
        for name, text in NAMES.items():
            value = value.replace("{" + name + "}", text)
    return value


def container(path: str, source: str, *, below: str = "", **says: Any) -> Sample:
    """
    Return the sample of a container whose own cgroup is ``path``; ``below`` it lies the rest.
    """
    says.setdefault("container_id", "{A}")
    return Sample(path + below, path, says, source)


def other(path: str, source: str, **says: Any) -> Sample:
    return Sample(path, None, says, source)


DOCKER = (
    container("/docker/{A}", "docker, cgroupfs: neuvector's cgroup_test.go", runtime="docker"),
    container(
        "/system.slice/docker-{A}.scope",
        "docker, systemd: neuvector's cgroup_test.go",
        runtime="docker",
        unit="docker-{A}.scope",
        slice="system.slice",
    ),
    container(
        "/docker/{B}/docker/{A}",
        "docker in docker on RancherOS: neuvector's cgroup_test.go",
        runtime="docker",
    ),
    container(
        "/system.slice/docker-{B}.scope/docker/{A}",
        "docker in docker, the outer one with systemd: earthly issue 1533",
        runtime="docker",
        unit="docker-{B}.scope",
        slice="system.slice",
    ),
    container(
        "/system.slice/docker-{A}.scope",
        "systemd inside docker: coroot-node-agent's cgroup_test.go",
        below="/system.slice/containerd.service",
        runtime="docker",
        unit="containerd.service",
        slice="system.slice",
    ),
    container(
        "/system.slice/docker-{A}.scope",
        "systemd inside docker, its own processes",
        below="/init.scope",
        runtime="docker",
        unit="init.scope",
        slice="-.slice",
    ),
    container(
        "/system.slice/docker-{A}.scope",
        "a folder made inside: earthly issue 1533",
        below="/grp.scope",
        runtime="docker",
        unit="docker-{A}.scope",
        slice="system.slice",
    ),
    container(
        "/system.slice/docker-{A}.scope",
        "systemd inside with the host's paths, cgroup v1: origin issue 13241",
        below="/system.slice/docker-{A}.scope/init.scope",
        runtime="docker",
        unit="init.scope",
        slice="-.slice",
    ),
    container("/{A}", "docker, parent /: neuvector's TestDockerIDDebian"),
    container(
        f"{USER}/user.slice/docker-{{A}}.scope",
        "rootless docker: docs.docker.com/engine/security/rootless",
        runtime="docker",
        unit="user@1000.service",
        user_unit="docker-{A}.scope",
        slice="user.slice",
        uid=1000,
    ),
    container(
        "/actions_job/{A}", "GitHub's runner: actions/runner, --cgroup-parent", runtime="docker"
    ),
    container(
        "/mycgroup.slice/docker-{A}.scope",
        "--cgroup-parent: moby issue 45796",
        runtime="docker",
        unit="docker-{A}.scope",
        slice="mycgroup.slice",
    ),
    container("/docker-{A}", "kepler's container_test.go", runtime="docker"),
    container(
        "/../../docker/{A}", "seen from another cgroup namespace: cgroup_namespaces(7)",
        runtime="docker",
    ),
    other("/docker", "the folder of all"),
    other("/system.slice/docker.service", "dockerd", unit="docker.service", slice="system.slice"),
    other(
        "/system.slice/docker-0.scope",
        "a scope with such a name",
        unit="docker-0.scope",
        slice="system.slice",
    ),
)  # fmt: skip

KUBERNETES = (
    container(
        "/kubepods/besteffort/pod{P}/{A}",
        "cgroupfs: neuvector's TestDockerIDKubepods",
        pod_uid=P,
        qos_class="besteffort",
    ),
    container(
        "/kubepods/burstable/pod{P}/{A}",
        "minikube: kepler pull request 684",
        pod_uid=P,
        qos_class="burstable",
    ),
    container(
        "/kubepods/pod{P}/{A}",
        "k3s, guaranteed: rt-operator's cgroupv1_notes.md",
        pod_uid=P,
        qos_class="guaranteed",
    ),
    container(
        "/kubepods/besteffort/pod{P}/{A}",
        "kube-proxy: neuvector's TestK8sProxyProcess",
        below="/kube-proxy",
        pod_uid=P,
        qos_class="besteffort",
    ),
    container(
        SLICES + "/cri-containerd-{A}.scope",
        "containerd, systemd: kubernetes pull request 106515",
        runtime="containerd",
        pod_uid=P,
        qos_class="burstable",
        unit="cri-containerd-{A}.scope",
        slice="kubepods-burstable-pod{p}.slice",
    ),
    container(
        "/kubepods.slice/kubepods-pod{p}.slice/crio-{A}.scope",
        "CRI-O, guaranteed: rt-operator's cgroupv1_notes.md",
        runtime="cri-o",
        pod_uid=P,
        qos_class="guaranteed",
        unit="crio-{A}.scope",
        slice="kubepods-pod{p}.slice",
    ),
    container(
        "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{p}.slice/docker-{A}.scope",
        "docker: pharos-cluster issue 440",
        runtime="docker",
        pod_uid=P,
        qos_class="besteffort",
        unit="docker-{A}.scope",
        slice="kubepods-besteffort-pod{p}.slice",
    ),
    container(
        f"/system.slice/containerd.service/kubepods-burstable-pod{STATIC}.slice:cri-containerd:{{A}}",
        "a static pod, the drivers disagree: kubernetes issue 106514",
        runtime="containerd",
        pod_uid=STATIC,
        qos_class="burstable",
        unit="containerd.service",
        slice="system.slice",
    ),
    container(
        "/kubepods-besteffort-pod{p}.slice:cri-containerd:{A}",
        "youki: runwasi issue 821",
        runtime="containerd",
        pod_uid=P,
        qos_class="besteffort",
    ),
    container(
        "/kubelet/kubepods/besteffort/pod{P}/{A}",
        "kubelet's own root: kepler's container_test.go",
        pod_uid=P,
        qos_class="besteffort",
    ),
    container(
        "/docker/{B}/kubelet/kubepods/burstable/pod{P}/{A}",
        "kind, cgroupfs: kepler pull request 684",
        pod_uid=P,
        qos_class="burstable",
    ),
    container(
        "/system.slice/docker-{B}.scope/kubelet.slice/kubelet-kubepods.slice"
        "/kubelet-kubepods-pod{p}.slice/cri-containerd-{A}.scope",
        "kind: kind issue 3947",
        runtime="containerd",
        pod_uid=P,
        qos_class="guaranteed",
        unit="cri-containerd-{A}.scope",
        slice="kubelet-kubepods-pod{p}.slice",
    ),
    container(
        "/docker/{B}/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{p}.slice"
        "/crio-{A}.scope",
        "minikube on docker: minikube issue 11280",
        runtime="cri-o",
        pod_uid=P,
        qos_class="besteffort",
        unit="crio-{A}.scope",
        slice="kubepods-besteffort-pod{p}.slice",
    ),
    container(
        "/kubepods/burstable/pod{P}/{A}",
        "buildkitd moves itself aside: buildkit pull request 6368",
        below="/init",
        pod_uid=P,
        qos_class="burstable",
    ),
    container(
        "/kubepods/burstable/pod{P}/{B}/docker/{A}",
        "docker in a pod",
        runtime="docker",
        pod_uid=P,
        qos_class="burstable",
    ),
    container(
        "/kubepods/burstable/pod{P}/crio-{A}",
        "CRI-O, cgroupfs: cri-o pull request 812",
        runtime="cri-o",
        pod_uid=P,
        qos_class="burstable",
    ),
    other(
        "/kubepods/burstable/pod{P}/crio-conmon-{A}",
        "CRI-O's monitor, cgroupfs: cri-o pull request 812",
        pod_uid=P,
        qos_class="burstable",
    ),
    other(
        SLICES + "/crio-conmon-{A}.scope",
        "CRI-O's monitor in the pod: microshift pull request 697",
        pod_uid=P,
        qos_class="burstable",
        unit="crio-conmon-{A}.scope",
        slice="kubepods-burstable-pod{p}.slice",
    ),
    other(
        "/system.slice/crio-conmon-{A}.scope",
        "CRI-O's monitor: microshift pull request 697",
        unit="crio-conmon-{A}.scope",
        slice="system.slice",
    ),
    other("/kubepods", "kubelet's root"),
    other("/kubepods/besteffort", "a class", qos_class="besteffort"),
    other("/kubepods/pod{P}", "a pod", pod_uid=P, qos_class="guaranteed"),
    other("/kubepods.slice", "kubelet's root", slice="kubepods.slice"),
    other(
        "/kubepods.slice/kubepods-burstable.slice",
        "a class",
        qos_class="burstable",
        slice="kubepods-burstable.slice",
    ),
    other(
        SLICES,
        "a pod: cri-o issue 842",
        pod_uid=P,
        qos_class="burstable",
        slice="kubepods-burstable-pod{p}.slice",
    ),
    other("/system.slice/kubelet.service", "kubelet", unit="kubelet.service", slice="system.slice"),
    other("/kata_overhead/{A}", "Kata's host side: kata-containers' design/host-cgroups.md"),
)

CONTAINERD = (
    container(
        "/system.slice/nerdctl-{A}.scope",
        "nerdctl: falcosecurity/plugins pull request 1378",
        runtime="containerd",
        unit="nerdctl-{A}.scope",
        slice="system.slice",
    ),
    container("/default/{A}", "ctr and nerdctl, cgroupfs: containerd's docs", runtime="containerd"),
    container(
        "/system.slice/system-getty.slice/cri-containerd-{A}.scope",
        "a slice of one's own: containerd/cri pull request 290",
        runtime="containerd",
        unit="cri-containerd-{A}.scope",
        slice="system-getty.slice",
    ),
    container(
        "/system.slice/runc-{A}.scope",
        "runc's default prefix: runc's docs/systemd.md",
        unit="runc-{A}.scope",
        slice="system.slice",
    ),
    other(
        "/system.slice/containerd.service",
        "containerd",
        unit="containerd.service",
        slice="system.slice",
    ),
)

PODMAN = (
    container("/libpod_parent/libpod-{A}", "cgroupfs: podman 4.3 in a guest", runtime="podman"),
    container(
        "/libpod_parent/{B}/libpod-{A}", "cgroupfs, in a pod: libpod/pod_internal_linux.go",
        runtime="podman",
        pod_id=B,
    ),
    container(
        "/machine.slice/libpod-{A}.scope",
        "as root, crun: kepler's container_test.go",
        below="/container",
        runtime="podman",
        unit="libpod-{A}.scope",
        slice="machine.slice",
    ),
    container(
        f"{USER}/user.slice/libpod-{{A}}.scope",
        "rootless: kepler's container_test.go",
        below="/container",
        runtime="podman",
        unit="user@1000.service",
        user_unit="libpod-{A}.scope",
        slice="user.slice",
        uid=1000,
    ),
    container(
        f"{USER}/user.slice/libpod-{{A}}.scope",
        "systemd in a rootless container",
        below="/container/system.slice/nginx.service",
        runtime="podman",
        unit="nginx.service",
        slice="system.slice",
        uid=1000,
    ),
    container(
        "/system.slice/quadlet-minimal.service/libpod-payload-{A}",
        "--cgroups=split: podman issue 16589",
        runtime="podman",
        unit="quadlet-minimal.service",
        slice="system.slice",
    ),
    container(
        "/machine.slice/machine-libpod_pod_{B}.slice/libpod-{A}.scope",
        "a pod: podman issue 13673",
        below="/container",
        runtime="podman",
        pod_id=B,
        unit="libpod-{A}.scope",
        slice="machine-libpod_pod_{B}.slice",
    ),
    container(
        f"{USER}/pnew.slice/pnew-libpod_pod_{{B}}.slice/libpod-{{A}}.scope",
        "a rootless pod with a parent: podman issue 23780",
        runtime="podman",
        pod_id=B,
        unit="user@1000.service",
        user_unit="libpod-{A}.scope",
        slice="pnew-libpod_pod_{B}.slice",
        uid=1000,
    ),
    container(
        "/libpod-parent/libpod-conmon-{A}/{A}",
        "the first podman: podman issue 359",
        runtime="podman",
    ),
    other("/libpod_parent/conmon", "the monitors, cgroupfs: podman 4.3 in a guest"),
    other("/libpod_parent/{B}", "a pod, cgroupfs", pod_id=B),
    other(
        "/machine.slice/libpod-conmon-{A}.scope",
        "the monitor: podman pull request 507",
        unit="libpod-conmon-{A}.scope",
        slice="machine.slice",
    ),
    other(
        "/system.slice/quadlet-minimal.service/runtime",
        "the monitor, --cgroups=split: podman issue 16589",
        unit="quadlet-minimal.service",
        slice="system.slice",
    ),
)  # fmt: skip

LXC = (
    container("/lxc.payload.web", "LXC 4: procps, falco", runtime="lxc", container_id="web"),
    container(
        "/lxc.payload/one-1", "LXC 3.1: lxc issue 2782", runtime="lxc", container_id="one-1"
    ),
    container("/lxc/one-1", "LXC 3.0: one issue 2824", runtime="lxc", container_id="one-1"),
    container("/lxc/101", "Proxmox", below="/ns", runtime="lxc", container_id="101"),
    container(
        "/lxc.payload.web",
        "systemd inside: lxc.container.conf(5)",
        below="/system.slice/ssh.service",
        runtime="lxc",
        container_id="web",
        unit="ssh.service",
        slice="system.slice",
    ),
    container(
        "/lxc.payload.snapcraft_some-container",
        "LXD's projects: needrestart pull request 188",
        runtime="lxc",
        container_id="snapcraft_some-container",
    ),
    container(
        "/lxc.payload.web/docker/{A}", "docker in LXD: documentation.ubuntu.com/lxd",
        runtime="docker",
    ),
    container(
        "/lxc.payload.outer/lxc.payload.inner",
        "LXD in LXD",
        runtime="lxc",
        container_id="inner",
    ),
    container(
        "/lxc.payload.outer",
        "the monitor of a container inside is inside",
        below="/lxc.monitor.inner",
        runtime="lxc",
        container_id="outer",
    ),
    other("/lxc.monitor.web", "the monitor: incus pull request 3684"),
    other("/lxc.monitor/one-1", "the monitor, LXC 3.1: lxc issue 2782"),
    other("/lxc.pivot", "a place to wait: lxc issue 2782"),
    other("/lxc", "the folder of all"),
    other("/lxc.payload", "the folder of all, LXC 3.1"),
)  # fmt: skip

SYSTEMD = (
    container(
        "/machine.slice/machine-fedora.scope",
        "systemd-nspawn(1); systemd issue 18104",
        below="/payload/system.slice/sshd.service",
        runtime="systemd-nspawn",
        container_id="fedora",
        machine="fedora",
        unit="sshd.service",
        slice="system.slice",
    ),
    container(
        r"/machine.slice/machine-dev\x2dweb.scope",
        "systemd-nspawn(1), a name with a hyphen",
        runtime="systemd-nspawn",
        container_id="dev-web",
        machine="dev-web",
        unit=r"machine-dev\x2dweb.scope",
        slice="machine.slice",
    ),
    container(
        "/machine.slice/systemd-nspawn@web.service",
        "machinectl start: systemd issue 20889",
        below="/payload",
        runtime="systemd-nspawn",
        container_id="web",
        machine="web",
        unit="systemd-nspawn@web.service",
        slice="machine.slice",
    ),
    container(
        r"/machine.slice/machine-lxc\x2d1268\x2dsl.scope",
        "libvirt: virSystemdMakeScopeName()",
        runtime="libvirt-lxc",
        container_id="sl",
        machine="lxc-1268-sl",
        unit=r"machine-lxc\x2d1268\x2dsl.scope",
        slice="machine.slice",
    ),
    other(
        r"/machine.slice/machine-qemu\x2d1\x2dinstance\x2d0000001d.scope/libvirt/emulator",
        "a virtual machine of libvirt, cgroup v2",
        machine="qemu-1-instance-0000001d",
        unit=r"machine-qemu\x2d1\x2dinstance\x2d0000001d.scope",
        slice="machine.slice",
    ),
    other(
        r"/machine.slice/machine-test.slice/machine-qemu\x2d16\x2dtest14.scope",
        "a virtual machine in a slice of its own",
        machine="qemu-16-test14",
        unit=r"machine-qemu\x2d16\x2dtest14.scope",
        slice="machine-test.slice",
    ),
    other("/", "the root"),
    other("/init.scope", "systemd itself", unit="init.scope", slice="-.slice"),
    other("/system.slice", "all services", slice="system.slice"),
    other("/system.slice/ssh.service", "a service", unit="ssh.service", slice="system.slice"),
    other(
        "/system.slice/system-getty.slice/getty@tty1.service",
        "an instance: systemd.slice(5)",
        unit="getty@tty1.service",
        slice="system-getty.slice",
    ),
    other(
        "/system.slice/run-r0c1a.scope",
        "systemd-run --scope",
        unit="run-r0c1a.scope",
        slice="system.slice",
    ),
    other(
        "/system.slice/systemd-udevd.service/udev",
        "a service's own folder",
        unit="systemd-udevd.service",
        slice="system.slice",
    ),
    other(
        "/user.slice/user-0.slice/session-14.scope",
        "a session: New Relic's PHP agent tests",
        unit="session-14.scope",
        slice="user-0.slice",
        uid=0,
    ),
    other(
        f"{USER}/app.slice/app-gnome-firefox-2834.scope",
        "an application: systemd's docs/DESKTOP_ENVIRONMENTS.md",
        unit="user@1000.service",
        user_unit="app-gnome-firefox-2834.scope",
        slice="app.slice",
        uid=1000,
    ),
    other(
        f"{USER}/init.scope",
        "a user's service manager",
        unit="user@1000.service",
        user_unit="init.scope",
        slice="user-1000.slice",
        uid=1000,
    ),
    other(
        "/system.slice/_cgroup.service",
        "escaped: cg_escape() in systemd",
        unit="cgroup.service",
        slice="system.slice",
    ),
)

OTHERS = (
    container(
        f"/nomad.slice/share.slice/{ALLOCATION}.sleep.scope",
        "Nomad 1.7: its e2e/resources tests",
        runtime="nomad",
        container_id=f"{ALLOCATION}.sleep",
        nomad_allocation=ALLOCATION,
        nomad_task="sleep",
        unit=f"{ALLOCATION}.sleep.scope",
        slice="share.slice",
    ),
    container(
        f"/nomad.slice/{ALLOCATION}.web-1.scope",
        "Nomad 1.3: nomad pull request 12274",
        runtime="nomad",
        container_id=f"{ALLOCATION}.web-1",
        nomad_allocation=ALLOCATION,
        nomad_task="web-1",
        unit=f"{ALLOCATION}.web-1.scope",
        slice="nomad.slice",
    ),
    container(
        f"/nomad/reserved/{ALLOCATION}-web",
        "Nomad, cgroup v1, cpuset: nomad issue 11289",
        runtime="nomad",
        container_id=f"{ALLOCATION}.web",
        nomad_allocation=ALLOCATION,
        nomad_task="web",
    ),
    container(
        f"/nomad/{ALLOCATION}",
        "Nomad, cgroup v1, exec: executor_linux.go before 1.7",
        runtime="nomad",
        container_id=ALLOCATION,
    ),
    container(
        "/nomad.slice/docker-{A}.scope",
        "Nomad with docker: nomad pull request 12274",
        runtime="docker",
        unit="docker-{A}.scope",
        slice="nomad.slice",
    ),
    container(
        f"/ecs/{TASK}/{{A}}", "ECS: amazon-ecs-agent issue 4077", runtime="docker", ecs_task=TASK
    ),
    container(
        "/ecs/55091c13-b8cf-4801-b527-f4601742204d/{A}",
        "ECS, older ids: New Relic's PHP agent tests",
        runtime="docker",
        ecs_task="55091c13-b8cf-4801-b527-f4601742204d",
    ),
    container(
        f"/ecs/test-ecs-classic/{TASK}/{{A}}",
        "ECS with the cluster's name: New Relic's PHP agent tests",
        runtime="docker",
        ecs_task=TASK,
    ),
    container(
        f"/ecstasks.slice/ecstasks-{TASK}.slice/docker-{{A}}.scope",
        "ECS, cgroup v2: amazon-ecs-agent pull request 3127",
        runtime="docker",
        ecs_task=TASK,
        unit="docker-{A}.scope",
        slice=f"ecstasks-{TASK}.slice",
    ),
    container(
        f"/ecs/{TASK}/{TASK}-1234567890",
        "Fargate 1.4: AWS' container metadata",
        container_id=f"{TASK}-1234567890",
        ecs_task=TASK,
    ),
    container(
        "/system.slice/garden.service/garden/good/2f57368b-0eda-4e52-64d8-af5c",
        "Garden: OpenJDK's CgroupV1SubsystemControllerTest",
        runtime="garden",
        container_id="2f57368b-0eda-4e52-64d8-af5c",
        unit="garden.service",
        slice="system.slice",
    ),
    container(
        "/garden/2f57368b-0eda-4e52-64d8-af5c",
        "Garden: cloudfoundry/garden-runc-release",
        runtime="garden",
        container_id="2f57368b-0eda-4e52-64d8-af5c",
    ),
    container(
        "/docker/buildkit/tvyxrbdvdnn4s0nzqgg1jqyz2",
        "docker build: moby pull request 37644",
        runtime="buildkit",
        container_id="tvyxrbdvdnn4s0nzqgg1jqyz2",
    ),
    container(
        "/system.slice/docker-tvyxrbdvdnn4s0nzqgg1jqyz2.scope",
        "docker build, systemd: buildx pull request 782",
        runtime="buildkit",
        container_id="tvyxrbdvdnn4s0nzqgg1jqyz2",
        unit="docker-tvyxrbdvdnn4s0nzqgg1jqyz2.scope",
        slice="system.slice",
    ),
    other("/nomad.slice/share.slice", "tasks without cores of their own", slice="share.slice"),
    other(f"/ecs/{TASK}", "a task", ecs_task=TASK),
    other("/user/1000.user/c2.session", "logind before slices: neuvector's TestNsEnterProcess"),
)

SAMPLES = (*DOCKER, *KUBERNETES, *CONTAINERD, *PODMAN, *LXC, *SYSTEMD, *OTHERS)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.path)
def test_sample(sample: Sample) -> None:
    path, root = expand(sample.path), expand(sample.root)
    says = {field: expand(value) for field, value in sample.says.items()}

    expected = Identity(**says, root=root, is_root=root is not None and path == root)

    assert identify(path) == expected, sample.source


@pytest.mark.parametrize(
    "sample", [sample for sample in SAMPLES if sample.root], ids=lambda sample: sample.path
)
def test_exactly_one_cgroup_above_or_below_is_the_root(sample: Sample) -> None:
    """
    Of a container's cgroup and everything around it, one starts the container.
    """
    path = expand(sample.path)
    parts = path.split("/")
    family = ["/".join(parts[: n + 1]) for n in range(1, len(parts))]
    family += [f"{path}/{name}" for name in ("container", "init.scope", "system.slice/a.service")]

    mine = identify(path).container_id
    roots = [identify(p) for p in family if identify(p).is_root]

    assert [found.root for found in roots if found.container_id == mine] == ([expand(sample.root)])
    for found in map(identify, family[len(parts) - 1 :]):
        assert found.container_id == mine, "what lies inside belongs to the container"


def test_slashes_at_the_end_change_nothing() -> None:
    assert attrs.evolve(identify(f"/docker/{A}/"), root="") == attrs.evolve(
        identify(f"/docker/{A}"), root=""
    )
    assert identify(f"/docker/{A}/").is_root


def test_what_looks_like_an_id_and_is_none() -> None:
    for name in (A[:-1], A + "0", A.upper(), f"docker-{A[:-1]}.scope", f"x{A}", f"-{A}", f":{A}x"):
        assert identify(f"/system.slice/{name}").container_id is None, name


COMPONENTS = st.sampled_from([
    "docker", "kubepods", "kubepods.slice", "burstable", f"pod{P}", "system.slice", "lxc",
    "lxc.payload.a", "lxc.monitor.a", "machine.slice", r"machine-\x2d\xff.scope", "ecs", TASK,
    "nomad", "nomad.slice", f"{ALLOCATION}.x.scope", "user-1000.slice", "user@1000.service", A,
    f"docker-{B}.scope", f"a:b:{A}", f"libpod-conmon-{A}", "libpod_parent", "garden", "buildkit",
    "init.scope", "..", "", "kata_overhead", "user-99999999999999.slice", "\udcff",
])  # fmt: skip


@given(st.one_of(st.text(), st.lists(COMPONENTS | st.text(max_size=80)).map("/".join)))
@example("\ud800/\x00/machine.slice/machine-\udcff.scope")
@example("/user-\u0661.slice")
@example("/machine.slice/machine-.scope/lxc/")
def test_never_raises_and_keeps_its_promises(path: str) -> None:
    found = identify(path)

    assert (found.container_id is None) == (found.root is None)
    assert not found.is_root or found.root is not None
    assert found.runtime is None or found.container_id
    if found.root is not None:
        assert path.startswith(found.root)
        assert identify(found.root).container_id == found.container_id
        assert identify(found.root).is_root
    for value in attrs.astuple(found):
        assert value != ""


LONG = (
    "/a", "/-", "/.slice", "/a.slice", "/:", "/docker", f"/{A}", "/kubepods-pod", "/nomad/",
    "/libpod_pod_", r"/machine.slice/machine-\x2d.scope", "a-", "0", r"\x2d", "kubepods-pod", "_",
    f"/nomad/{ALLOCATION}.", "docker-", "lxc.payload.",
)  # fmt: skip


def seconds(path: str) -> float:
    best = 1e9
    for _ in range(3):
        started = time.process_time()
        identify(path)
        best = min(best, time.process_time() - started)
    return best


@pytest.mark.parametrize("unit", LONG)
def test_time_is_proportional_to_length(unit: str) -> None:
    count = 1 + 12_000 // len(unit)

    # Eight times the length takes eight times as long, or sixty-four were it squared.
    assert seconds("/nomad/" + unit * 8 * count) < 24 * seconds("/nomad/" + unit * count) + 0.01
