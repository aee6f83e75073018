# SPDX-License-Identifier: Apache-2.0
"""
Choosing, for each thing a module must notice, the first way this kernel has.

Hooks are data: a manifest lists alternatives in order of preference, the object
says where each program attaches, and `features` probes the running kernel by
shape.  Nothing is loaded here, so that listings can tell what would be live.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from kprobe_modules.errors import AttachError, ConfigError, ManifestError
from kprobe_modules.features import Support

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kprobe_modules.features import Features
    from kprobe_modules.manifest import Alternative, Hook, Manifest
    from kprobe_modules.spec import ObjectSpec, ProgramSpec

__all__ = ["Choice", "check_hooks", "choose", "require"]


@attrs.frozen(eq=False, repr=False)
class Choice:
    """
    What was chosen for one hook, and why not something better.
    """

    hook: Hook
    alternative: Alternative | None
    """The one that is, or would be, live; None when there is none."""

    attach_point: str = ""
    """Kind and target of the chosen program, such as ``fentry/cgroup_exit``."""

    rejected: tuple[tuple[str, str], ...] = ()
    """Preferred alternatives that do not work here, each with its reason."""

    waiting: bool = False
    """Whether the hook waits for a kernel module to be loaded."""

    @property
    def fields_missing(self) -> tuple[str, ...]:
        """
        Record fields that cannot be filled on this kernel, as ``record.field``.
        """
        if self.alternative is None:
            return self.hook.fields_missing
        return self.alternative.fields_missing


def _attach_point(program: ProgramSpec) -> str:
    return f"{program.kind}/{program.target}" if program.target else program.kind


def check_hooks(manifest: Manifest, spec: ObjectSpec) -> None:
    """
    Compare what the manifest says of hooks with the tags in the object.

    Raises:
        ManifestError: naming every disagreement.
    """
    programs = {program.name: program for program in spec.programs}
    problems = []
    unattached = {*manifest.tail_calls.values(), *manifest.own_programs}
    listed = set(unattached)
    for hook in manifest.hooks:
        for alternative in hook.alternatives:
            for name in alternative.programs:
                listed.add(name)
                program = programs.get(name)
                if program is None:
                    problems.append(f"hook {hook.name}: the object has no program {name}")
                elif (program.hook, program.tag) != (hook.name, hook.tag):
                    problems.append(
                        f"hook {hook.name}: program {name} is tagged {program.hook}/{program.tag} "
                        f"in the object, expected {hook.name}/{hook.tag}"
                    )
    problems += [
        f"program {name}: the manifest names it, the object has none"
        for name in sorted(unattached - programs.keys())
    ]
    problems += [
        f"program {name}: no hook of the manifest lists it"
        for name in sorted(programs.keys() - listed)
    ]
    if problems:
        msg = f"{manifest.name}: " + "; ".join(problems)
        raise ManifestError(msg)


def _matches(choice: str, alternative: Alternative, spec: ObjectSpec) -> bool:
    if alternative.source:
        return choice == alternative.source
    program = spec.program(alternative.program)
    return choice in (alternative.program, _attach_point(program), program.kind)


def _describe(alternative: Alternative, spec: ObjectSpec) -> str:
    """
    Return where an alternative attaches: ``fentry/cgroup_exit``, ``source/netlink``.
    """
    if alternative.source:
        return f"source/{alternative.source}"
    return _attach_point(spec.program(alternative.program))


def _restrict(
    manifest: Manifest, spec: ObjectSpec, hook: Hook, choice: str | None
) -> tuple[Alternative, ...]:
    """
    Return the alternatives that the user's choice leaves: all, without one.
    """
    if choice is None:
        return hook.alternatives
    left = tuple(item for item in hook.alternatives if _matches(choice, item, spec))
    if not left:
        offered = ", ".join(f"{item.name} ({_describe(item, spec)})" for item in hook.alternatives)
        where = f"hook {manifest.name}.{hook.name}"
        msg = f"{where}: no alternative is called {choice!r}; there are {offered}"
        raise ConfigError(msg)
    return left


def choose(
    manifest: Manifest,
    spec: ObjectSpec,
    features: Features,
    *,
    chosen: Mapping[str, str] | None = None,
    refused: Mapping[str, str] | None = None,
    kernel_module_loaded: Callable[[str], bool] = lambda _name: True,
) -> tuple[Choice, ...]:
    """
    Choose an alternative for each hook of a module.

    Args:
        manifest: the module.
        spec: its object.
        features: probes of the running kernel.
        chosen: the user's own choices, hook name to program name, kind, or
            ``kind/target``.
        refused: programs that were tried and failed, with the reason.
        kernel_module_loaded: tells whether a kernel module is loaded.

    Returns:
        One choice per hook, in the manifest's order.

    Raises:
        ConfigError: when a choice names what does not exist.
    """
    chosen, refused = dict(chosen or {}), refused or {}
    for name in chosen:
        if name not in {hook.name for hook in manifest.hooks}:
            known = ", ".join(hook.name for hook in manifest.hooks)
            msg = f"hook {manifest.name}.{name}: there is no such hook; there are {known}"
            raise ConfigError(msg)
    return tuple(
        _choose_one(
            hook,
            _restrict(manifest, spec, hook, chosen.get(hook.name)),
            spec,
            features,
            refused,
            kernel_module_loaded,
        )
        for hook in manifest.hooks
    )


def _refusal(
    alternative: Alternative, spec: ObjectSpec, features: Features, refused: Mapping[str, str]
) -> str | None:
    """
    Say why an alternative does not work here, or None when it should.
    """
    if alternative.name in refused:
        return refused[alternative.name]
    for name in alternative.programs:
        if name in refused:
            return refused[name]
        program = spec.program(name)
        support = features.program(program.kind, program.target)
        # Unknown is worth a try: the kernel itself has the last word.
        if support.support is Support.NO:
            return support.reason
    return None


def _choose_one(
    hook: Hook,
    alternatives: tuple[Alternative, ...],
    spec: ObjectSpec,
    features: Features,
    refused: Mapping[str, str],
    kernel_module_loaded: Callable[[str], bool],
) -> Choice:
    rejected: list[tuple[str, str]] = []
    for alternative in alternatives:
        reason = _refusal(alternative, spec, features, refused)
        if reason is None:
            return Choice(hook, alternative, _describe(alternative, spec), tuple(rejected))
        rejected.append((alternative.name, reason))
    waiting = hook.awaits is not None and not kernel_module_loaded(hook.awaits)
    return Choice(hook, None, rejected=tuple(rejected), waiting=waiting)


def require(module: str, choices: tuple[Choice, ...]) -> None:
    """
    Refuse a module that cannot notice what it must.

    Raises:
        AttachError: for the first required hook without an alternative.
    """
    for choice in choices:
        if choice.hook.required and choice.alternative is None and not choice.waiting:
            what = f"module {module}, hook {choice.hook.name}"
            raise AttachError(what, choice.rejected)
