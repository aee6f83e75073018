# SPDX-License-Identifier: Apache-2.0
"""
What tests compile, once for each content.

Emulated guests take a minute for what the host compiles in a second.  They share the
host's checkout, for reading, and so find there what it has compiled.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ROOT", "compiled"]

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "compiled"


def compiled(command: Sequence[str], sources: Sequence[Path]) -> Path:
    """
    Return the file that a compiler makes, where it stays for the next who asks.

    Its name is the source's without the ending.

    Args:
        command: the compiler and its options, without sources and ``-o``.
        sources: the source, and behind it all else that its object depends on.

    Raises:
        AssertionError: saying what the compiler does.
    """
    digest = hashlib.sha256(repr(list(command)).encode())
    for source in sources:
        digest.update(source.read_bytes())
    target = KEPT / digest.hexdigest()[:24] / sources[0].stem
    if target.exists():
        return target
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / target.name
        done = subprocess.run(
            [*command, str(sources[0]), "-o", str(made)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return _kept(made, target)


def _kept(made: Path, target: Path) -> Path:
    """
    Move a file to where it stays, in one step, as others may look at the same time.
    """
    folder = target.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder)
    except OSError:  # a guest reads the host's checkout only
        target = Path(tempfile.mkdtemp(prefix="compiled-")) / target.name
        handle, name = tempfile.mkstemp(dir=target.parent)
    with open(handle, "wb") as copy:  # noqa: PTH123  (a descriptor)
        copy.write(made.read_bytes())
    Path(name).chmod(0o755)
    os.replace(name, target)  # noqa: PTH105  (names, not paths)
    return target
