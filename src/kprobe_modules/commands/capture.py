# SPDX-License-Identifier: Apache-2.0
"""
``kprobe-modules capture``: a run whose result is a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kprobe_modules.commands import run as running

if TYPE_CHECKING:
    import argparse

__all__ = ["run"]


def run(parsed: argparse.Namespace) -> int:
    """
    Run as ``run --capture`` does, by default without printing records.
    """
    return running.run(parsed)
