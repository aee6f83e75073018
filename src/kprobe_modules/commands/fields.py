# SPDX-License-Identifier: Apache-2.0
"""
``kprobe-modules fields MODULE``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import attrs

from kprobe_modules.commands.status import FRAMEWORK
from kprobe_modules.registry import Registry

if TYPE_CHECKING:
    import argparse

    from kprobe_modules.records import Record

__all__ = ["field_types", "run"]


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
