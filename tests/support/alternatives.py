# SPDX-License-Identifier: Apache-2.0
"""
Which alternatives of a module's hooks a kernel has, and which are live.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kprobe_modules.architecture import machine_arch
from kprobe_modules.features import Features
from kprobe_modules.objectfile import read

if TYPE_CHECKING:
    from kprobe_modules import Collector
    from kprobe_modules.api import Manifest

__all__ = ["absent_programs", "names_live"]


def absent_programs(module: Manifest) -> frozenset[str]:
    """
    Return the programs of hooks that this kernel cannot attach; those of slots attach nowhere.
    """
    spec = read(module.object_bytes(machine_arch()), module.name)
    features = Features()
    try:
        return frozenset(
            item.name
            for item in spec.programs
            if item.hook and item.target and not features.program(item.kind, item.target)
        )
    finally:
        features.close()


def names_live(collector: Collector, module: str) -> dict[str, str]:
    """
    Return the name of the alternative that is live, by hook.
    """
    return {
        choice.hook.name: choice.alternative.name
        for choice in collector.status(module).choices
        if choice.alternative
    }
