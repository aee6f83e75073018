# SPDX-License-Identifier: Apache-2.0
"""
A capture of containers, processes and losses is replayed to the byte where nothing of it is.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.churn import churn_command
from tests.support.container_workload import container_workload
from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.container_workload import ContainerWorkload

COMMAND = [sys.executable, "-m", "kprobe_modules"]
SECONDS = 240.0
ELSEWHERE = 'mount -t tmpfs none /sys/fs/cgroup && mount -t tmpfs none /run && exec "$@"'
"""Replaces what a handler could look at, and whom it could ask."""


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    needs.root()


@pytest.fixture
def folder() -> Iterator[Path]:
    """
    Give a folder that everybody may enter, unlike pytest's own.
    """
    path = Path(tempfile.mkdtemp(prefix="km-capture-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


class Run:
    """
    A run of the command that captures, and what it printed so far.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.path = folder / "c.kmc"
        self._printed = folder / "printed"
        with self._printed.open("wb") as output:
            self._run = subprocess.Popen(
                [*COMMAND, "capture", str(self.path), *arguments, "-o", "json"], stdout=output
            )

    def records(self) -> list[dict[str, Any]]:
        whole = self._printed.read_bytes().rpartition(b"\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def wait(self, done: Callable[[list[dict[str, Any]]], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not done(self.records()):
            assert self._run.poll() is None, f"the run ended with {self._run.returncode}"
            assert time.monotonic() < deadline, f"not done after {SECONDS} s"
            time.sleep(0.2)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """
        Keep it from reading, so that rings are certain to overflow.
        """
        self._run.send_signal(signal.SIGSTOP)
        yield
        self._run.send_signal(signal.SIGCONT)

    def stop(self) -> bytes:
        self._run.send_signal(signal.SIGINT)
        assert self._run.wait(SECONDS) == 0
        self.path.chmod(0o644)
        return self._printed.read_bytes()

    def kill(self) -> None:
        self._run.kill()
        self._run.wait()


def replayed(path: Path, *prefix: str) -> bytes:
    done = subprocess.run(
        [*prefix, *COMMAND, "replay", str(path), "-o", "json"],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "KPROBE_MODULES_LIBBPF": "/nonexistent"},
    )
    return done.stdout


def unprivileged() -> tuple[str, ...]:
    """
    Return what to put before a command to take privileges away.
    """
    needs.command("setpriv")
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    asked = subprocess.run([*nobody, *COMMAND, "--version"], check=False, stdout=subprocess.DEVNULL)
    # Interpreter or checkout lie where only root may go: root without capabilities.
    return nobody if not asked.returncode else ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


def burst(work: ContainerWorkload) -> set[int]:
    """
    Make more cgroups than a ring of a page tells of, and return the ids of those that stay.
    """
    work.trees.churn(211)
    stay = [work.trees.make(work.trees.top, f"stays-{number}") for number in range(101)]
    return {work.trees.of(each).cgroup_id for each in stay}


@pytest.mark.timeout(900)
def test_a_replay_elsewhere_prints_what_the_run_printed(folder: Path) -> None:
    needs.command("unshare")
    churn = churn_command(31)
    with container_workload() as work:
        renames = work.trees.root.number != 0
        run = Run(folder, "-m", "containers,processes", "--pages", "1", "--interval", "0.5")
        try:
            run.wait(lambda found: {"containers", "processes"} <= steady(found))
            containers = work.come()
            wanted = set(containers.values())
            run.wait(lambda found: wanted <= told(found, "container_metadata", "container_id"))
            work.change()
            subprocess.run(churn, check=True, stdout=subprocess.DEVNULL)
            with run.paused():
                stay = burst(work)
            run.wait(lambda found: stay <= told(found, "cgroup_created", "cgroup_id"))
            work.go()
            gone = {each.cgroup_id for each in work.trees.truth if each.died}
            run.wait(lambda found: whole(found, gone))
            printed = run.stop()
        finally:
            run.kill()
    records = [json.loads(line) for line in printed.splitlines()]
    assert any(each["record"] == "lost" and each["module"] == "containers" for each in records)
    assert any(each["record"] == "steady" and each["resync"] for each in records)
    assert told(records, "cgroup_renamed", "name") == ({"renamed"} if renames else set())
    assert replayed(run.path) == printed
    elsewhere = ("unshare", "--mount", "sh", "-c", ELSEWHERE, "sh", *unprivileged())
    assert replayed(run.path, *elsewhere) == printed


def told(records: list[dict[str, Any]], kind: str, field: str) -> set[Any]:
    return {each[field] for each in records if each["record"] == kind}


def steady(records: list[dict[str, Any]]) -> set[Any]:
    return told(records, "steady", "module")


def whole(records: list[dict[str, Any]], gone: set[int]) -> bool:
    created = told(records, "cgroup_created", "cgroup_id") & gone
    return created <= told(records, "cgroup_destroyed", "cgroup_id")
