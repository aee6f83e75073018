# SPDX-License-Identifier: Apache-2.0
"""
Real containers of Podman, crun and runc: their paths and their metadata against their own words.

Podman leaves the memory controller in use in version 2, so no hierarchy of version 1 can be
mounted after these tests: they come after those that do.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kprobe_modules.modules.containers.identity import identify
from kprobe_modules.modules.containers.records import (
    ContainerMetadata,
    ContainerStarted,
    ContainerStopped,
)
from kprobe_modules.modules.containers.runtimes import Answer, Enquiries, NomadTask, Socket

from kprobe_modules import Collector
from tests.support.containers import (
    CGROUPS,
    Podman,
    bundle,
    cgroup_of,
    files,
    no_cgroups_left,
    tmpfs,
)
from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kprobe_modules import Record

MIB = 1 << 20
DEADLINE = 240.0
"""Seconds: an emulated guest takes some for each request."""

SOCKET = Path("/run/podman/podman.sock")
"""Where Podman listens by default, and where the module asks."""

ID = "9ec39b91f3d70e1beff50a308f77067065ea6be0d91a3378375056cd4422cf3d"
POD = "2c9f8a79-5391-454b-88cb-86190881cb96"
ALLOCATION = "84407c34-35e1-b0cb-4a8f-f3b6c9a8cc81"

LIMITS = (
    "--memory", "64m", "--memory-reservation", "32m", "--memory-swap", "96m",
    "--cpu-shares", "512", "--cpu-period", "50000", "--cpu-quota", "75000",
    "--cpuset-cpus", "0", "--pids-limit", "33",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    needs.root()
    for command in ("podman", "crun", "runc", "busybox"):
        needs.command(command)
    needs.that((CGROUPS / "cgroup.controllers").exists(), "needs cgroup version 2 alone")
    with no_cgroups_left(), tmpfs(tmp_path_factory.mktemp("containers")) as place:
        yield place


@pytest.fixture(scope="module")
def podman(folder: Path) -> Iterator[Podman]:
    """
    Return a Podman that serves its API and runs two containers, one with each runtime.
    """
    needs.that(not SOCKET.exists(), f"needs {SOCKET} for a Podman of its own")

    def start(runtime: str) -> None:
        engine.start(
            f"limited-{runtime}", *LIMITS, "--label", "com.example.owner=shop",
            "--label", "io.kubernetes.pod.name=web", "--env", f"NOMAD_ALLOC_ID={ALLOCATION}",
            runtime=runtime,
        )  # fmt: skip

    with Podman(folder, SOCKET) as engine:
        engine.serve()
        # Emulated, each takes a processor for ten seconds.
        with ThreadPoolExecutor() as pool:
            list(pool.map(start, ("crun", "runc")))
        engine.wait()
        yield engine


@pytest.fixture
def asker() -> Iterator[Enquiries]:
    asker = Enquiries((Socket("podman", str(SOCKET)),), seconds=DEADLINE / 2, patience=DEADLINE)
    yield asker
    asker.close()


def collect(asker: Enquiries, count: int) -> list[Answer]:
    answers: list[Answer] = []
    deadline = time.monotonic() + DEADLINE
    while len(answers) < count:
        assert time.monotonic() < deadline, f"{len(answers)} of {count} answers: {answers}"
        answers += asker.take()
        time.sleep(0.05)
    return answers


@pytest.fixture(scope="module")
def said(podman: Podman) -> dict[str, dict[str, Any]]:
    """
    Return what Podman itself says of the two, by id.
    """
    found = {one["Id"]: one for one in podman.inspect("limited-crun", "limited-runc")}
    assert {one["OCIRuntime"] for one in found.values()} == {"crun", "runc"}
    return found


def test_podman(said: dict[str, dict[str, Any]], asker: Enquiries) -> None:
    """
    Ids, paths, labels and limits are what Podman says and what the kernel has.
    """
    for container_id, one in said.items():
        cgroup = cgroup_of(one["State"]["Pid"])
        identity = identify(cgroup)
        assert (identity.container_id, identity.runtime) == (container_id, "podman")
        assert cgroup.startswith(identity.root or "?")
        assert identify(identity.root or "").is_root
        assert identity.root == one["State"]["CgroupPath"]
        monitor = int(Path(one["ConmonPidFile"]).read_text())
        assert identify(cgroup_of(monitor)).container_id is None
        # As the kernel made it: the id that records carry.
        assert asker.ask(container_id, identity.runtime, (CGROUPS / cgroup[1:]).stat().st_ino)

    for answer in collect(asker, 2):
        one, found = said[answer.container_id], answer.metadata
        assert found is not None, answer.error
        cgroup = cgroup_of(one["State"]["Pid"])
        assert answer.cgroup_id == (CGROUPS / cgroup[1:]).stat().st_ino
        assert found.name == one["Name"]
        assert found.labels == one["Config"]["Labels"]
        assert found.labels["com.example.owner"] == "shop"
        assert found.kubernetes is not None
        assert found.kubernetes.pod_name == "web"
        assert found.nomad == NomadTask(allocation=ALLOCATION)
        assert found.pid == one["State"]["Pid"]
        check_limits(answer, cgroup)


def check_limits(answer: Answer, cgroup: str) -> None:
    """
    Compare each limit with the kernel's own: none is mistaken for another.
    """
    assert answer.metadata is not None
    limits = answer.metadata.limits

    memory, low, swap, cpu, cpus, pids = files(
        cgroup, "memory.max", "memory.low", "memory.swap.max", "cpu.max", "cpuset.cpus", "pids.max"
    )
    assert limits.memory == int(memory) == 64 * MIB
    assert limits.memory_reservation == int(low) == 32 * MIB
    assert limits.memory_swap == int(memory) + int(swap) == 96 * MIB
    assert cpu == f"{limits.cpu_quota} {limits.cpu_period}" == "75000 50000"
    assert limits.cpus == 1.5
    assert limits.cpu_shares == 512
    assert limits.cpuset_cpus == cpus == "0"
    assert limits.pids == int(pids) == 33


def test_records(podman: Podman, said: dict[str, dict[str, Any]]) -> None:
    """
    Each container starts once and stops once, with Podman's own id and what its socket says.

    The new one ends at once: it was asked for when it started.
    """
    records: list[Record] = []

    def told(kind: type[Record], container_id: str) -> list[Any]:
        return [
            record
            for record in records
            if isinstance(record, kind) and getattr(record, "container_id", "") == container_id
        ]

    with Collector(["containers"]) as collector, ThreadPoolExecutor(1) as pool:

        def record_until(done: Callable[[], object]) -> None:
            deadline = time.monotonic() + DEADLINE
            while not done():
                assert time.monotonic() < deadline, [record.record for record in records]
                records.extend(collector.poll(timeout=0.2))

        label = "com.example.owner=shop"
        starting = pool.submit(podman.start, "short", "--label", label, work="true")
        record_until(starting.done)
        new = starting.result()
        record_until(lambda: all(told(ContainerMetadata, one) for one in (*said, new)))
        record_until(lambda: told(ContainerStopped, new))
        records.extend(collector.flush())

    for container_id in (*said, new):
        (start,) = told(ContainerStarted, container_id)
        (metadata,) = told(ContainerMetadata, container_id)
        assert start.existing == (container_id in said)
        assert start.runtime == "podman"
        assert start.path == f"/libpod_parent/libpod-{container_id}"
        assert metadata.cgroup_id == start.cgroup_id
        assert metadata.labels["com.example.owner"] == "shop"
        assert metadata.time >= start.time
        if container_id in said:
            assert start.cgroup_id == (CGROUPS / start.path[1:]).stat().st_ino
            assert metadata.limits["memory"] == 64 * MIB
            assert not told(ContainerStopped, container_id)
    (stop,) = told(ContainerStopped, new)
    (start,) = told(ContainerStarted, new)
    assert stop.cgroup_id == start.cgroup_id
    assert start.time < stop.time


def test_a_container_that_podman_does_not_know(podman: Podman, asker: Enquiries) -> None:
    assert podman.socket == SOCKET
    asker.ask(ID, "podman", 2)
    (answer,) = collect(asker, 1)
    assert answer.metadata is None
    assert answer.error == f"podman at {SOCKET}: no such container"


def test_the_service_is_started_again(
    podman: Podman,
    said: dict[str, dict[str, Any]],
    asker: Enquiries,
    caplog: pytest.LogCaptureFixture,
) -> None:
    podman.stop()
    asker.ask(next(iter(said)), "podman", 1)
    deadline = time.monotonic() + DEADLINE
    while not asker.troubles():
        assert time.monotonic() < deadline
        time.sleep(0.05)

    podman.serve()
    podman.wait()
    (answer,) = collect(asker, 1)
    assert answer.metadata is not None
    assert [record.getMessage() for record in caplog.records if "does not" in record.getMessage()]


@pytest.mark.parametrize(
    ("runtime", "cgroup", "says"),
    [
        ("crun", f"/docker/{ID}", {"runtime": "docker"}),
        (
            "runc",
            f"/kubepods/burstable/pod{POD}/{ID}",
            {"runtime": None, "pod_uid": POD, "qos_class": "burstable"},
        ),
    ],
    ids=["docker", "kubernetes"],
)
def test_runtimes_alone(
    folder: Path, runtime: str, cgroup: str, says: dict[str, str | None]
) -> None:
    """
    crun and runc put a container where daemons tell them, under the id that they know it by.
    """
    with bundle(folder, runtime, ID, cgroup) as state:
        path = cgroup_of(state["pid"])
        identity = identify(path)

    assert state["id"] == identity.container_id == ID
    assert identity.root == cgroup
    assert {field: getattr(identity, field) for field in says} == says


def test_nomads_environment(folder: Path, asker: Enquiries) -> None:
    """
    A task's variables are read from its own process, in its own cgroup.
    """
    cgroup = f"/nomad.slice/share.slice/{ALLOCATION}.web.scope"
    name = f"{ALLOCATION}.web"
    variables = (f"NOMAD_ALLOC_ID={ALLOCATION}", "NOMAD_TASK_NAME=web", "NOMAD_JOB_NAME=shop")
    with bundle(folder, "crun", "task", cgroup, *variables) as state:
        identity = identify(cgroup_of(state["pid"]))
        assert identity.container_id == name
        procs = str(CGROUPS / cgroup[1:] / "cgroup.procs")
        assert asker.ask(name, identity.runtime, 1, procs=procs)
        (answer,) = collect(asker, 1)

    assert answer.metadata is not None, answer.error
    assert answer.metadata.nomad == NomadTask(
        allocation=ALLOCATION, task_name="web", job_name="shop"
    )
