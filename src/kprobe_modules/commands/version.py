# SPDX-License-Identifier: Apache-2.0
"""
``kprobe-modules --version``.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from kprobe_modules.errors import LibbpfNotFoundError

if TYPE_CHECKING:
    import argparse

__all__ = ["run"]


def run(_parsed: argparse.Namespace) -> int:
    """
    Print our version and libbpf's, and where that one is from.
    """
    from kprobe_modules.libbpf import find

    try:
        ours = version("kprobe_modules")
    except PackageNotFoundError:
        ours = "(not installed)"
    try:
        library = find()
        libbpf = f"{library.version_string} ({library.origin} {library.path})"
    except LibbpfNotFoundError:
        libbpf = "none"
    print(f"kprobe-modules {ours}, libbpf {libbpf}, Python {platform.python_version()}")
    return 0
