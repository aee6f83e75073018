# SPDX-License-Identifier: Apache-2.0
"""
A small C program whose functions have names to look for.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.compiled import compiled
from tests.support.requirements import needs

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
    command = [compiler, "-O0", "-fno-omit-frame-pointer", "-Wl,--build-id", *options]
    return Path(shutil.copy(compiled(command, [SOURCE]), folder / "stacked"))
