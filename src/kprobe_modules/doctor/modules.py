# SPDX-License-Identifier: Apache-2.0
"""
Checks of libbpf, of each registered module, and of each hook it needs here.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

import attrs

from kprobe_modules.doctor.findings import fail, ok, skip, warn
from kprobe_modules.errors import KprobeModulesError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from kprobe_modules.config import Options
    from kprobe_modules.doctor.findings import Finding
    from kprobe_modules.doctor.host import Host
    from kprobe_modules.features import Features
    from kprobe_modules.hooks import Choice
    from kprobe_modules.manifest import Manifest
    from kprobe_modules.registry import Registry
    from kprobe_modules.spec import ObjectSpec

__all__ = [
    "Examined",
    "Prospect",
    "Surroundings",
    "check_compiled",
    "check_libbpf",
    "doubt",
    "examine_module",
]


@attrs.frozen
class Examined:
    """
    What there is to say about a module, and the kinds of program it would attach.
    """

    name: str
    kinds: frozenset[str] = frozenset()
    findings: tuple[Finding, ...] = ()


def check_libbpf() -> Iterator[Finding]:
    """
    Every libbpf there is, and the verdict on it.
    """
    from kprobe_modules.libbpf import candidates

    taken = False
    found = list(candidates())
    for index, candidate in enumerate(found):
        name = "libbpf" if index == 0 else f"libbpf.{index + 1}"
        if candidate.refusal is not None:
            yield skip(name, str(candidate))
        else:
            yield ok(name, str(candidate) if taken else f"{candidate}, in use")
            taken = True
    if not taken:
        yield fail(
            "libbpf.any",
            f"none of {len(found)} can be used",
            "apt install libbpf1, or pip install 'kprobe_modules[pylibbpf]'",
        )


_COMPILED = {
    "rings.native": ("kprobe_modules.rings._drain", "rings are drained an order slower"),
    "rows.native": ("kprobe_modules.rows._rows", "records are made in Python"),
    "kernelbtf.native": ("kprobe_modules.kernelbtf._index", "attaching takes longer"),
}
"""What is compiled, and what it means to do without."""


def check_compiled() -> Iterator[Finding]:
    """
    Whether the compiled parts are installed and in use.
    """
    for label, (module, without) in _COMPILED.items():
        if os.environ.get("KPROBE_MODULES_PURE", "") not in {"", "0"}:
            yield skip(label, f"not used, as KPROBE_MODULES_PURE is set: {without}")
            continue
        try:
            import_module(module)
        except ImportError as error:
            remedy = "install a C compiler and reinstall, or use a wheel"
            yield warn(label, f"absent ({error}): {without}", remedy)
        else:
            yield ok(label, "compiled")


@attrs.frozen
class Prospect:
    """
    A module, and what would be live of it on this kernel.
    """

    manifest: Manifest
    spec: ObjectSpec
    choices: tuple[Choice, ...]


@attrs.frozen
class Surroundings:
    """
    What hooks are chosen for: a kernel, a host, a configuration, and other modules.
    """

    registry: Registry
    features: Features
    host: Host
    options: Options
    called: Mapping[str, str] = attrs.field(factory=dict)
    """Slots that other modules would call, each with the module."""

    def beside(self, names: Iterable[str]) -> Surroundings:
        """
        Return the same, as it would be with modules of these names attached.
        """
        from kprobe_modules import hooks

        choosers = {}
        for name in names:
            # Whoever is broken calls nothing; it is told of that module, in its place.
            with suppress(KprobeModulesError):
                manifest = self.registry.load(name)
                if any(hook.slot or hook.calls for hook in manifest.hooks):
                    choosers[name] = partial(self._choices, manifest, self._spec(manifest))
                    choosers[name]({})
        return attrs.evolve(self, called=hooks.called_slots(hooks.settle(choosers)))

    def prospect(self, name: str) -> Prospect:
        """
        Read a module and choose its hooks, loading nothing into the kernel.

        Raises:
            KprobeModulesError: the module, its object or a choice of hook is wrong.
        """
        manifest = self.registry.load(name)
        spec = self._spec(manifest)
        return Prospect(manifest, spec, self._choices(manifest, spec, self.called))

    def _spec(self, manifest: Manifest) -> ObjectSpec:
        from kprobe_modules import hooks, objectfile
        from kprobe_modules.architecture import machine_arch

        spec = objectfile.read(manifest.object_bytes(machine_arch()), manifest.name)
        hooks.check_hooks(manifest, spec)
        return spec

    def _choices(
        self, manifest: Manifest, spec: ObjectSpec, called: Mapping[str, str]
    ) -> tuple[Choice, ...]:
        from kprobe_modules import hooks

        prefix = f"{manifest.name}."
        chosen = {
            key.removeprefix(prefix): program
            for key, program in self.options.hooks.items()
            if key.startswith(prefix)
        }
        return hooks.choose(
            manifest,
            spec,
            self.features,
            chosen=chosen,
            called=called,
            kernel_module_loaded=self.host.has_kernel_module,
        )


def doubt(choice: Choice, spec: ObjectSpec, features: Features) -> str:
    """
    Say why it cannot be told that a chosen alternative works; empty when it can.
    """
    from kprobe_modules.features import Support

    for name in choice.alternative.programs if choice.alternative else ():
        program = spec.program(name)
        answer = features.program(program.kind, program.target)
        if answer.support is Support.UNKNOWN:
            return answer.reason
    return ""


def examine_module(name: str, surroundings: Surroundings) -> Examined:
    """
    Report on a module and on each of its hooks.
    """
    label = f"module.{name}"
    registry, features, host = surroundings.registry, surroundings.features, surroundings.host
    try:
        found = surroundings.prospect(name)
    except KprobeModulesError as error:
        remedy = f"reinstall {_distribution(registry, name)}, or --disable {name}"
        return Examined(name, findings=(fail(label, str(error), remedy),))
    kinds = frozenset(
        found.spec.program(program).kind
        for choice in found.choices
        if choice.alternative is not None
        for program in choice.alternative.programs
    )
    findings = [ok(label, f"{found.manifest.version} of {_distribution(registry, name)}")]
    findings += [_hook(found, choice, features, host) for choice in found.choices]
    findings += _imports(found, registry)
    return Examined(name, kinds, tuple(findings))


def _imports(found: Prospect, registry: Registry) -> Iterator[Finding]:
    """
    Say whose maps a module imports, and whether it can.
    """
    from kprobe_modules.sharing import SharedMaps

    name = found.manifest.name
    problems = SharedMaps(registry.find).differences(found.manifest, found.spec)
    if problems:
        remedy = f"reinstall {_distribution(registry, name)}"
        yield fail(f"maps.{name}", "; ".join(problems), remedy)
        return
    for imported, exporter in found.manifest.imports.items():
        label = f"map.{name}.{imported}"
        if registry.find(exporter) is None:
            yield warn(label, f"empty: module {exporter}, which exports it, is not installed")
        else:
            yield ok(label, f"of module {exporter}")
    for exported in found.manifest.exports:
        yield ok(f"map.{name}.{exported}", "exported")


def _distribution(registry: Registry, name: str) -> str:
    try:
        return registry.registration(name).distribution
    except KprobeModulesError:
        return "its distribution"


def _hook(found: Prospect, choice: Choice, features: Features, host: Host) -> Finding:
    """
    Say which alternative of a hook would be live here.
    """
    label = f"hook.{found.manifest.name}.{choice.hook.name}"
    missing = f"cannot fill {', '.join(choice.fields_missing)}" if choice.fields_missing else ""
    if choice.alternative is None:
        return _absent(found, choice, label, missing, host)
    live = f"{choice.alternative.name} ({choice.where})"
    uncertain = doubt(choice, found.spec, features)
    if uncertain:
        return skip(label, _join(f"{live} would be tried: {uncertain}", missing))
    text = _join(live, missing, choice.alternative.note)
    return warn(label, text) if missing else ok(label, text)


def _absent(found: Prospect, choice: Choice, label: str, missing: str, host: Host) -> Finding:
    name = found.manifest.name
    rejected = [
        f"{program}: {reason}{_variants(found.spec, program, host)}"
        for program, reason in choice.rejected
    ]
    text = _join("no alternative works here", missing, *rejected)
    if choice.waiting:
        return warn(label, text, f"modprobe {choice.hook.awaits}; the hook attaches by itself then")
    if choice.hook.required:
        return fail(label, text, f"boot a kernel that has one of them, or --disable {name}")
    return warn(label, text)


def _join(*parts: str) -> str:
    return "; ".join(filter(None, parts))


def _variants(spec: ObjectSpec, program: str, host: Host) -> str:
    """
    Explain a missing function that the compiler cut up or renamed.
    """
    targets = {item.name: item.target for item in spec.programs if item.kind in _BY_FUNCTION}
    target = targets.get(program)
    if target is None or not host.functions or target in host.functions:
        return ""
    variants = host.variants(target)
    return f" (only {', '.join(variants[:3])})" if variants else ""


_BY_FUNCTION = ("kprobe", "kretprobe", "fentry", "fexit")
