# SPDX-License-Identifier: Apache-2.0
"""
A small C program whose functions have names to look for.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FUNCTIONS", "build"]

SOURCE = Path(__file__).with_name("stacked.c")
FUNCTIONS = ["stacked_innermost", "stacked_middle", "stacked_outer", "main"]
"""Of its stack when it forks, innermost first."""


def build(folder: Path, *options: str) -> Path:
    """
    Compile the program into a folder.

    Skips the test if there is no C compiler.
    """
    compiler = needs.command("cc", "gcc", "clang", "clang-14")
    target = folder / "stacked"
    command: Sequence[str | Path] = [
        compiler, "-O0", "-fno-omit-frame-pointer",
        "-Wl,--build-id", *options, SOURCE, "-o", target,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target
