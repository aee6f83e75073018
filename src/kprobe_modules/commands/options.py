# SPDX-License-Identifier: Apache-2.0
"""
From parsed flags to the options of a run.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kprobe_modules import config
from kprobe_modules.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from kprobe_modules.config import Options

__all__ = ["load", "numbers"]

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def load(parsed: argparse.Namespace) -> Options:
    """
    Merge the flags with the file and the environment.

    Raises:
        ConfigError: a flag, the file or a variable is wrong.
    """
    return config.load(command_line=_given(parsed), path=parsed.config)


def _given(parsed: argparse.Namespace) -> dict[str, object]:
    """
    Return the flags that were given, by the keys of the configuration file.
    """
    given: dict[str, object] = {
        key: getattr(parsed, key)
        for key in ("transport", "pages", "data_pages", "watermark", "interval")
    }
    given["disable"] = ",".join(parsed.disable or ()) or None
    names = ",".join([*(parsed.modules or ()), *getattr(parsed, "names", ())])
    if names.strip(","):
        given["enable"] = names
    tunables: dict[str, dict[str, int | bool]] = {}
    for text in parsed.set:
        module, name, value = _assignment("--set", text)
        tunables.setdefault(module, {})[name] = _scalar(text, value)
    hooks = {}
    for text in parsed.hook:
        module, name, value = _assignment("--hook", text)
        hooks[f"{module}.{name}"] = value
    return given | {"modules": tunables or None, "hooks": hooks or None}


def _assignment(flag: str, text: str) -> tuple[str, str, str]:
    found = re.fullmatch(r"(\w+)\.(\w+)=(.+)", text)
    if found is None:
        msg = f"{flag}: expected MODULE.NAME=VALUE, found {text!r}"
        raise ConfigError(msg)
    return found[1], found[2], found[3]


def _scalar(text: str, value: str) -> int | bool:
    if value.lower() in _WORDS:
        return _WORDS[value.lower()]
    try:
        return int(value, 0)
    except ValueError:
        msg = f"--set: expected an integer, true or false, found {text!r}"
        raise ConfigError(msg) from None


def numbers(flag: str, text: str) -> list[int]:
    """
    Parse ``1,2,3``.

    Raises:
        ConfigError: an item is no number.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,18}", part) for part in parts):
        msg = f"{flag}: expected numbers with commas, found {text!r}"
        raise ConfigError(msg)
    return [int(part) for part in parts]
