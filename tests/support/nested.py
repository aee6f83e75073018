# SPDX-License-Identifier: Apache-2.0
"""
A module one of whose programs the kernel always leaves out.
"""

from __future__ import annotations

from kprobe_modules.api import Handler, Hook, Manifest

__all__ = ["MODULE"]

MODULE = Manifest(
    name="nested",
    package="tests.bpf.objects",
    handler=Handler,
    hooks=(
        Hook("outer", "TELEMETRY", ("outer_kprobe",)),
        Hook("inner", "TELEMETRY", ("inner_kprobe",)),
    ),
)
