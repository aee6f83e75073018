# SPDX-License-Identifier: Apache-2.0
"""
Choosing, for each thing a module must notice, the first way this kernel has.

Hooks are data: a manifest lists alternatives in order of preference, the object
says where each program attaches, and `features` probes the running kernel by
shape.  Nothing is loaded here, so that listings can tell what would be live.

An alternative that serves a tail-call slot works while another one that is live calls
the slot, so `settle` chooses for all modules at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from kprobe_modules.errors import AttachError, ConfigError, ManifestError
from kprobe_modules.features import Support

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from kprobe_modules.features import Features
    from kprobe_modules.manifest import Alternative, Hook, Manifest
    from kprobe_modules.spec import ObjectSpec, ProgramSpec

__all__ = ["Choice", "called_slots", "check_hooks", "choose", "require", "settle"]

SLOT_KINDS = ("kprobe", "kretprobe")
"""Kinds of program that serve slots and call them: one PROG_ARRAY holds one type, and
refuses BTF-typed programs with different targets (kernel/bpf/core.c)."""

ROUNDS = 16
"""Of choosing for all modules: longer chains of slots are not followed."""


@attrs.frozen(eq=False, repr=False)
class Choice:
    """
    What was chosen for one hook, and why not something better.
    """

    hook: Hook
    alternative: Alternative | None
    """The one that is, or would be, live; None when there is none."""

    attach_point: str = ""
    """Kind and target of the chosen program, such as ``fentry/cgroup_exit``, or the slot
    that it serves, such as ``slot/name``."""

    caller: str = ""
    """For an alternative that serves a slot: the module that calls it."""

    rejected: tuple[tuple[str, str], ...] = ()
    """Preferred alternatives that do not work here, each with its reason."""

    waiting: bool = False
    """Whether the hook waits for a kernel module to be loaded."""

    @property
    def where(self) -> str:
        """
        The attach point, and of a slot who calls it, for people.
        """
        return f"{self.attach_point} called by {self.caller}" if self.caller else self.attach_point

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
    problems = _slot_problems(manifest, spec)
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


def _slot_problems(manifest: Manifest, spec: ObjectSpec) -> list[str]:
    """
    Say what keeps alternatives from serving or calling slots.
    """
    kinds = {program.name: program.kind for program in spec.programs}
    constants = {tunable.name for tunable in spec.tunables}
    problems = []
    for hook in manifest.hooks:
        for item in hook.alternatives:
            kind = kinds.get(item.program, SLOT_KINDS[0])
            if (item.slot or item.calls) and kind not in SLOT_KINDS:
                problems.append(
                    f"hook {hook.name}: program {item.program} is of kind {kind}; "
                    f"slots are for {' and '.join(SLOT_KINDS)}"
                )
            problems += [
                f"hook {hook.name}: program {item.program} calls slot {slot}, "
                f"the object has no constant km_slot_{slot}"
                for slot in item.calls
                if f"km_slot_{slot}" not in constants
            ]
    return problems


def _matches(choice: str, alternative: Alternative, spec: ObjectSpec) -> bool:
    if alternative.source:
        return choice == alternative.source
    if alternative.slot:
        return choice in (alternative.program, f"slot/{alternative.slot}", "slot")
    program = spec.program(alternative.program)
    return choice in (alternative.program, _attach_point(program), program.kind)


def _describe(alternative: Alternative, spec: ObjectSpec) -> str:
    """
    Return where an alternative attaches: ``fentry/cgroup_exit``, ``source/netlink``.
    """
    if alternative.source:
        return f"source/{alternative.source}"
    if alternative.slot:
        return f"slot/{alternative.slot}"
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
    called: Mapping[str, str] | None = None,
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
        called: slots that are called, each with the module that does.
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
            called or {},
            kernel_module_loaded,
        )
        for hook in manifest.hooks
    )


def _refusal(
    alternative: Alternative,
    spec: ObjectSpec,
    features: Features,
    refused: Mapping[str, str],
    called: Mapping[str, str],
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
    if alternative.slot and alternative.slot not in called:
        return f"no module that is attached calls slot {alternative.slot}"
    return None


def _choose_one(
    hook: Hook,
    alternatives: tuple[Alternative, ...],
    spec: ObjectSpec,
    features: Features,
    refused: Mapping[str, str],
    called: Mapping[str, str],
    kernel_module_loaded: Callable[[str], bool],
) -> Choice:
    rejected: list[tuple[str, str]] = []
    waiting = hook.awaits is not None and not kernel_module_loaded(hook.awaits)
    for alternative in alternatives:
        if waiting and alternative.source:
            reason: str | None = f"the kernel module {hook.awaits} is not loaded"
        else:
            reason = _refusal(alternative, spec, features, refused, called)
        if reason is None:
            caller = called.get(alternative.slot, "")
            return Choice(hook, alternative, _describe(alternative, spec), caller, tuple(rejected))
        rejected.append((alternative.name, reason))
    return Choice(hook, None, rejected=tuple(rejected), waiting=waiting)


def called_slots(choices: Mapping[str, Iterable[Choice]]) -> dict[str, str]:
    """
    Return the slots that the chosen alternatives of modules call, each with the module.
    """
    called: dict[str, str] = {}
    for module, chosen in choices.items():
        for choice in chosen:
            for slot in choice.alternative.calls if choice.alternative else ():
                called.setdefault(slot, module)
    return called


def settle(
    choosers: Mapping[str, Callable[[Mapping[str, str]], tuple[Choice, ...]]],
) -> dict[str, tuple[Choice, ...]]:
    """
    Choose for several modules, so that whoever serves a slot is chosen while it is called.

    Args:
        choosers: by module, what chooses for it, given the slots that are called.

    Returns:
        What was chosen for each.  Where that never comes to rest, as when two hooks take
        each other's slot away, it is as if nobody called any: what comes twice then is
        dropped by who handles it.
    """
    called: dict[str, str] = {}
    for _ in range(ROUNDS):
        choices = {module: choose_for(called) for module, choose_for in choosers.items()}
        found = called_slots(choices)
        if found == called:
            return choices
        called = found
    return {module: choose_for({}) for module, choose_for in choosers.items()}


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
