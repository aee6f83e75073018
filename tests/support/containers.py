# SPDX-License-Identifier: Apache-2.0
"""
Real containers without any image: Podman with its API served on a socket, and OCI bundles.

The root file system is a static busybox in a folder; whatever the runtimes write goes to a tmpfs,
as a guest's own root is read-only.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CGROUPS", "Podman", "bundle", "cgroup_of", "files", "no_cgroups_left", "tmpfs"]

CGROUPS = Path("/sys/fs/cgroup")
DEADLINE = 240.0
"""Seconds for one command: emulated guests are slow."""


@contextmanager
def tmpfs(folder: Path) -> Iterator[Path]:
    """
    Mount a tmpfs for as long as this lasts.
    """
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def no_cgroups_left() -> Iterator[None]:
    """
    Remove the cgroups that were made meanwhile, with whoever is in them moved to the root.

    Podman moves every process of the root cgroup, ours among them, to one called "init".
    """
    before = {path for path in CGROUPS.iterdir() if path.is_dir()}
    yield
    for top in {path for path in CGROUPS.iterdir() if path.is_dir()} - before:
        for path in (*sorted(top.rglob("*/"), reverse=True), top):
            for pid in (path / "cgroup.procs").read_text().split():
                with suppress(ProcessLookupError):
                    (CGROUPS / "cgroup.procs").write_text(pid)
            path.rmdir()


def root_file_system(folder: Path) -> Path:
    """
    Make a root file system of nothing but busybox.
    """
    for name in ("bin", "dev", "proc", "sys", "tmp", "etc", "run"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, folder / "bin/busybox")
    return folder


def run(*command: str | Path) -> str:
    """
    Return what a command prints; its complaints are in the failure.
    """
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=DEADLINE, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr}{done.stdout}"
    return done.stdout


def cgroup_of(pid: int) -> str:
    """
    Return the path of a process's cgroup, version 2.
    """
    lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix("0::") for line in lines if line.startswith("0::"))


def files(cgroup: str, *names: str) -> list[str]:
    """
    Return what the kernel says in some files of a cgroup.
    """
    return [(CGROUPS / cgroup.lstrip("/") / name).read_text().strip() for name in names]


class Podman:
    """
    A Podman of its own, with everything it keeps below one folder but for its socket.
    """

    def __init__(self, folder: Path, socket: Path) -> None:
        self.socket = socket
        self._run = folder / "run"
        self._root = root_file_system(folder / "rootfs")
        self._service: subprocess.Popen[bytes] | None = None
        self._command = [
            "podman", "--root", str(folder / "storage"), "--runroot", str(folder / "run"),
            "--tmpdir", str(folder / "tmp"), "--storage-driver", "vfs",
            "--cgroup-manager", "cgroupfs", "--events-backend", "none",
        ]  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()
        self._kill_all()

    def __call__(self, *arguments: str) -> str:
        """
        Run one command of it.
        """
        return run(*self._command, *arguments)

    def start(
        self, name: str, *options: str, runtime: str = "crun", work: str = "sleep 600"
    ) -> str:
        """
        Start a container in the background and return its id.
        """
        return run(
            *self._command, "--runtime", runtime, "run", "--detach", "--name", name,
            "--network", "none", *options, "--rootfs", str(self._root),
            "/bin/busybox", "sh", "-c", f"exec /bin/busybox {work}",
        ).strip()  # fmt: skip

    def inspect(self, *names: str) -> list[dict[str, Any]]:
        """
        Return what Podman itself says of containers, in its own words.
        """
        said: list[dict[str, Any]] = json.loads(self("container", "inspect", *names))
        return said

    def serve(self) -> None:
        """
        Start to serve the API that is compatible with Docker's.
        """
        self.socket.parent.mkdir(parents=True, exist_ok=True)
        self._service = subprocess.Popen(
            [*self._command, "system", "service", "--time", "0", f"unix://{self.socket}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait(self) -> None:
        """
        Wait until the API is served.
        """
        assert self._service is not None
        deadline = time.monotonic() + DEADLINE
        while True:
            assert self._service.poll() is None, "podman system service ended"
            assert time.monotonic() < deadline, f"nobody listens at {self.socket}"
            with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
                client.connect(str(self.socket))
                return
            time.sleep(0.1)

    def stop(self) -> None:
        """
        Stop serving; containers go on.
        """
        if self._service is not None:
            self._service.kill()
            self._service.wait()
            self._service = None
            self.socket.unlink(missing_ok=True)

    def _kill_all(self) -> None:
        """
        Kill monitors, then containers: a monitor that sees its container end starts Podman again.
        """
        for name in ("conmon.pid", "pidfile"):
            for path in self._run.glob(f"*-containers/*/userdata/{name}"):
                with suppress(ProcessLookupError, ValueError):
                    os.kill(int(path.read_text()), signal.SIGKILL)


@contextmanager
def bundle(
    folder: Path, runtime: str, container_id: str, cgroup: str, *environment: str
) -> Iterator[dict[str, Any]]:
    """
    Run an OCI bundle with a runtime alone, in a cgroup of choice; yield the runtime's own state.
    """
    place = folder / f"{runtime}-{container_id[:12]}"
    root_file_system(place / "rootfs")
    command = [runtime, "--root", place / "state"]
    subprocess.run([runtime, "spec"], cwd=place, check=True)
    config = json.loads((place / "config.json").read_text())
    config["process"]["args"] = ["/bin/busybox", "sleep", "600"]
    config["process"]["terminal"] = False
    config["process"]["env"] += environment
    config["linux"]["cgroupsPath"] = cgroup
    (place / "config.json").write_text(json.dumps(config))
    # Its output must not be a pipe: the container would keep that open.
    subprocess.run(
        [*command, "run", "--detach", "--bundle", place, container_id],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=DEADLINE,
    )
    try:
        yield json.loads(run(*command, "state", container_id))
    finally:
        run(*command, "delete", "--force", container_id)
        shutil.rmtree(place)
