# SPDX-License-Identifier: Apache-2.0
"""
Specs as JSON has them: what lies beside an object, and what captures are read by.
"""

from __future__ import annotations

from struct import calcsize
from struct import error as struct_error
from typing import TYPE_CHECKING, Any

import attrs

from kprobe_modules.codes import Argument, Code, Site
from kprobe_modules.layout import Field, Layout
from kprobe_modules.shape import MemberShape, TypeShape
from kprobe_modules.spec import MapSpec, MessageSpec, ObjectSpec, ProgramSpec, Tunable

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["from_plain", "messages_to_plain", "to_plain"]

_DEFAULTS = {
    field.name: field.default for field in attrs.fields(Field) if field.default is not attrs.NOTHING
}


def to_plain(spec: ObjectSpec) -> dict[str, Any]:
    """
    Return a whole spec.
    """
    return {
        **messages_to_plain(spec),
        "programs": [list(attrs.astuple(program)) for program in spec.programs],
        "maps": [_map_to_plain(each) for each in spec.maps],
        "tunables": [_tunable_to_plain(tunable) for tunable in spec.tunables],
        "rodata": spec.rodata.hex(),
    }


def messages_to_plain(spec: ObjectSpec) -> dict[str, Any]:
    """
    Return an object's name, architecture, messages and logs: what its rows are read by.
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


def from_plain(plain: Mapping[str, Any]) -> ObjectSpec:
    """
    Return the spec that `to_plain` was given, or as much of it as `messages_to_plain` keeps.

    Raises:
        ValueError: it is no such thing, or its fields contradict each other; says how.
    """
    try:
        return ObjectSpec(
            name=str(plain["name"]),
            arch=plain["arch"],
            license=str(plain["license"]),
            programs=tuple(ProgramSpec(*program) for program in plain.get("programs", ())),
            maps=tuple(_map(each) for each in plain.get("maps", ())),
            messages=tuple(_message(message) for message in plain["messages"]),
            tunables=tuple(_tunable(tunable) for tunable in plain.get("tunables", ())),
            rodata=bytes.fromhex(plain.get("rodata", "")),
            diagnostics=tuple(_message(message) for message in plain.get("diagnostics", ())),
            codes=tuple(_code(code) for code in plain.get("codes", ())),
            sites={
                int(number): Site(str(file), int(line))
                for number, file, line in plain.get("sites", ())
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        msg = f"{type(error).__name__}: {error}"
        raise ValueError(msg) from error


def _map_to_plain(each: MapSpec) -> list[Any]:
    numbers = [each.type, each.type_name, each.key_size, each.value_size, each.max_entries]
    return [each.name, *numbers, each.flags, *map(_shape_to_plain, (each.key, each.value))]


def _map(plain: list[Any]) -> MapSpec:
    name, number, type_name, key_size, value_size, entries, flags, key, value = plain
    sizes = key_size, value_size, entries, flags
    return MapSpec(name, number, type_name, *sizes, _shape(key), _shape(value))


def _shape_to_plain(shape: TypeShape | None) -> list[Any] | None:
    if shape is None:
        return None
    members = [
        [member.name, member.offset, member.bits, _shape_to_plain(member.shape)]
        for member in shape.members
    ]
    values = [list(pair) for pair in shape.values]
    head = [shape.kind, shape.name, shape.size, shape.count, _shape_to_plain(shape.element)]
    return [*head, members, values, shape.typedef, shape.nodes]


def _shape(plain: list[Any] | None) -> TypeShape | None:
    if plain is None:
        return None
    kind, name, size, count, element, members, values, typedef, nodes = plain
    made = []
    for member, offset, bits, within in members:
        shape = _shape(within)
        if shape is None:
            msg = f"member {member} of {kind} {name} has no type"
            raise ValueError(msg)
        made.append(MemberShape(member, offset, bits, shape))
    pairs = tuple((value, number) for value, number in values)
    return TypeShape(kind, name, size, count, _shape(element), tuple(made), pairs, typedef, nodes)


def _tunable_to_plain(tunable: Tunable) -> list[Any]:
    *values, default, unit, doc = attrs.astuple(tunable)
    return [*values, {"hex": default.hex()} if isinstance(default, bytes) else default, unit, doc]


def _tunable(plain: list[Any]) -> Tunable:
    name, kind, size, offset, default, unit, doc = plain
    value = bytes.fromhex(default["hex"]) if isinstance(default, dict) else default
    return Tunable(name, kind, size, offset, value, unit, doc)


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
