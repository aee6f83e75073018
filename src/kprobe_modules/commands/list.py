# SPDX-License-Identifier: Apache-2.0
"""
``kprobe-modules list``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from kprobe_modules import config
from kprobe_modules.commands import options
from kprobe_modules.doctor import Host
from kprobe_modules.doctor.modules import Surroundings, doubt
from kprobe_modules.errors import KprobeModulesError
from kprobe_modules.features import Features
from kprobe_modules.libbpf import find
from kprobe_modules.registry import Registry
from kprobe_modules.sinks.values import readable

if TYPE_CHECKING:
    import argparse

    from kprobe_modules.doctor.modules import Prospect
    from kprobe_modules.hooks import Choice

__all__ = ["run"]


def run(parsed: argparse.Namespace) -> int:
    """
    Print each module and, per hook, what would be live on this kernel.

    Without privileges some alternatives cannot be tried; those are marked.
    """
    chosen = options.load(parsed)
    registry = Registry()
    host = Host()
    features = Features(find(), proc=host.proc, sys=host.sys)
    names = config.select(chosen, registry.names())
    surroundings = Surroundings(registry, features, host, chosen).beside(names)
    for name in names:
        entry = _entry(name, surroundings)
        print(json.dumps(entry) if parsed.json else _text(entry))
    return 0


def _entry(name: str, surroundings: Surroundings) -> dict[str, Any]:
    registry = surroundings.registry
    where = registry.registration(name)
    entry: dict[str, Any] = {
        "module": name,
        "distribution": where.distribution,
        "distribution_version": where.version,
    }
    try:
        manifest = registry.load(name)
        entry |= {"version": manifest.version, "summary": manifest.summary}
        found = surroundings.prospect(name)
    except KprobeModulesError as error:
        return entry | {"error": str(error)}
    return entry | {
        "hooks": [_hook(choice, found, surroundings.features) for choice in found.choices],
        "exports": list(manifest.exports),
        "imports": dict(manifest.imports),
    }


def _hook(choice: Choice, found: Prospect, features: Features) -> dict[str, Any]:
    alternative = choice.alternative
    entry: dict[str, Any] = {
        "hook": choice.hook.name,
        "tag": choice.hook.tag,
        "notices": choice.hook.notices,
        "required": choice.hook.required,
        "live": alternative.name if alternative else None,
        "attach_point": choice.attach_point or None,
        "caller": choice.caller or None,
        "doubt": doubt(choice, found.spec, features) or None,
        "fields_missing": list(choice.fields_missing),
        "rejected": dict(choice.rejected),
    }
    return entry | ({"waiting_for": choice.hook.awaits} if choice.waiting else {})


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
        if hook["live"] is None:
            lines += [f"{'':27}{name}: {reason}" for name, reason in hook["rejected"].items()]
    lines += [f"  exports   {name}" for name in entry.get("exports", ())]
    imports = entry.get("imports", {})
    lines += [f"  imports   {name} of {module}" for name, module in imports.items()]
    return "\n".join(map(readable, lines))


def _live(hook: dict[str, Any]) -> str:
    if hook["live"] is not None:
        uncertain = f", to be tried: {hook['doubt']}" if hook["doubt"] else ""
        called = f" called by {hook['caller']}" if hook["caller"] else ""
        return f"{hook['live']} ({hook['attach_point']}{called}){uncertain}"
    if "waiting_for" in hook:
        return f"waits for kernel module {hook['waiting_for']}"
    return "nothing works on this kernel" + (", and it is required" if hook["required"] else "")
