# SPDX-License-Identifier: Apache-2.0
"""
From a manifest to a live module: everything that is given to it on the way.

Undone as a whole when any step fails.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING

import attrs

from kprobe_modules import specfile
from kprobe_modules.architecture import machine_arch
from kprobe_modules.attached import AttachedModule
from kprobe_modules.dispatch import Binding
from kprobe_modules.handler import Context
from kprobe_modules.intake import DATA_CHANNEL
from kprobe_modules.loader import Plan, bring_up, check_tunables
from kprobe_modules.resources import LoadedResources

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import ExitStack
    from pathlib import Path

    from kprobe_modules.dispatch import Dispatcher
    from kprobe_modules.features import Features
    from kprobe_modules.handler import DataChunk
    from kprobe_modules.headstart import Headstart
    from kprobe_modules.intake import Intake
    from kprobe_modules.journal import Journal
    from kprobe_modules.libbpf import Library
    from kprobe_modules.manifest import Manifest
    from kprobe_modules.resources import Offers, Sources
    from kprobe_modules.sharing import SharedMaps
    from kprobe_modules.spec import ObjectSpec
    from kprobe_modules.stacks import ObservedResolver, Resolver

__all__ = ["Admission"]

STACK_TRACES = "stack_traces"
"""The tunable with which programs write stacks (bpf/km/stack.h)."""


@attrs.frozen(eq=False, repr=False)
class Admission:
    """
    What modules share, and how one is brought up among the others.
    """

    intake: Intake
    shared: SharedMaps
    library: Library
    dispatcher: Dispatcher
    offers: Offers
    sources: Sources
    chosen: Mapping[str, str]
    """The user's choices of alternatives, ``module.hook`` to what is wanted."""
    proc_root: Path
    resolver: Callable[[], Resolver]
    """Gives what names the frames of stacks, made when the first one comes."""
    journal: Journal
    headstart: Headstart | None = None

    def bring_up(
        self,
        manifest: Manifest,
        tunables: Mapping[str, int | bool],
        module_id: int,
        features: Features,
        called: Mapping[str, str],
        undo: ExitStack,
    ) -> AttachedModule:
        """
        Load a module, bind its handler, and attach its hooks; nothing is scanned yet.

        Args:
            manifest: the module.
            tunables: what the user sets.
            module_id: what its messages bear; of no other module that is attached.
            features: of the running kernel.
            called: slots that other modules call, each with the module.
            undo: gets what is to be done if a later step fails.

        Raises:
            KprobeModulesError: when anything refuses; then *undo* is to be closed.
        """
        name = manifest.name
        arch = machine_arch()
        data = manifest.object_bytes(arch)
        spec = specfile.read(data, name, manifest.spec_bytes(arch))
        check_tunables(name, spec, tunables)
        if DATA_CHANNEL in manifest.common_maps:
            self.intake.open_channel().adopt(module_id)
            undo.callback(self.intake.leave_channel, module_id)
        live: dict[str, str] = {}
        resources = LoadedResources(name, self.library)
        context = self.journal.context(
            self._context(manifest, spec, module_id, tunables, live, resources)
        )
        undo.callback(self.offers.withdraw, name)

        @cache
        def bind() -> Binding:
            handler = manifest.handler_class()(context)
            stacks = partial(_observed, context, self.resolver)
            binding = Binding(name, module_id, spec, handler, stacks)
            binding.register(self.intake.drainer)
            undo.callback(binding.unregister, self.intake.drainer)
            self.dispatcher.add(binding)
            undo.callback(self.dispatcher.remove, binding)
            return binding

        ahead = None
        if self.headstart is not None:
            ahead = self.headstart.take(name, data, self.library)
        loaded = bring_up(
            Plan(
                manifest=manifest,
                spec=spec,
                data=data,
                common=self.intake.common,
                shared=self.shared,
                library=self.library,
                features=features,
                constants={**self._constants(spec, module_id), **tunables},
                called=called,
                chosen=self._choices_of(name),
                open_source=lambda source: self.sources.open(name, bind().handler, source),
                while_loading=manifest.handler_class,
                before_attach=bind,
            ),
            ahead,
        )
        undo.callback(loaded.close)
        if tunables.get(STACK_TRACES):
            self.resolver().prepare()
        resources.loaded = loaded
        return AttachedModule(loaded, bind(), self.library, live)

    def _constants(self, spec: ObjectSpec, module_id: int) -> dict[str, int]:
        values = {"km_module_id": module_id, **self.intake.constants}
        constants = {}
        for tunable in spec.tunables:
            if tunable.name in values:
                constants[tunable.name] = values[tunable.name]
            elif tunable.name.startswith("km_slot_"):
                slot = tunable.name.removeprefix("km_slot_")
                constants[tunable.name] = self.intake.common.slot(slot)
        return constants

    def _choices_of(self, name: str) -> dict[str, str]:
        prefix = f"{name}."
        return {
            key.removeprefix(prefix): value
            for key, value in self.chosen.items()
            if key.startswith(prefix)
        }

    def _context(
        self,
        manifest: Manifest,
        spec: ObjectSpec,
        module_id: int,
        tunables: Mapping[str, int | bool],
        live: dict[str, str],
        resources: LoadedResources,
    ) -> Context:
        values = {
            item.name: item.default
            for item in spec.tunables
            if not item.name.startswith("km_") and not isinstance(item.default, bytes)
        }

        def data(cpu: int, until: int) -> list[DataChunk]:
            channel = self.intake.channel
            return channel.take(module_id, cpu, until) if channel else []

        return Context(
            name=manifest.name,
            tunables={**values, **tunables},
            proc_root=self.proc_root,
            provide=partial(self.offers.provide, manifest.name),
            find=self.offers.find,
            data=data,
            live=live,
            map=resources.map,
            program_fd=resources.program_fd,
        )


def _observed(context: Context, resolver: Callable[[], Resolver]) -> ObservedResolver:
    from kprobe_modules.stacks import ObservedResolver

    return ObservedResolver(context.observe, resolver)
