# SPDX-License-Identifier: Apache-2.0
"""
The command in a process of its own, with modules that another distribution registers.

The modules are real: their program writes to the kernel's rings when their handler
tells it to.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kprobe_modules
from tests.support.requirements import needs

__all__ = ["Shell", "wait_until_asleep"]

DOORS = '''
import attrs
from kprobe_modules.api import Handler, Manifest, Record
from kprobe_modules.libbpf import test_run


@attrs.define
class DoorOpened(Record, module="doors"):
    pid: int
    uid: int
    comm: str
    odd: bool


class DoorsHandler(Handler):
    """Six messages of the generator make one record; a hundred at once, then one a second."""

    def emit(self, count):
        test_run(self.context.program_fd("generate"), packet=bytes(64), repeat=6 * count)

    def steady(self, *, resync):
        self.emit(100)
        return ()

    def tick(self, now):
        self.emit(1)
        return ()

    def on_size_96(self, time, pid, uid, comm, odd):
        return DoorOpened(time, pid, uid, comm.rstrip(b"\\0").decode(), bool(odd))


class BrokenHandler(DoorsHandler):
    def __init__(self, context):
        raise ValueError("hinges are missing")


def manifest(name, handler):
    return Manifest(
        name=name,
        package="tests.bpf.objects",
        object_name="generator",
        handler=handler,
        hooks=(),
        common_maps=("events", "data_channel"),
        own_programs=(
            "generate", "generate_none", "generate_ragged", "emit_one", "exhaust_scratch",
            "log_one", "emit_with_stack",
        ),
        records=(DoorOpened,),
        summary="opens doors",
        version="1.5",
    )


MODULE = manifest("doors", DoorsHandler)
BROKEN = manifest("broken", BrokenHandler)
'''

ENTRY_POINTS = """\
[kprobe_modules.modules]
doors = kmtest_doors:MODULE
broken = kmtest_doors:BROKEN
unimportable = kmtest_missing:MODULE
"""


class Shell:
    """
    Runs the command in a process of its own, with the test's distribution installed.
    """

    def __init__(self, folder: Path) -> None:
        info = folder / "kmtest_doors-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kmtest-doors\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(ENTRY_POINTS)
        (folder / "kmtest_doors.py").write_text(DOORS)
        package = Path(kprobe_modules.__file__).parent.parent
        checkout = Path(__file__).resolve().parents[2]
        paths = [folder, checkout, package, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        kept = {key: value for key, value in os.environ.items() if "KPROBE_MODULES" not in key}
        self.environ = kept | {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "KPROBE_MODULES_CONFIG": str(folder / "empty.toml"),
        }
        (folder / "empty.toml").write_text("")
        for path in (folder, *folder.parents):
            if path.stat().st_uid == os.geteuid() and path != Path("/tmp"):  # noqa: S108
                path.chmod(path.stat().st_mode | 0o055)

    def start(self, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*prefix, sys.executable, "-m", "kprobe_modules", *arguments],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(
        self, *arguments: str, prefix: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, prefix=prefix)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def unprivileged(self) -> tuple[str, ...]:
        """
        Return what to put before a command to take its privileges away.
        """
        needs.root()
        needs.command("setpriv")
        prefix = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        if self("config", "check", prefix=prefix).returncode == 0:
            return prefix
        # Interpreter or checkout lie where only root may go: root without capabilities.
        return ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


def wait_until_asleep(pid: int) -> None:
    """
    Return when a process has slept, at the same place, for some looks in a row.
    """
    deadline = time.monotonic() + 20
    seen: list[str] = []
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
        # state, and the time spent in user and kernel mode
        seen.append(" ".join((stat[0], stat[11], stat[12])))
        if len(seen) >= 5 and seen[-1].startswith("S") and len(set(seen[-5:])) == 1:
            return
        time.sleep(0.02)
    pytest.fail(f"process {pid} never rests: {seen[-5:]}")
