# SPDX-License-Identifier: Apache-2.0
"""
``kprobe-modules list``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from kprobe_modules import config, hooks, objectfile
from kprobe_modules.commands import options
from kprobe_modules.errors import KprobeModulesError
from kprobe_modules.features import Features, Support
from kprobe_modules.libbpf import find
from kprobe_modules.maps import machine_arch
from kprobe_modules.registry import Registry
from kprobe_modules.sinks.values import readable

if TYPE_CHECKING:
    import argparse

    from kprobe_modules.config import Options
    from kprobe_modules.hooks import Choice
    from kprobe_modules.objectfile import ObjectSpec

__all__ = ["run"]


def run(parsed: argparse.Namespace) -> int:
    """
    Print each module and, per hook, what would be live on this kernel.

    Without privileges some alternatives cannot be tried; those are marked.
    """
    chosen = options.load(parsed)
    registry = Registry()
    features = Features(find())
    for name in config.select(chosen, registry.names()):
        entry = _entry(name, registry, features, chosen)
        print(json.dumps(entry) if parsed.json else _text(entry))
    return 0


def _entry(name: str, registry: Registry, features: Features, chosen: Options) -> dict[str, Any]:
    where = registry.registration(name)
    entry: dict[str, Any] = {
        "module": name,
        "distribution": where.distribution,
        "distribution_version": where.version,
    }
    try:
        manifest = registry.load(name)
        entry |= {"version": manifest.version, "summary": manifest.summary}
        spec = objectfile.read(manifest.object_bytes(machine_arch()), name)
        prefix = f"{name}."
        own = {
            key.removeprefix(prefix): program
            for key, program in chosen.hooks.items()
            if key.startswith(prefix)
        }
        choices = hooks.choose(manifest, spec, features, chosen=own)
    except KprobeModulesError as error:
        return entry | {"error": str(error)}
    return entry | {"hooks": [_hook(choice, spec, features) for choice in choices]}


def _hook(choice: Choice, spec: ObjectSpec, features: Features) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "hook": choice.hook.name,
        "tag": choice.hook.tag,
        "notices": choice.hook.notices,
        "required": choice.hook.required,
        "program": None,
        "attach_point": None,
        "certain": True,
        "fields_missing": list(choice.fields_missing),
        "rejected": dict(choice.rejected),
    }
    if choice.alternative is not None:
        program = spec.program(choice.alternative.program)
        support = features.program(program.kind, program.target)
        entry["program"] = program.name
        entry["attach_point"] = choice.attach_point
        entry["certain"] = support.support is not Support.UNKNOWN
    elif choice.waiting:
        entry["waiting_for"] = choice.hook.awaits
    return entry


def _text(entry: dict[str, Any]) -> str:
    title = f"{entry['module']} {entry.get('version', '')}".rstrip()
    lines = [f"{title}  ({entry['distribution']} {entry['distribution_version']})".rstrip()]
    if entry.get("summary"):
        lines.append(f"  {entry['summary']}")
    if "error" in entry:
        lines.append(f"  broken: {entry['error']}")
    for hook in entry.get("hooks", ()):
        live = _live(hook)
        lines.append(f"  {hook['tag']:<9} {hook['hook']:<14} {live}")
        if hook["fields_missing"]:
            lines.append(f"{'':27}cannot fill {', '.join(hook['fields_missing'])}")
        if hook["program"] is None:
            lines += [f"{'':27}{name}: {reason}" for name, reason in hook["rejected"].items()]
    return "\n".join(map(readable, lines))


def _live(hook: dict[str, Any]) -> str:
    if hook["program"] is not None:
        doubt = "" if hook["certain"] else ", to be tried: cannot tell without privileges"
        return f"{hook['program']} ({hook['attach_point']}){doubt}"
    if "waiting_for" in hook:
        return f"waits for kernel module {hook['waiting_for']}"
    return "nothing works on this kernel" + (", and it is required" if hook["required"] else "")
