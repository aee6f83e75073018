# SPDX-License-Identifier: Apache-2.0
"""
The loops of a part in a guest whose kernel has kprobes, where the machine's own has none.

tcpconnect needs kprobes, and bcc's execsnoop the headers of the running kernel
too.  The guest is the one of the kernel list that bcc comes from the same release as; its
headers are downloaded by apt and kept beside the kernel.  Guests may be emulated: the times
mean nothing then, their ratios somewhat.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.figures import Figure, Missing
from tests.bench.watched import KPROBES
from tests.bench.workshop import ROOT, UnavailableError
from tests.vm import fetch, kernels

if TYPE_CHECKING:
    from tests.bench.effort import Effort
    from tests.bench.workshop import Workshop

__all__ = ["measure"]

KERNEL = "6.1"
ROUNDS = 6
LOOPS = 101
STARTS = 2
"""bcc compiles its program at each start, which an emulated machine does for minutes."""
TIMEOUT = 3600

#: Name in the guest's file, name in ours.
FIGURES = {
    "fork_exec_slowdown_execsnoop": "fork_exec_slowdown_execsnoop",
    "fork_exec_slowdown": "fork_exec_slowdown_guest",
    "fork_exec_slowdown_execsnoop_libbpf": "fork_exec_slowdown_execsnoop_libbpf_guest",
    "connect_slowdown": "connect_slowdown_guest",
    "connect_slowdown_tcplife_libbpf": "connect_slowdown_tcplife_libbpf_guest",
    "connect_slowdown_tcpconnect_libbpf": "connect_slowdown_tcpconnect_libbpf",
    "bulk_mib_slowdown": "bulk_mib_slowdown_guest",
    "bulk_mib_slowdown_tcplife_libbpf": "bulk_mib_slowdown_tcplife_libbpf_guest",
    "bulk_mib_slowdown_tcpconnect_libbpf": "bulk_mib_slowdown_tcpconnect_libbpf",
}


def headers(release: str) -> Path:
    """
    Return one folder with the headers of a Debian kernel, downloading them if need be.

    Debian splits them in two packages that find each other by absolute paths;
    merged, they can be anywhere.
    """
    folder = fetch.cache() / "headers" / release
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    common = f"{release.rpartition('-')[0]}-common"
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        work = Path(name)
        packages = [f"linux-headers-{part}" for part in (common, release)]
        done = subprocess.run(
            ["apt-get", "download", "-q", *packages],
            cwd=work,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            msg = f"apt cannot download {' and '.join(packages)}: {done.stderr.strip()}"
            raise UnavailableError(msg)
        for archive in work.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", archive.name, "."], cwd=work, check=True)
        merged = work / "merged"
        for package in packages:
            for part in ("arch", "include"):
                source = work / "usr" / "src" / package / part
                shutil.copytree(source, merged / part, symlinks=True, dirs_exist_ok=True)
        merged.rename(folder)
    return folder


def _command(scratch: Path, sources: Path, workshop: Workshop) -> str:
    """
    The shell command line for the guest, which writes to *scratch* and nowhere else.
    """
    # Built here: the guest sees the checkout, but may not write to it.
    workshop.churn()
    workshop.connect()
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)])
    variables = {"PYTHONPATH": path, "BCC_KERNEL_SOURCE": str(sources)}
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    arguments = [
        "overhead",
        "tcp",
        "--rounds",
        str(ROUNDS),
        "--loops",
        str(LOOPS),
        "--starts",
        str(STARTS),
    ]
    files = ["--scratch", str(scratch), "--output", str(scratch / "bench.json")]
    bench = [sys.executable, "-m", "tests.bench", *arguments, *files]
    return f"{settings} {shlex.join(bench)}"


def measure(workshop: Workshop, effort: Effort) -> list[Figure | Missing]:
    """
    Boot, run what has such peers there, and read what it wrote.
    """
    if KPROBES.exists():
        return []
    image = fetch.cached(kernels.find(KERNEL))
    if image is None:
        msg = f"needs a guest: python -m tests.vm fetch {KERNEL}"
        raise UnavailableError(msg)
    scratch = (effort.scratch / "guest").resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    result = scratch / "bench-rounds.json"
    result.unlink(missing_ok=True)
    effort.progress(f"guest: Linux {image.release}")
    run = ["run", "--kernel", KERNEL, "--timeout", str(TIMEOUT), "--share", str(scratch)]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.vm",
            *run,
            "--",
            _command(scratch, headers(image.release), workshop),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode or not result.exists():
        msg = f"the guest failed: {done.stdout.strip()[-500:]}"
        raise UnavailableError(msg)
    found = json.loads(result.read_text(encoding="utf-8"))
    note = f"in a guest with Linux {image.release}"
    return [
        Figure(ours, found[theirs], "x", note=note)
        for theirs, ours in FIGURES.items()
        if theirs in found
    ]
