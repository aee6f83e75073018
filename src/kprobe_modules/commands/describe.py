# SPDX-License-Identifier: Apache-2.0
"""
``kprobe-modules describe MODULE``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kprobe_modules import describe, objectfile
from kprobe_modules.architecture import machine_arch
from kprobe_modules.registry import Registry

if TYPE_CHECKING:
    import argparse

__all__ = ["run"]


def run(parsed: argparse.Namespace) -> int:
    """
    Print hooks, messages, maps and tunables, from the object and the manifest.
    """
    manifest = Registry().load(parsed.module)
    spec = objectfile.read(manifest.object_bytes(machine_arch()), manifest.name)
    if parsed.json or parsed.output == "json":
        print(json.dumps(describe.as_dict(spec, manifest), indent=2))
    else:
        print(describe.as_text(spec, manifest), end="")
    return 0
