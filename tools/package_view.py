# SPDX-License-Identifier: Apache-2.0
"""
Show the package as installed, as a tree of links: ``build/view/kprobe_modules``.

The checkout keeps the package in three folders, which mypy can't put together by itself.
"""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VIEW = ROOT / "build" / "view"


def main() -> None:
    """
    Make the tree anew.
    """
    shutil.rmtree(VIEW, ignore_errors=True)
    package = VIEW / "kprobe_modules"
    package.mkdir(parents=True)
    parts = [*(ROOT / "src/kprobe_modules").iterdir(), ROOT / "modules", ROOT / "rings"]
    for part in parts:
        if part.name != "__pycache__":
            (package / part.name).symlink_to(part)


if __name__ == "__main__":
    main()
