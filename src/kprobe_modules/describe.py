# SPDX-License-Identifier: Apache-2.0
"""
What is in a module, for people and programs, without asking the kernel.

Three forms of the same facts: `as_dict` for JSON, `as_text` for a terminal,
`layout_text` for the ``layout.txt`` beside an object, whose differences
reviewers read because an object's say nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kprobe_modules.codes import Code
    from kprobe_modules.layout import Field
    from kprobe_modules.manifest import Alternative, Hook, Manifest
    from kprobe_modules.spec import MapSpec, MessageSpec, ObjectSpec, ProgramSpec, Tunable

__all__ = ["as_dict", "as_text", "format_text", "layout_text"]

#: Names that only the collector's maps have (bpf/km/maps.h); the ones a module
#: expects are in its manifest, and an object may be described without one.
COMMON_MAPS: Final = ("events", "data_channel", "tgid_info_table", "seen_inodes", "tail_calls")


def as_dict(spec: ObjectSpec, manifest: Manifest | None = None) -> dict[str, Any]:
    """
    Describe an object, and the manifest if there is one, in values JSON takes.

    Keys: ``module``, ``version``, ``summary``, ``arch``, ``license``, ``hooks``
    (in the manifest's order, each with ordered ``alternatives``; one of kind
    ``source`` is read by the handler), ``programs`` (those that serve no hook),
    ``messages``, ``codes`` (of logs), ``maps`` (each with its ``owner``: ``collector``,
    ``module``, or the name of the module that exports it), ``tunables``.  Offsets and
    sizes are bytes.

    Raises:
        ObjectError: the manifest names a program that the object lacks.
    """
    return {
        "module": manifest.name if manifest else spec.name,
        "version": manifest.version if manifest else None,
        "summary": manifest.summary if manifest else None,
        "arch": spec.arch,
        "license": spec.license,
        "hooks": _manifest_hooks(spec, manifest) if manifest else _tagged_hooks(spec),
        "programs": [_program(each) for each in spec.programs if each.hook is None],
        "messages": [_message(each) for each in spec.messages],
        "codes": [_code(each) for each in spec.codes],
        "maps": [_map(each, manifest) for each in spec.maps],
        "tunables": [_tunable(each) for each in spec.tunables],
    }


def as_text(spec: ObjectSpec, manifest: Manifest | None = None) -> str:
    """
    Describe an object, and the manifest if there is one, for a terminal.
    """
    return format_text(as_dict(spec, manifest))


def format_text(described: dict[str, Any]) -> str:
    """
    Lay out what `as_dict` returned; ends with a newline.
    """
    title = described["module"]
    if described["version"]:
        title += f" {described['version']}"
    if described["summary"]:
        title += f": {described['summary']}"
    built = f"built for {described['arch'] or 'any architecture'}, licence {described['license']}"
    sections = [
        [title, built],
        ["hooks", *_hook_lines(described["hooks"])],
        ["messages", *_message_lines(described["messages"])],
        ["logs", *_code_lines(described["codes"])],
        ["maps", *_map_lines(described["maps"])],
        ["tunables", *_tunable_lines(described["tunables"])],
    ]
    if described["programs"]:
        rows = [(each["name"], each["attach"]) for each in described["programs"]]
        sections.insert(2, ["programs that serve no hook", *_columns(rows, "  ")])
    return "\n\n".join("\n".join(lines) for lines in sections if len(lines) > 1) + "\n"


def layout_text(spec: ObjectSpec) -> str:
    """
    Return the layouts as the object has them; ends with a newline.

    The same for every build of the same source, one line per fact, so that
    a change of an offset is a change of a line.
    """
    lines = ["Layouts as the object has them; made by `make bpf`.  offset size type name [unit]"]
    for message in (*spec.messages, *spec.diagnostics):
        layout = message.layout
        lines += ["", f"message {message.id} {message.name}: struct {layout.name}"]
        position = 0
        for field in (*layout.fields, *([layout.tail] if layout.tail else [])):
            if field.offset > position:
                lines.append(f"{position:6} {field.offset - position:5} (padding)")
            lines.append(_layout_line(field))
            lines += [f"{'':14}{name} = {value}" for name, value in field.enum_values]
            position = field.offset + field.size
        if layout.tail is None and layout.size > position:
            lines.append(f"{position:6} {layout.size - position:5} (padding)")
        lines.append(f"{layout.size:6}       {'(tail follows)' if layout.tail else '(end)'}")
    if spec.codes:
        lines += ["", "codes of logs"]
        lines += _code_lines(map(_code, spec.codes))
    for each in spec.maps:
        limits = f"max_entries {each.max_entries}, flags {each.flags:#x}"
        lines += ["", f"map {each.name}: {each.type_name}, {limits}"]
        for what, size, shape in (
            ("key", each.key_size, each.key),
            ("value", each.value_size, each.value),
        ):
            # Messages are above; the union that lists them would repeat them.
            if shape is None or shape.kind == "union":
                lines.append(f"  {what}: {shape or 'opaque'}, {size} bytes")
            else:
                lines += [f"  {what}:", *shape.lines(indent="  ")]
    if spec.tunables:
        lines += ["", "tunables"]
        rows = [(f"{each.name}", _type(each.kind, each.size), f"= {_default(each)}")
                for each in sorted(spec.tunables, key=lambda each: each.name)]  # fmt: skip
        lines += _columns(rows, "  ")
    return "\n".join(lines) + "\n"


def _manifest_hooks(spec: ObjectSpec, manifest: Manifest) -> list[dict[str, Any]]:
    return [_manifest_hook(spec, hook) for hook in manifest.hooks]


def _manifest_hook(spec: ObjectSpec, hook: Hook) -> dict[str, Any]:
    return {
        "name": hook.name,
        "tag": hook.tag,
        "required": hook.required,
        "notices": hook.notices,
        "awaits": hook.awaits,
        "fields_missing": list(hook.fields_missing),
        "alternatives": [_alternative(spec, each) for each in hook.alternatives],
    }


def _alternative(spec: ObjectSpec, alternative: Alternative) -> dict[str, Any]:
    own = (
        _program(spec.program(alternative.program))
        if alternative.program
        else {"name": alternative.source, "kind": "source", "target": "", "attach": "the handler"}
    )
    if alternative.slot:
        own["attach"] = f"slot/{alternative.slot}"
    return {
        **own,
        "companions": [_program(spec.program(name)) for name in alternative.companions],
        "fields_missing": list(alternative.fields_missing),
        "note": alternative.note,
        "calls": list(alternative.calls),
    }


def _tagged_hooks(spec: ObjectSpec) -> list[dict[str, Any]]:
    """
    Return the hooks as far as the tags of the programs tell.
    """
    hooks = dict.fromkeys((each.hook, each.tag) for each in spec.programs if each.hook)
    return [
        {
            "name": name,
            "tag": tag,
            "required": None,
            "notices": "",
            "awaits": None,
            "fields_missing": [],
            "alternatives": [
                {**_program(each), "companions": [], "fields_missing": [], "note": "", "calls": []}
                for each in spec.programs
                if (each.hook, each.tag) == (name, tag)
            ],
        }
        for name, tag in hooks
    ]


def _program(program: ProgramSpec) -> dict[str, Any]:
    return {
        "name": program.name,
        "kind": program.kind,
        "target": program.target,
        "attach": f"{program.kind}/{program.target}" if program.target else program.kind,
    }


def _message(message: MessageSpec) -> dict[str, Any]:
    layout = message.layout
    return {
        "name": message.name,
        "id": message.id,
        "struct": layout.name,
        "size": layout.size,
        "fields": [_field(each) for each in layout.fields],
        "tail": _field(layout.tail) if layout.tail else None,
    }


def _field(field: Field) -> dict[str, Any]:
    return {
        "name": field.name,
        "type": _field_type(field),
        "typedef": field.typedef,
        "offset": field.offset,
        "size": field.size,
        "unit": field.unit,
        "values": dict(field.enum_values),
    }


def _field_type(field: Field) -> str:
    if field.count is None:
        return field.kind
    return f"{field.kind.removesuffix('[]')}[{field.count or ''}]"


def _code(code: Code) -> dict[str, Any]:
    return {
        "name": code.name,
        "id": code.id,
        "arguments": [
            {"name": each.name, "unit": each.unit, "values": dict(each.values)}
            for each in code.arguments
        ],
    }


def _logged(code: dict[str, Any]) -> str:
    return f"{code['name']}({', '.join(each['name'] for each in code['arguments'])})"


def _code_lines(codes: Iterable[dict[str, Any]]) -> list[str]:
    return _columns([(str(code["id"]), _logged(code)) for code in codes], "  ")


def _map(each: MapSpec, manifest: Manifest | None) -> dict[str, Any]:
    owner = "collector" if each.name in COMMON_MAPS else "module"
    return {
        "name": each.name,
        "owner": manifest.imports.get(each.name, owner) if manifest else owner,
        "exported": bool(manifest and each.name in manifest.exports),
        "type": each.type_name,
        "key": str(each.key) if each.key else None,
        "key_size": each.key_size,
        "value": str(each.value) if each.value else None,
        "value_size": each.value_size,
        "max_entries": each.max_entries,
        "flags": each.flags,
    }


def _tunable(tunable: Tunable) -> dict[str, Any]:
    return {
        "name": tunable.name,
        "type": _type(tunable.kind, tunable.size),
        "default": _default(tunable),
        "unit": tunable.unit,
        "doc": tunable.doc,
        "set_by": "collector" if tunable.framework else "user",
    }


def _type(kind: str, size: int) -> str:
    return {"char[]": f"char[{size}]", "bytes": f"bytes[{size}]"}.get(kind, kind)


def _default(tunable: Tunable) -> int | bool | str:
    if not isinstance(tunable.default, bytes):
        return tunable.default
    if tunable.kind == "char[]":
        return tunable.default.decode("utf-8", "backslashreplace")
    return tunable.default.hex()


def _layout_line(field: Field) -> str:
    type_ = _field_type(field)
    named = f"{field.typedef} ({type_})" if field.typedef else type_
    unit = f" [{field.unit}]" if field.unit else ""
    return f"{field.offset:6} {field.size:5} {named} {field.name}{unit}"


def _hook_lines(hooks: Iterable[dict[str, Any]]) -> Iterator[str]:
    requirement = {True: "required", False: "optional", None: ""}
    for hook in hooks:
        words = (hook["name"], hook["tag"], requirement[hook["required"]])
        awaits = f" (awaits kernel module {hook['awaits']})" if hook["awaits"] else ""
        notices = f": {hook['notices']}" if hook["notices"] else ""
        yield "  " + " ".join(word for word in words if word) + notices + awaits
        for place, each in enumerate(hook["alternatives"], 1):
            names = [f"{each['attach']} ({each['name']})"]
            names += [f"calling slot/{slot}" for slot in each["calls"]]
            names += [f"with {more['attach']} ({more['name']})" for more in each["companions"]]
            yield f"    {place}. {' '.join(names)}" + (f" - {each['note']}" if each["note"] else "")
            if each["fields_missing"]:
                yield f"       cannot fill {', '.join(each['fields_missing'])}"
        if hook["fields_missing"]:
            yield f"    without any: {', '.join(hook['fields_missing'])} stay unfilled"


def _message_lines(messages: Iterable[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        tail = " and a tail" if message["tail"] else ""
        yield f"  {message['id']} {message['name']}: {message['size']} bytes{tail}"
        fields = [*message["fields"], *([message["tail"]] if message["tail"] else [])]
        yield from _columns(
            [(str(each["offset"]), each["type"], each["name"], _meaning(each)) for each in fields],
            "    ",
        )


def _meaning(field: dict[str, Any]) -> str:
    values = ", ".join(f"{name}={value}" for name, value in field["values"].items())
    return field["unit"] or values


def _map_lines(maps: Iterable[dict[str, Any]]) -> list[str]:
    rows = [
        (
            each["name"],
            each["owner"] + (", exported" if each["exported"] else ""),
            each["type"],
            f"{each['key'] or each['key_size']} -> {each['value'] or each['value_size']}",
            f"{each['max_entries']} entries" if each["max_entries"] else "",
        )
        for each in maps
    ]
    return _columns(rows, "  ")


def _tunable_lines(tunables: Iterable[dict[str, Any]]) -> list[str]:
    rows = [
        (
            each["name"],
            each["type"],
            f"= {each['default']}",
            " ".join(filter(None, (each["unit"], each["doc"])))
            or ("set by the collector" if each["set_by"] == "collector" else ""),
        )
        for each in tunables
    ]
    return _columns(rows, "  ")


def _columns(rows: Sequence[tuple[str, ...]], indent: str) -> list[str]:
    """
    Align the columns of some rows; the last one is as long as it likes.
    """
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        indent
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
