# SPDX-License-Identifier: Apache-2.0
"""
Compile a BPF source while the tests run.
"""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

from tests.support.compiled import ROOT, compiled
from tests.support.requirements import needs

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ARCHITECTURE", "compile_bpf"]

HEADERS = ROOT / "src" / "kprobe_modules" / "bpf"

#: What the headers call this machine, by ``uname -m``.
ARCHITECTURE = {"x86_64": "x86", "aarch64": "arm64"}[platform.machine()]


def compile_bpf(source: Path, *options: str) -> bytes:
    """
    Return the object that clang makes of a C source, for this machine.

    Skips the test if there is no clang; fails with what clang says of errors.
    """
    clang = os.environ.get("KPROBE_MODULES_CLANG") or needs.command("clang", "clang-14")
    command = [
        clang,
        *("-target", "bpf", "-mcpu=v2", "-g", "-O2", "-Wall", "-Werror"),
        f"-D__TARGET_ARCH_{ARCHITECTURE}",
        f"-I{HEADERS}",
        *options,
        "-c",
    ]
    headers = sorted([*HEADERS.rglob("*.h"), *source.parent.glob("*.h")])
    return compiled(command, [source, *headers]).read_bytes()
