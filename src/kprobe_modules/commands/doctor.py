# SPDX-License-Identifier: Apache-2.0
"""
``kprobe-modules doctor``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import attrs

from kprobe_modules import doctor
from kprobe_modules.commands import options
from kprobe_modules.registry import Registry
from kprobe_modules.sinks.values import readable

if TYPE_CHECKING:
    import argparse

__all__ = ["run"]


def run(parsed: argparse.Namespace) -> int:
    """
    Print the findings; 0 when none failed, else 1.
    """
    failed = False
    for finding in doctor.examine(options.load(parsed), Registry(), attach=parsed.attach):
        failed |= finding.status == "fail"
        if parsed.quiet and finding.status != "fail":
            continue
        text = json.dumps(attrs.asdict(finding)) if parsed.json else readable(str(finding))
        print(text, flush=True)
    return int(failed)
