# SPDX-License-Identifier: Apache-2.0
"""
Six steps from an object file to a live module.

`check`, `inject`, `set_constants`, `choose_hooks`, `load`, `attach`: each one is a
function of that name, and `bring_up` does them in order.  Where the kernel refuses
an alternative that the probes let pass, it is struck out and the steps are done
again with the next one; an object is never half live.
"""

from __future__ import annotations

import re
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Protocol

import attrs

from kprobe_modules import hooks
from kprobe_modules.architecture import machine_arch
from kprobe_modules.errors import (
    AttachError,
    ConfigError,
    IncompatibleMapError,
    LoadError,
    ModuleStateError,
    ObjectError,
    PrivilegeError,
)
from kprobe_modules.libbpf import BpfObject
from kprobe_modules.missed import MissedRuns
from kprobe_modules.spec import check_arch
from kprobe_modules.tunable import pack

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable, Mapping

    from kprobe_modules.features import Features
    from kprobe_modules.hooks import Choice
    from kprobe_modules.libbpf import BpfProgram, Library, Link
    from kprobe_modules.manifest import Alternative, Hook, Manifest
    from kprobe_modules.maps import CommonMaps
    from kprobe_modules.sharing import SharedMaps
    from kprobe_modules.spec import ObjectSpec, ProgramSpec, Tunable

__all__ = [
    "Closeable",
    "LoadedModule",
    "Plan",
    "attach_program",
    "bring_up",
    "check_tunables",
    "kernel_module_loaded",
]

ATTACH_ORDER = ("END", "START", "TELEMETRY")
"""An object that ends while we attach must be seen ending; EXISTING comes last, by a scan."""


MADE_FOR = {"km_stacks": "stack_traces"}
"""Maps of the framework's headers, and the tunable without which none of their entries
is ever used: with 0 the verifier removes the code that would, and no memory is taken."""


def kernel_module_loaded(name: str, sys: Path = Path("/sys")) -> bool:
    """
    Tell whether a kernel module is loaded or built in.
    """
    return (sys / "module" / name).exists()


class Closeable(Protocol):
    """
    A link, or something else that ends when it is closed.
    """

    def close(self) -> None:
        """
        End it.  Safe to call twice.
        """


@attrs.frozen(eq=False, repr=False)
class Plan:
    """
    Everything that is decided before the kernel is asked.
    """

    manifest: Manifest
    spec: ObjectSpec
    data: bytes
    common: CommonMaps
    shared: SharedMaps
    library: Library
    features: Features
    constants: Mapping[str, int]
    """Values of the framework's constants and the module's tunables."""
    called: Mapping[str, str] = attrs.field(factory=dict)
    """Slots that modules which are attached already call, each with the module."""
    chosen: Mapping[str, str] = attrs.field(factory=dict)
    """The user's choices of alternatives, by hook name."""
    open_source: Callable[[str], Closeable] | None = None
    """Opens what a handler reads itself, for alternatives that are no program."""
    while_loading: Callable[[], object] = lambda: None
    """Called in a thread while the kernel loads: to import what is needed next.  Whatever
    it raises will show then."""
    before_attach: Callable[[], object] = lambda: None
    """Called when the programs are loaded, before the first can write a message; more
    than once if an alternative is struck out afterwards."""


def check(plan: Plan) -> tuple[str, ...]:
    """
    Step 1: compare the object with the machine, its manifest, and the maps of others.

    Returns:
        The common maps that the object wants.

    Raises:
        ObjectError: when it was built for another architecture.
        ManifestError: when manifest and object disagree about hooks.
        IncompatibleMapError: when a common map is declared otherwise than ours, or an
            imported one otherwise than by its exporter.
    """
    check_arch(plan.spec, machine_arch())
    hooks.check_hooks(plan.manifest, plan.spec)
    problems = plan.common.differences(plan.spec, plan.manifest.common_maps)
    problems += plan.shared.differences(plan.manifest, plan.spec)
    if problems:
        raise IncompatibleMapError(plan.manifest.name, problems)
    return plan.common.declared(plan.spec)


def inject(plan: Plan, target: BpfObject, names: Iterable[str]) -> None:
    """
    Step 2: put the common maps, and those that others share, in the place of the object's own.
    """
    for name in names:
        target.maps[name].reuse_fd(plan.common.fd(name))
    for name, fd in plan.shared.fds(plan.manifest, plan.spec).items():
        target.maps[name].reuse_fd(fd)


def check_tunables(module: str, spec: ObjectSpec, tunables: Mapping[str, int]) -> None:
    """
    Refuse what a user sets, before anything is done with it.

    Raises:
        ConfigError: when a value does not fit, nothing of that name exists, or it is
            the framework's.
    """
    known = {
        item.name: item
        for item in spec.tunables
        if not item.name.startswith("km_") and not isinstance(item.default, bytes)
    }
    unknown = sorted(tunables.keys() - known.keys())
    if unknown:
        offered = ", ".join(sorted(known)) or "none"
        reserved = [name for name in unknown if name.startswith("km_")]
        why = f" ({', '.join(reserved)}: the framework's)" if reserved else ""
        msg = f"{module}: no tunable named {', '.join(unknown)}{why}; there are: {offered}"
        raise ConfigError(msg)
    for name, value in tunables.items():
        _encode(known[name], value, module)


def _encode(tunable: Tunable, value: int, module: str) -> bytes:
    try:
        return pack(tunable, value)
    except ConfigError as error:
        msg = f"{module}: {error}"
        raise ConfigError(msg) from error


def set_constants(plan: Plan, target: BpfObject) -> None:
    """
    Step 3: write constants and tunables into the object's read-only data.

    Raises:
        ConfigError: when a value does not fit.
        ObjectError: when the object has no such data.
    """
    known = {tunable.name: tunable for tunable in plan.spec.tunables}
    rodata = next((item for name, item in target.maps.items() if name.endswith(".rodata")), None)
    if rodata is None:
        if plan.constants:
            msg = f"{plan.manifest.name}: the object has no .rodata for its constants"
            raise ObjectError(msg)
        return
    data = bytearray(rodata.initial_value())
    for name, value in plan.constants.items():
        tunable = known[name]
        data[tunable.offset : tunable.offset + tunable.size] = _encode(
            tunable, value, plan.manifest.name
        )
    rodata.set_initial_value(bytes(data))


def leave_out(plan: Plan, target: BpfObject) -> None:
    """
    Do not create the maps for which a tunable finds no use.
    """
    tunables = {tunable.name: tunable.default for tunable in plan.spec.tunables}
    for name, tunable in MADE_FOR.items():
        if name in target.maps and not {**tunables, **plan.constants}.get(tunable, 1):
            target.maps[name].set_autocreate(False)


def choose_hooks(plan: Plan, refused: Mapping[str, str]) -> tuple[Choice, ...]:
    """
    Step 4: choose what this kernel has, and refuse the module if that is too little.

    Raises:
        AttachError: when a required hook has no alternative left.
    """
    name = plan.manifest.name
    choices = hooks.settle({name: partial(_choose, plan, plan.features, refused)})[name]
    hooks.require(name, choices)
    return choices


def _choose(
    plan: Plan, features: Features, refused: Mapping[str, str], called: Mapping[str, str]
) -> tuple[Choice, ...]:
    """
    Choose, given the slots that are called besides those of the plan.
    """
    return hooks.choose(
        plan.manifest,
        plan.spec,
        features,
        chosen=plan.chosen,
        refused=refused,
        called={**called, **plan.called},
        kernel_module_loaded=kernel_module_loaded,
    )


def _wanted(plan: Plan, choices: Iterable[Choice], refused: Mapping[str, str]) -> set[str]:
    """
    Return the programs to load for hooks: also those for when callers of slots come or go.
    """
    wanted = _programs(choices)
    slots = {hook.slot: "" for hook in plan.manifest.hooks if hook.slot}
    if slots:
        uncalled = attrs.evolve(plan, called={})
        wanted |= _programs(_choose(uncalled, plan.features, refused, {}))
        wanted |= _programs(_choose(plan, plan.features, refused, slots))
    return wanted


def _programs(choices: Iterable[Choice]) -> set[str]:
    names: set[str] = set()
    for choice in choices:
        if choice.alternative is not None:
            names.update(choice.alternative.programs)
    return names


def load(plan: Plan, target: BpfObject, wanted: set[str]) -> None:
    """
    Step 5: load the wanted programs, and no other.

    Raises:
        VerifierError: when the verifier refuses one; it names the program.
        LoadError: when the kernel refuses the object.
    """
    for name, program in target.programs.items():
        program.set_autoload(name in wanted)
    Thread(target=_quietly, args=(plan.while_loading,), name="while loading", daemon=True).start()
    target.load()


def _quietly(work: Callable[[], object]) -> None:
    with suppress(Exception):
        work()


def attach_program(program: BpfProgram, spec: ProgramSpec, link_info: bytes = b"") -> Link:
    """
    Attach one program as its section says.

    Raises:
        AttachError: when the kernel refuses.
        ObjectError: when programs of that kind are not attached this way.
    """
    if spec.kind in ("kprobe", "kretprobe"):
        return program.attach_kprobe(spec.target, retprobe=spec.kind == "kretprobe")
    if spec.kind in ("fentry", "fexit", "tp_btf"):
        return program.attach_trace()
    if spec.kind == "raw_tp":
        return program.attach_raw_tracepoint(spec.target)
    if spec.kind == "tracepoint":
        category, _, name = spec.target.partition("/")
        return program.attach_tracepoint(category, name)
    if spec.kind == "iter":
        return program.attach_iter(link_info)
    what = f"program {spec.name}: section {spec.section!r}"
    msg = f"{what} is of no kind that can be attached to a hook"
    raise ObjectError(msg)


class LoadedModule:
    """
    A module's object in the kernel, with its links.

    Owns every descriptor of the module but those of the maps it has from others.
    """

    def __init__(
        self,
        plan: Plan,
        target: BpfObject,
        choices: tuple[Choice, ...],
        refused: Mapping[str, str],
    ) -> None:
        self.plan = plan
        self.choices = choices
        self.refused = dict(refused)
        """Programs that were tried and failed, with the reason."""
        self.served: set[str] = set()
        """Slots that programs of hooks serve, whether anybody calls them or not."""
        self._objects = [target]
        self._added: dict[str, BpfObject] = {}
        """Objects loaded later, of which just one hook is live: by its name."""
        self._links: dict[str, ExitStack] = {}
        self._missed = MissedRuns()

    def map_fd(self, name: str) -> int:
        """
        Return the descriptor of one of the module's maps; it stays the module's.

        Raises:
            ObjectError: when the object declares no map of that name.
        """
        try:
            return self._objects[0].maps[name].fd
        except KeyError:
            known = ", ".join(sorted(self._objects[0].maps))
            msg = f"{self.plan.manifest.name}: no map named {name!r}; there are {known}"
            raise ObjectError(msg) from None

    def own_maps(self) -> dict[str, int]:
        """
        Return the descriptors of the module's maps, by name: no common and no imported ones.
        """
        others = self.plan.common.names | self.plan.manifest.imports.keys()
        return {
            name: item.fd
            for name, item in self._objects[0].maps.items()
            if name not in others and item.autocreate
        }

    def loaded_programs(self) -> dict[str, int]:
        """
        Return the descriptors of the programs that were loaded, by name.
        """
        return {
            name: program.fd
            for item in self._objects
            for name, program in item.programs.items()
            if program.autoload
        }

    def missed_runs(self) -> Counter[str]:
        """
        Return how many runs of its programs the kernel left out, by program.
        """
        return self._missed.counts(self.loaded_programs(), self.plan.library)

    def program(self, name: str) -> BpfProgram:
        """
        Return a program that was loaded.
        """
        return self._owner(name).programs[name]

    def _owner(self, name: str) -> BpfObject:
        for item in reversed(self._objects):
            if name in item.programs and item.programs[name].autoload:
                return item
        return self._objects[0]

    def attach(self, alternative: Alternative) -> list[Closeable]:
        """
        Attach an alternative's programs, companions first; the caller owns the links.
        """
        links: list[Closeable] = []
        try:
            if alternative.source and self.plan.open_source is not None:
                links.append(self.plan.open_source(alternative.source))
            for name in alternative.programs:
                program, spec = self.program(name), self.plan.spec.program(name)
                link = attach_program(program, spec, alternative.link_info)
                links.append(link)
                self._missed.watch(name, link)
        except BaseException:
            for each in links:
                each.close()
            raise
        return links

    def serve(self, slot: str, name: str) -> None:
        """
        Let a program serve a slot until `unlink`.

        Raises:
            ModuleStateError: when another module serves it already.
            KernelError: when the program is not of the type that slots are for.
        """
        self.plan.common.fill_slot(slot, self.plan.manifest.name, self.program(name).fd)

    def serve_hook(self, hook: Hook) -> None:
        """
        Let a hook be served through its slot, if the program for it was loaded.

        Raises:
            _RefusedError: when it cannot.
        """
        loaded = self.loaded_programs()
        for item in hook.alternatives:
            if item.slot and item.program in loaded:
                try:
                    self.serve(item.slot, item.program)
                except (ModuleStateError, OSError) as error:
                    raise _RefusedError(item.program, str(error)) from error
                self.served.add(item.slot)

    def keep(self, hook: str, links: Iterable[Closeable]) -> None:
        """
        Own the links of a hook until `unlink`, or until another choice is adopted.
        """
        stack = self._links.setdefault(hook, ExitStack())
        for link in links:
            stack.callback(link.close)

    def choose(self, features: Features, called: Mapping[str, str]) -> tuple[Choice, ...]:
        """
        Choose again for the hooks that slots may serve; the choices for others stay.

        Args:
            features: of the running kernel.
            called: slots that are called, each with the module.
        """
        served = {slot: module for slot, module in called.items() if slot in self.served}
        plan = attrs.evolve(self.plan, called={})
        again = _choose(plan, features, self.refused, served)
        return tuple(
            new if new.hook.slot else old for new, old in zip(again, self.choices, strict=True)
        )

    def adopt(self, choice: Choice) -> ExitStack:
        """
        Make a choice live in the place of the one for the same hook.

        What is not loaded yet is loaded, on the maps of the object that is live: so
        does a hook come alive whose functions appeared later, with their kernel module.

        Returns:
            What closes the former links; until then the hook is live in both ways.

        Raises:
            LoadError, AttachError, OSError: when the kernel refuses; what was live
                stays live.
        """
        former = self._links.pop(choice.hook.name, ExitStack())
        try:
            self._bring(choice)
        except BaseException:
            self._links[choice.hook.name] = former
            raise
        self.settle(choice)
        return former

    def _bring(self, choice: Choice) -> None:
        """
        Load and attach what is not.
        """
        alternative = choice.alternative
        if alternative is None or alternative.slot:
            return
        if alternative.source:
            self._attach_hook(choice.hook, alternative)
            return
        if not set(alternative.programs) - self.loaded_programs().keys():
            # Before commit f3a95075549e (Linux 5.13) a program that has been detached
            # from a trampoline is spent: then another copy of it is loaded.
            with suppress(AttachError, OSError):
                self._attach_hook(choice.hook, alternative)
                return
        target = self._load_more(choice)
        try:
            self._attach_hook(choice.hook, alternative)
        except BaseException:
            self._unload(target)
            raise
        spent = self._added.get(choice.hook.name)
        if spent is not None:
            self._unload(spent)
        self._added[choice.hook.name] = target

    def _attach_hook(self, hook: Hook, alternative: Alternative) -> None:
        if hook.tag in ATTACH_ORDER:
            self.keep(hook.name, self.attach(alternative))

    def _load_more(self, choice: Choice) -> BpfObject:
        """
        Load the programs of a choice on the maps of the object that is live.
        """
        target = _open(self.plan)
        try:
            leave_out(self.plan, target)
            for name, item in target.maps.items():
                if not item.autocreate:
                    continue
                # Constants are frozen with the object; everything else is shared.
                if not name.endswith((".rodata", ".kconfig")):
                    item.reuse_fd(self._objects[0].maps[name].fd)
            set_constants(self.plan, target)
            load(self.plan, target, _programs([choice]))
        except BaseException:
            target.close()
            raise
        self._objects.append(target)
        return target

    def _unload(self, target: BpfObject) -> None:
        self._objects.remove(target)
        target.close()

    def settle(self, choice: Choice) -> None:
        """
        Put a choice in the place of an earlier one for the same hook.
        """
        self.choices = tuple(
            choice if item.hook.name == choice.hook.name else item for item in self.choices
        )

    def unlink(self) -> None:
        """
        Detach every program, empty the slots; programs that run now may still finish.
        """
        with ExitStack() as stack:
            stack.callback(self.plan.common.empty_slots, self.plan.manifest.name)
            for links in self._links.values():
                stack.callback(links.close)
            self._links.clear()

    def close(self) -> None:
        """
        Detach and free everything.  Safe to call twice.
        """
        with ExitStack() as stack:
            for item in self._objects:
                stack.callback(item.close)
            self.unlink()
        self.plan.shared.empty(self.plan.manifest.name)


def attach(module: LoadedModule) -> None:
    """
    Step 6: attach what was chosen: END first, then START, then TELEMETRY.

    Slots are filled when it is the turn of their hooks; EXISTING is attached by scans only.

    Raises:
        AttachError: naming the program, when the kernel refuses one.
        ModuleStateError: when another module serves a slot already.
    """
    for slot, name in module.plan.manifest.tail_calls.items():
        module.serve(slot, name)
    for tag in ATTACH_ORDER:
        for choice in module.choices:
            if choice.hook.tag != tag:
                continue
            module.serve_hook(choice.hook)
            if choice.alternative is None or choice.alternative.slot:
                continue
            try:
                module.keep(choice.hook.name, module.attach(choice.alternative))
            except (AttachError, OSError) as error:
                if isinstance(error, PrivilegeError):
                    raise
                raise _RefusedError(choice.alternative.name, str(error)) from error


class _RefusedError(Exception):
    """
    An alternative failed where the probes had let it pass.
    """

    def __init__(self, program: str, reason: str) -> None:
        super().__init__(program, reason)
        self.program = program
        self.reason = reason


def _open(plan: Plan) -> BpfObject:
    return BpfObject.open(plan.data, plan.manifest.object_name, plan.library)


def _attempt(
    plan: Plan,
    target: BpfObject,
    wanted_maps: tuple[str, ...],
    choices: tuple[Choice, ...],
    refused: Mapping[str, str],
) -> LoadedModule:
    """
    Do all steps but the first, once; *target* ends up in the module, or closed.
    """
    module = LoadedModule(plan, target, choices, refused)
    try:
        inject(plan, target, wanted_maps)
        set_constants(plan, target)
        leave_out(plan, target)
        wanted = _wanted(plan, choices, refused)
        try:
            manifest = plan.manifest
            load(plan, target, wanted | {*manifest.tail_calls.values(), *manifest.own_programs})
        except LoadError as error:
            program = _blamed(error, wanted)
            if program is not None:
                raise _RefusedError(program, str(error)) from error
            raise
        plan.before_attach()
        attach(module)
    except BaseException:
        module.close()
        raise
    return module


_PROGRAM = re.compile(r"\bprog(?:ram)? '?(\w+)'?:")


def _blamed(error: LoadError, wanted: set[str]) -> str | None:
    """
    Return the program for which an object was refused, if it is one of a hook.
    """
    named = [getattr(error, "program", None), *_PROGRAM.findall(str(error))]
    return next((name for name in named if name in wanted), None)


def bring_up(plan: Plan, ahead: BpfObject | None = None) -> LoadedModule:
    """
    Do all six steps.

    Args:
        plan: what to bring up.
        ahead: the object, if somebody has opened it ahead of time; it is ours from now on.

    Raises:
        ObjectError, ManifestError, ConfigError: before the kernel was touched.
        LoadError: when the object is refused as a whole, or a program for which
            there is no alternative.
        AttachError: when a required hook has no alternative that works.
        PrivilegeError: when a capability is missing.
    """
    refused: dict[str, str] = {}
    refusal: BaseException | None = None
    with ExitStack() as unused:
        if ahead is not None:
            unused.callback(ahead.close)
        wanted_maps = check(plan)
        while True:
            try:
                choices = choose_hooks(plan, refused)
            except AttachError:
                if isinstance(refusal, LoadError):
                    # Nothing is left to try: the verifier's own words say more than
                    # a list of alternatives.
                    raise refusal from None
                raise
            unused.pop_all()
            target, ahead = ahead or _open(plan), None
            try:
                return _attempt(plan, target, wanted_maps, choices, refused)
            except _RefusedError as error:
                refused[error.program] = error.reason
                refusal = error.__cause__
