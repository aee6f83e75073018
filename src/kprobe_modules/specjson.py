# SPDX-License-Identifier: Apache-2.0
"""
The messages of a module as JSON, so that a capture is read by the layouts it was made with.
"""

from __future__ import annotations

from struct import calcsize
from struct import error as struct_error
from typing import TYPE_CHECKING, Any

import attrs

from kprobe_modules.codes import Argument, Code, Site
from kprobe_modules.errors import CaptureError
from kprobe_modules.layout import Field, Layout
from kprobe_modules.spec import MessageSpec, ObjectSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["from_plain", "to_plain"]

_DEFAULTS = {
    field.name: field.default for field in attrs.fields(Field) if field.default is not attrs.NOTHING
}


def to_plain(spec: ObjectSpec) -> dict[str, Any]:
    """
    Return an object's name, architecture, messages and logs as JSON has them.
    """
    return {
        "name": spec.name,
        "arch": spec.arch,
        "license": spec.license,
        "messages": [_message_to_plain(message) for message in spec.messages],
        "diagnostics": [_message_to_plain(message) for message in spec.diagnostics],
        "codes": [attrs.asdict(code) for code in spec.codes],
        "sites": [[number, site.file, site.line] for number, site in spec.sites.items()],
    }


def _message_to_plain(message: MessageSpec) -> dict[str, Any]:
    return {
        "name": message.name,
        "id": message.id,
        "struct": message.layout.name,
        "size": message.layout.size,
        "fields": [_field_to_plain(field) for field in message.layout.fields],
        "tail": message.layout.tail and _field_to_plain(message.layout.tail),
    }


def _field_to_plain(field: Field) -> dict[str, Any]:
    values = attrs.asdict(field)
    return {
        name: value
        for name, value in values.items()
        if name not in _DEFAULTS or (value != _DEFAULTS[name] and value != ())
    }


def from_plain(plain: Mapping[str, Any]) -> ObjectSpec:
    """
    Return the object that `to_plain` was given, as far as it concerns what is read.

    Raises:
        CaptureError: it is no such thing, or its fields contradict each other.
    """
    try:
        return ObjectSpec(
            name=str(plain["name"]),
            arch=plain["arch"],
            license=str(plain["license"]),
            messages=tuple(_message(message) for message in plain["messages"]),
            diagnostics=tuple(_message(message) for message in plain.get("diagnostics", ())),
            codes=tuple(_code(code) for code in plain.get("codes", ())),
            sites={
                int(number): Site(str(file), int(line))
                for number, file, line in plain.get("sites", ())
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        msg = f"layouts are damaged: {type(error).__name__}: {error}"
        raise CaptureError(msg) from error


def _message(plain: Mapping[str, Any]) -> MessageSpec:
    name, size = str(plain["name"]), int(plain["size"])
    fields = tuple(_field(field) for field in plain["fields"])
    tail = plain["tail"]
    position = 0
    for field in fields:
        if field.offset < position or not 0 < field.size <= size - field.offset:
            msg = f"field {field.name} of {name} is at {field.offset}, where there is no room"
            raise ValueError(msg)
        position = field.offset + field.size
    layout = Layout(str(plain["struct"]), size, fields, None if tail is None else _field(tail))
    return MessageSpec(name, int(plain["id"]), layout)


def _code(plain: Mapping[str, Any]) -> Code:
    arguments = tuple(
        Argument(
            **{
                **argument,
                "values": tuple((str(name), int(value)) for name, value in argument["values"]),
            }
        )
        for argument in plain["arguments"]
    )
    return Code(str(plain["name"]), int(plain["id"]), arguments)


def _field(plain: Mapping[str, Any]) -> Field:
    values = tuple((str(name), int(value)) for name, value in plain.get("enum_values", ()))
    field = Field(**{**plain, "enum_values": values})
    if not all(isinstance(each, str) for each in (field.name, field.kind, field.format)):
        msg = f"field {field.name!r} is described by other than text"
        raise ValueError(msg)
    try:
        size = calcsize(f"<{field.format}")
    except struct_error as error:
        raise ValueError(*error.args) from error
    if size != field.size or field.offset < 0:
        msg = f"field {field.name} has {field.size} bytes, its format {field.format!r} {size}"
        raise ValueError(msg)
    return field
