# SPDX-License-Identifier: Apache-2.0
"""
The machine's architecture, by the names that object files bear.
"""

from __future__ import annotations

import os

__all__ = ["machine_arch"]

_ARCHES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}


def machine_arch() -> str:
    """
    Return the running machine's architecture as object files are named for it.
    """
    machine = os.uname().machine
    return _ARCHES.get(machine, machine)
