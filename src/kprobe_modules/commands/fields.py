# SPDX-License-Identifier: Apache-2.0
"""
``kprobe-modules fields MODULE``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import attrs

from kprobe_modules.records import (
    Failure,
    Late,
    Log,
    Lost,
    Metrics,
    StackTrace,
    Stats,
    Steady,
    Suppressed,
)
from kprobe_modules.registry import Registry

if TYPE_CHECKING:
    import argparse

    from kprobe_modules.records import Record

__all__ = ["field_types", "run"]

#: What the framework itself may say about a module.
FRAMEWORK: tuple[type[Record], ...] = (
    Steady,
    Lost,
    Late,
    Log,
    StackTrace,
    Suppressed,
    Failure,
    Metrics,
    Stats,
)


def run(parsed: argparse.Namespace) -> int:
    """
    Print each record's fields with their types, in the order of the output.
    """
    manifest = Registry().load(parsed.module)
    for kind in (*manifest.records, *FRAMEWORK):
        fields = field_types(kind)
        if parsed.json:
            print(json.dumps({"record": kind.record, "fields": fields}))
            continue
        print(kind.record)
        width = max(map(len, fields))
        for name, text in fields.items():
            print(f"  {name:<{width}}  {text}")
    return 0


def field_types(kind: type[Record]) -> dict[str, str]:
    """
    Return the fields of a record class and their types as they were written.
    """
    types = {"time": "int", "module": "str", "record": "str"}
    for field in attrs.fields(kind):
        kind_name = (
            field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
        )
        types[field.name] = kind_name or "object"
    return types
