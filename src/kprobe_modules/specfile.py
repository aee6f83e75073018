# SPDX-License-Identifier: Apache-2.0
"""
The spec of an object file, from what was written down when it was built.

Reading an object takes some 15 ms, most of them for loading pyelftools.  So the build
of our own objects leaves ``<name>.<arch>.spec.json`` beside each: the spec, and a
checksum of the object it is of.  An object without such a file, or with one of
another object, is read itself; the result is the same.
"""

from __future__ import annotations

import json
from binascii import crc32
from typing import TYPE_CHECKING

import attrs

from kprobe_modules.specjson import from_plain, to_plain

if TYPE_CHECKING:
    from kprobe_modules.spec import ObjectSpec

__all__ = ["VERSION", "read", "write"]

VERSION = 1
"""Of the way specs are written; what was written another way is not used."""


def write(data: bytes, spec: ObjectSpec) -> bytes:
    """
    Return what to put beside an object.

    Args:
        data: the object file.
        spec: what `kprobe_modules.objectfile.read` made of it.
    """
    plain = {"version": VERSION, "size": len(data), "crc32": crc32(data), "spec": to_plain(spec)}
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def read(data: bytes, name: str, beside: bytes | None = None) -> ObjectSpec:
    """
    Return the spec of an object file.

    Args:
        data: the object file.
        name: what it is called in the spec and in errors.
        beside: what lies beside it, if there is such a file.

    Raises:
        KprobeModulesError: as `kprobe_modules.objectfile.read` does.
    """
    spec = None if beside is None else _written(data, beside)
    if spec is None:
        # Where pyelftools comes in.
        from kprobe_modules import objectfile

        return objectfile.read(data, name)
    return spec if spec.name == name else attrs.evolve(spec, name=name)


def _written(data: bytes, beside: bytes) -> ObjectSpec | None:
    """
    Return what was written of this very object; None if it was of another, or is damaged.
    """
    try:
        plain = json.loads(beside)
        found = plain["version"], plain["size"], plain["crc32"]
        return from_plain(plain["spec"]) if found == (VERSION, len(data), crc32(data)) else None
    except (ValueError, LookupError, TypeError):
        return None
