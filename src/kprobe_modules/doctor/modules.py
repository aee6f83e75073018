# SPDX-License-Identifier: Apache-2.0
"""
Checks of libbpf, of each registered module, and of each hook it needs here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from kprobe_modules.doctor.findings import fail, ok, skip, warn
from kprobe_modules.errors import KprobeModulesError, VerifierError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kprobe_modules.config import Options
    from kprobe_modules.doctor.findings import Finding
    from kprobe_modules.doctor.host import Host
    from kprobe_modules.features import Features
    from kprobe_modules.hooks import Choice
    from kprobe_modules.manifest import Manifest
    from kprobe_modules.objectfile import ObjectSpec
    from kprobe_modules.registry import Registry

__all__ = ["Examined", "attach_each", "check_libbpf", "check_reader", "examine_module"]


@attrs.frozen
class Examined:
    """
    A module as it would come up on this kernel; without choices if it would not.
    """

    name: str
    choices: tuple[Choice, ...] = ()
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


def check_reader() -> Finding:
    """
    Whether rings are drained by native code.
    """
    try:
        from kprobe_modules.rings import _drain  # noqa: F401 - may be absent
    except ImportError as error:
        return warn(
            "rings.native",
            f"absent ({error}): the pure-Python reader serves, an order slower",
            "install a C compiler and reinstall, or use a wheel",
        )
    return ok("rings.native", "compiled")


def examine_module(
    name: str, registry: Registry, features: Features, host: Host, options: Options
) -> Examined:
    """
    Load a module's manifest and object, and choose its hooks, without the kernel's help.
    """
    from kprobe_modules import hooks, objectfile
    from kprobe_modules.maps import machine_arch

    label = f"module.{name}"
    chosen = {
        key.partition(".")[2]: program
        for key, program in options.hooks.items()
        if key.partition(".")[0] == name
    }
    try:
        manifest = registry.load(name)
        spec = objectfile.read(manifest.object_bytes(machine_arch()), name)
        hooks.check_hooks(manifest, spec)
        choices = hooks.choose(manifest, spec, features, chosen=chosen)
    except KprobeModulesError as error:
        remedy = f"reinstall {_distribution(registry, name)}, or --disable {name}"
        return Examined(name, findings=(fail(label, str(error), remedy),))
    kinds = frozenset(
        spec.program(program).kind
        for choice in choices
        if choice.alternative is not None
        for program in (choice.alternative.program, *choice.alternative.companions)
    )
    findings = [ok(label, f"{manifest.version} of {_distribution(registry, name)}")]
    findings += [_hook(manifest, spec, choice, features, host) for choice in choices]
    return Examined(name, choices, kinds, tuple(findings))


def _distribution(registry: Registry, name: str) -> str:
    try:
        return registry.registration(name).distribution
    except KprobeModulesError:
        return "its distribution"


def _hook(
    manifest: Manifest, spec: ObjectSpec, choice: Choice, features: Features, host: Host
) -> Finding:
    """
    Say which alternative of a hook would be live here.
    """
    from kprobe_modules.features import Support

    label = f"hook.{manifest.name}.{choice.hook.name}"
    rejected = "; ".join(
        f"{program}: {reason}{_variants(spec, program, host)}"
        for program, reason in choice.rejected
    )
    missing = f"cannot fill {', '.join(choice.fields_missing)}" if choice.fields_missing else ""
    if choice.alternative is None:
        found = "; ".join(filter(None, ("no alternative works here", missing, rejected)))
        if choice.waiting:
            remedy = f"modprobe {choice.hook.awaits}; it attaches when that is loaded"
            return warn(label, found, remedy)
        if choice.hook.required:
            return fail(label, found, f"boot another kernel, or --disable {manifest.name}")
        return warn(label, found)
    live = f"{choice.alternative.program} ({choice.attach_point})"
    program = spec.program(choice.alternative.program)
    support = features.program(program.kind, program.target)
    if support.support is Support.UNKNOWN:
        found = "; ".join(filter(None, (f"{live} would be tried: {support.reason}", missing)))
        return skip(label, found)
    found = "; ".join(filter(None, (live, missing, choice.alternative.note)))
    return warn(label, found) if missing else ok(label, found)


def _variants(spec: ObjectSpec, program: str, host: Host) -> str:
    """
    Explain a missing function that the compiler cut up or renamed.
    """
    item = spec.program(program)
    if item.kind not in ("kprobe", "kretprobe", "fentry", "fexit"):
        return ""
    if not host.functions or item.target in host.functions:
        return ""
    variants = host.variants(item.target)
    return f" (only {', '.join(variants[:3])})" if variants else ""


def attach_each(names: Iterable[str], registry: Registry, options: Options) -> Iterator[Finding]:
    """
    Really attach each module on its own, and detach it.
    """
    from kprobe_modules.commands.watching import open_collector

    for name in names:
        label = f"attach.{name}"
        try:
            with open_collector(options, registry) as collector:
                collector.attach(name, **options.tunables.get(name, {}))
                live = ", ".join(sorted(collector.status(name).live.values()))
                collector.detach(name)
        except VerifierError as error:
            tail = " | ".join(error.tail().splitlines())
            yield fail(
                label, f"{error.program} was refused by the verifier: {tail}", "report this log"
            )
        except KprobeModulesError as error:
            yield fail(label, str(error), "see the findings above")
        else:
            yield ok(label, f"attached {live}; detached")
