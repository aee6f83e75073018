# SPDX-License-Identifier: Apache-2.0
"""
Compile a BPF source while the tests run.
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import tempfile
from pathlib import Path

from tests.support.requirements import needs

__all__ = ["ARCHITECTURE", "compile_bpf"]

ROOT = Path(__file__).resolve().parents[2]
HEADERS = ROOT / "src" / "kprobe_modules" / "bpf"

#: What the headers call this machine, by ``uname -m``.
ARCHITECTURE = {"x86_64": "x86", "aarch64": "arm64"}[platform.machine()]


@functools.cache
def compile_bpf(source: Path, *options: str) -> bytes:
    """
    Return the object that clang makes of a C source, for this machine.

    Skips the test if there is no clang; fails with what clang says of errors.
    """
    clang = os.environ.get("KPROBE_MODULES_CLANG") or needs.command("clang", "clang-14")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "object.o"
        command = [
            clang,
            *("-target", "bpf", "-mcpu=v2", "-g", "-O2", "-Wall", "-Werror"),
            f"-D__TARGET_ARCH_{ARCHITECTURE}",
            f"-I{HEADERS}",
            *options,
            *("-c", str(source), "-o", str(target)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return target.read_bytes()
