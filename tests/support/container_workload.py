# SPDX-License-Identifier: Apache-2.0
"""
A small workload of cgroups and containers whose runtimes answer, for captures.

Docker is a server at its usual socket that knows one container; what Nomad says is in the
environment of a real process.
"""

from __future__ import annotations

import subprocess
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import attrs
from kprobe_modules.modules.containers.hierarchy import Walk
from kprobe_modules.modules.containers.runtimes import pack, unpack

from tests.support.cgroups import Forest, Root, ShapeError, version_1, where
from tests.support.daemon import Daemon, Peer, reply

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kprobe_modules import Collector, Record
    from kprobe_modules.capture.steps import Observation

__all__ = ["ContainerWorkload", "container_workload"]

DEADLINE = 240.0
"""Seconds: emulated guests are slow."""
SOCKET = Path("/run/docker.sock")

DOCKER = "3f" * 32
UNKNOWN = "7c" * 32
ALLOCATION = "c9f2f4a8-16bd-4a5c-9d7e-0f60a3f5f4ad"
NOMAD = {
    "NOMAD_ALLOC_ID": ALLOCATION,
    "NOMAD_JOB_NAME": "captured",
    "NOMAD_TASK_NAME": "sleeper",
    "SECRET": "not to be kept",
}
INSPECTION = {
    "Id": DOCKER,
    "Name": "/captured",
    "Image": f"sha256:{'1d' * 32}",
    "State": {"Pid": 4711},
    "Config": {
        "Image": "registry.example/captured:1",
        "Labels": {
            "io.kubernetes.container.name": "captured",
            "io.kubernetes.pod.name": "pod-0",
            "annotation.io.kubernetes.container.ports": '[{"containerPort":53,"protocol":"UDP"}]',
        },
        "Env": ["SECRET=not to be kept"],
    },
    "HostConfig": {"NetworkMode": "bridge", "Memory": 1 << 26, "CpuShares": 512, "PidsLimit": 7},
    "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "192.0.2.7"}}},
}


def _docker(peer: Peer) -> None:
    """
    Answer as Docker does about one container, and about none else.
    """
    if DOCKER in peer.target:
        peer.send(reply(dict(INSPECTION)))
    else:
        peer.send(reply({"message": "No such container"}, "404 Not Found"))


@contextmanager
def _hierarchy() -> Iterator[Root]:
    """
    Mount one of version 1 where that can be had: there cgroups can be renamed.
    """
    with ExitStack() as stack:
        with suppress(ShapeError):
            stack.enter_context(version_1())
        yield where()


@contextmanager
def container_workload() -> Iterator[ContainerWorkload]:
    """
    Make what is to be there before the modules are.
    """
    with (
        _hierarchy() as root,
        Forest(root) as trees,
        Daemon(SOCKET, _docker),
        subprocess.Popen(["/bin/sleep", "1000"], env=NOMAD) as sleeper,
    ):
        try:
            yield ContainerWorkload(trees, sleeper.pid)
        finally:
            sleeper.kill()


class ContainerWorkload:
    """
    What comes, changes and goes, step by step.

    Attributes:
        trees: its cgroups.
        pid: the process that is moved.
    """

    def __init__(self, trees: Forest, pid: int) -> None:
        self.trees = trees
        self.pid = pid
        self._root_id = trees.root.folder.stat().st_ino
        self._parent = trees.make(trees.top, "parent")
        self._unknown = trees.make(self._parent, f"docker-{UNKNOWN}.scope")
        self._came: list[Path] = []

    def run(self, collector: Collector) -> list[Record]:
        """
        Do everything, and return what was recorded of it and of all else meanwhile.
        """
        records = self._until_told(collector, self.come())
        self.change()
        collector.resync("containers")
        records += collector.flush()
        self.go()
        return records + collector.flush()

    def come(self) -> dict[str, str]:
        """
        Make containers; return who knows which.
        """
        docker = self.trees.make(self.trees.top, f"docker-{DOCKER}.scope")
        inner = self.trees.make(docker, "inner")
        outer = self.trees.make(self.trees.top, "nomad.slice")
        nomad = self.trees.make(outer, f"{ALLOCATION}.sleeper.scope")
        (nomad / "cgroup.procs").write_text(str(self.pid))
        self._came = [nomad, inner, docker]
        return {"Docker": DOCKER, "Nomad": f"{ALLOCATION}.sleeper"}

    def change(self) -> None:
        """
        Move a process, and rename a cgroup with a container below where that can be done.
        """
        (self.trees.root.folder / "cgroup.procs").write_text(str(self.pid))
        if self.trees.root.number:
            renamed = self.trees.rename(self._parent, "renamed")
            self._unknown = renamed / self._unknown.name

    def go(self) -> None:
        """
        Remove containers, and a chain of cgroups that comes and goes meanwhile.
        """
        chain = self.trees.chain("chain", 7)
        for folder in (*self._came, self._unknown, *reversed(chain)):
            self.trees.remove(folder)

    @staticmethod
    def _until_told(collector: Collector, wanted: Mapping[str, str]) -> list[Record]:
        records: list[Record] = []
        deadline = monotonic() + DEADLINE
        missing = dict(wanted)
        while missing:
            assert monotonic() < deadline, f"nothing was said by {', '.join(missing)}"
            came = collector.poll(timeout=0.2)
            told = {
                getattr(each, "container_id", "")
                for each in came
                if each.record == "container_metadata"
            }
            missing = {who: each for who, each in missing.items() if each not in told}
            records += came
        return records

    # -- what of a capture is about it ------------------------------------------

    def ids(self) -> set[int]:
        """
        Return the ids of its cgroups, and the root's.
        """
        return {self._root_id} | {each.cgroup_id for each in self.trees.truth}

    def row(self, fields: Mapping[str, object]) -> bool:
        """
        Tell whether a message is about it.
        """
        if "pid" in fields:
            return fields["pid"] == self.pid
        return fields["cgroup_id"] in self.ids()

    def observation(self, each: Observation) -> Observation | None:
        """
        Return what of an observation is about it.
        """
        wanted = self.ids()
        what, _, identity = each.what.partition(" ")
        if isinstance(each.seen, bytes):
            if each.what == "folders":
                walk = Walk.from_bytes(each.seen, "")
                kept = tuple(folder for folder in walk.folders if folder.cgroup_id in wanted)
                return attrs.evolve(each, seen=Walk(walk.time, kept).to_bytes())
            if each.what == "answers":
                answers = [item for item in unpack(each.seen) if item.cgroup_id in wanted]
                return attrs.evolve(each, seen=pack(answers))
        if what in {"ask", "cgroup"} and int(identity) not in wanted:
            return None
        return each
