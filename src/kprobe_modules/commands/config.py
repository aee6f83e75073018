# SPDX-License-Identifier: Apache-2.0
"""
``kprobe-modules config check``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kprobe_modules import config
from kprobe_modules.commands import options
from kprobe_modules.registry import Registry

if TYPE_CHECKING:
    import argparse

__all__ = ["run"]


def run(parsed: argparse.Namespace) -> int:
    """
    Print every value and where it was set; a bad one is an error.
    """
    chosen = options.load(parsed)
    registered = Registry().names()
    selected = config.select(chosen, registered)
    _line("modules", ", ".join(selected) or "none", _origin(chosen, "enable", "disable"))
    for key in ("transport", "pages", "data_pages", "watermark", "interval"):
        value = getattr(chosen, key)
        shown = "the collector's choice" if value is None else str(value)
        _line(key, shown, _origin(chosen, key))
    for module, tunables in sorted(chosen.tunables.items()):
        for name, number in sorted(tunables.items()):
            key = f"modules.{module}.{name}"
            _line(key, str(number).lower(), _origin(chosen, key))
    for hook, program in sorted(chosen.hooks.items()):
        _line(f"hooks.{hook}", program, _origin(chosen, f"hooks.{hook}"))
    return 0


def _origin(chosen: config.Options, *keys: str) -> str:
    found = [chosen.origins[key] for key in keys if key in chosen.origins]
    return ", ".join(dict.fromkeys(found)) or "default"


def _line(key: str, value: str, origin: str) -> None:
    print(f"{key:<12} {value:<24} ({origin})")
