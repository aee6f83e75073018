# SPDX-License-Identifier: Apache-2.0
"""
The attached modules, together: how they come, are drained, looked after, and leave.

Everything here happens under the collector's lock.  What a module's handler or the
kernel does wrong is turned into a `Failure`, so that the others go on.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

import attrs

from kprobe_modules.admission import Admission
from kprobe_modules.dispatch import Dispatcher
from kprobe_modules.errors import (
    IncompatibleMapError,
    KprobeModulesError,
    ModuleStateError,
    RingError,
)
from kprobe_modules.features import Features
from kprobe_modules.hooks import choose
from kprobe_modules.intake import SLACK_NS, Intake
from kprobe_modules.libbpf.rcu import wait_for_programs
from kprobe_modules.loader import kernel_module_loaded
from kprobe_modules.records import Lost, Suppressed
from kprobe_modules.resources import Offers, Sources
from kprobe_modules.sharing import SharedMaps
from kprobe_modules.slots import Slots

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from kprobe_modules.attached import AttachedModule
    from kprobe_modules.clock import Clock
    from kprobe_modules.dispatch import Faults
    from kprobe_modules.headstart import Headstart
    from kprobe_modules.hooks import Choice
    from kprobe_modules.journal import Journal
    from kprobe_modules.libbpf import Library
    from kprobe_modules.manifest import Manifest
    from kprobe_modules.records import Metrics, Record
    from kprobe_modules.rings import Drained
    from kprobe_modules.stacks import Resolver

__all__ = ["Ensemble"]

HOUSEKEEPING_NS = 1_000_000_000
"""How often losses, hot-plugged CPUs, and kernel modules are looked at."""

LOSS_NS = 100_000_000
"""How soon again when a ring says that it lost something."""

RESYNC_INTERVAL_NS = 1_000_000_000
"""After a loss, a module is scanned again no more often than this."""

OWN = "collector"
"""Who reports what is no module's."""


class Ensemble:
    """
    Modules by name, and what they share.

    Args:
        intake: rings and common maps; stays the caller's.
        library: the libbpf to load with.
        clock: for what is told in time since the epoch.
        faults: counts what goes wrong.
        installed: gives the manifest of a module that could be attached, or None.
        chosen: the user's choices of alternatives, ``module.hook`` to what is wanted.
        proc_root: where procfs is mounted, for handlers.
        journal: is told what handlers are given.
        headstart: what was begun for modules that will be admitted; None for nothing.

    Attributes:
        attached: in the order of attaching.
        departed: last totals of modules that left.
        offers: what handlers offer each other.
    """

    def __init__(  # noqa: PLR0913 - it composes them
        self,
        intake: Intake,
        library: Library,
        clock: Clock,
        *,
        faults: Faults,
        installed: Callable[[str], Manifest | None],
        chosen: Mapping[str, str],
        proc_root: Path,
        journal: Journal,
        headstart: Headstart | None = None,
    ) -> None:
        self._intake = intake
        self._journal = journal
        self._library = library
        self._clock = clock
        self._faults = faults
        self._features = Features(library, btf=None if headstart is None else headstart.btf)
        self._sources = Sources(intake.watch, intake.unwatch)
        self.dispatcher = Dispatcher(faults, intake.now)
        self.offers = Offers()
        self._shared = SharedMaps(installed)
        self.attached: dict[str, AttachedModule] = {}
        self.departed: dict[str, dict[str, Any]] = {}
        self._slots = Slots(self.attached, lambda: self._features, faults, journal)
        self._admission = Admission(
            intake,
            self._shared,
            library,
            self.dispatcher,
            self.offers,
            self._sources,
            dict(chosen),
            proc_root,
            self._resolver,
            journal,
            headstart,
        )
        journal.opened(intake.now, faults)
        self._proc_root = proc_root
        self._stacks: Resolver | None = None
        self._last_id = 0
        self._housekept = monotonic_ns()
        self.metrics_interval: float | None = None
        """Seconds between records of metrics; None for no such records."""
        self._measured = monotonic_ns()

    def close(self) -> None:
        """
        Let every module leave, the last one first.
        """
        with ExitStack() as stack:
            stack.callback(self._features.close)
            for name in self.attached:
                stack.callback(self._drop, name)

    def _resolver(self) -> Resolver:
        """
        Return what names the frames of stacks, for all modules.
        """
        if self._stacks is None:
            from kprobe_modules.stacks import Resolver

            self._stacks = Resolver(self._proc_root)
        return self._stacks

    def require(self, name: str) -> AttachedModule:
        """
        Return an attached module.

        Raises:
            ModuleStateError: when it is not attached.
        """
        try:
            return self.attached[name]
        except KeyError:
            attached = ", ".join(self.attached) or "none"
            msg = f"module {name} is not attached; attached: {attached}"
            raise ModuleStateError(msg) from None

    # -- coming and leaving ---------------------------------------------------

    def admit(
        self, manifest: Manifest, tunables: Mapping[str, int | bool], into: list[Record]
    ) -> AttachedModule:
        """
        Attach a module and scan what exists.

        Args:
            manifest: the module.
            tunables: values for its object's tunables.
            into: gets the records of all modules that were made meanwhile.

        Raises:
            ModuleStateError: when a module of that name is attached.
            KprobeModulesError: when anything refuses; nothing of it is left then.
        """
        name = manifest.name
        if name in self.attached:
            msg = f"module {name} is attached already; detach it first"
            raise ModuleStateError(msg)
        self._faults.forget(name)
        with ExitStack() as undo:
            bring_up = partial(
                self._admission.bring_up,
                manifest,
                tunables,
                self._new_id(),
                self._features,
                self._slots.called(),
                undo,
            )
            attached = self._journal.join(name, bring_up)
            undo.callback(self._shared.leave, name)
            into += self._share(attached)
            self.attached[name] = attached
            undo.pop_all()
        try:
            into += self._slots.rearrange()
            self._journal.carry("attached", name, partial(_begin, attached))
            self.scan(attached, resync=False, into=into)
        except BaseException:
            into += self._slots.rearrange(leaving=name)
            self._drop(name)
            self.departed.pop(name, None)
            self._journal.note("refused", name)
            raise
        self._journal.note("admitted", name)
        self.departed.pop(name, None)
        return attached

    def _share(self, attached: AttachedModule) -> list[Record]:
        """
        Keep a module's maps for others, and tell of those who cannot use them after all.
        """
        loaded = attached.loaded
        estranged = self._shared.join(attached.manifest, loaded.plan.spec, loaded.map_fd)
        records: list[Record] = []
        for name, found in estranged.items():
            records += self._faults.failed(name, "imports", IncompatibleMapError(name, found))
        return self._journal.told(records)

    def _new_id(self) -> int:
        taken = {item.binding.module_id for item in self.attached.values()}
        while True:
            self._last_id = self._last_id % 0xFFFF + 1
            if self._last_id not in taken:
                return self._last_id

    def dismiss(self, name: str) -> list[Record]:
        """
        Let a module leave, and return the records that were made meanwhile, of all modules.

        Raises:
            ModuleStateError: when it is not attached.
        """
        attached = self.require(name)
        records: list[Record] = []
        try:
            records += self._slots.rearrange(leaving=name)
            attached.loaded.unlink()
            # Where the kernel does not let us wait, the fence finds every CPU
            # outside of the programs that do not sleep.
            wait_for_programs()
            records += self.drain_until(monotonic_ns())
            records += self.new_losses(attached)
        finally:
            records += self._drop(name)
        return records

    def _drop(self, name: str) -> list[Record]:
        """
        Free everything of a module, whatever part of that fails.
        """
        attached = self.attached.pop(name)
        records: list[Record] = []
        with ExitStack() as stack:
            stack.callback(self._intake.leave_channel, attached.binding.module_id)
            stack.callback(self._shared.leave, name)
            for common in attached.manifest.fills:
                stack.callback(self._intake.common.clear, common)
            stack.callback(self.offers.withdraw, name)
            stack.callback(self.dispatcher.remove, attached.binding)
            stack.callback(attached.binding.unregister, self._intake.drainer)
            stack.callback(attached.loaded.close)
            attached.loaded.unlink()
            detached = partial(
                self.dispatcher.call,
                attached.binding,
                "detached",
                attached.binding.handler.detached,
            )
            records += self._journal.carry("detached", name, detached)
            self.departed[name] = self.counts(attached)
        return records

    # -- scanning -------------------------------------------------------------

    def scan(self, attached: AttachedModule, *, resync: bool, into: list[Record]) -> None:
        """
        Let a module discover what exists, and say that it has.

        Args:
            attached: the module.
            resync: whether it has done so before.
            into: gets the records of all modules that were made meanwhile.

        Raises:
            KprobeModulesError, OSError: when the kernel refuses.
            Exception: whatever the handler raises.
        """
        name = attached.binding.name

        def drain() -> None:
            if self._intake.crowded():
                into.extend(self._take_until(monotonic_ns() - SLACK_NS))

        def ask(hook: str) -> None:
            find = partial(self.dispatcher.scan, attached.binding, hook)
            into.extend(self._journal.carry("scan", name, find, hook=hook))

        self._scanning(name, on=True)
        try:
            attached.scan(self._intake.scan_step, drain, ask)
            into += self.drain_until(monotonic_ns())
        finally:
            self._scanning(name, on=False)
        steady = partial(self.dispatcher.steady, attached.binding, resync=resync)
        into += self._journal.carry("steady", name, steady, resync=resync)
        attached.resync_wanted = False
        attached.resynced_at = monotonic_ns()

    def _scanning(self, name: str, *, on: bool) -> None:
        self.dispatcher.scanning(name, on=on)
        self._journal.note("scanning", name, on=on)

    # -- draining -------------------------------------------------------------

    def drain_until(self, until: int) -> list[Record]:
        """
        Take and handle everything up to *until*, CLOCK_MONOTONIC in ns.
        """
        self._intake.settle(until)
        records = self._take(until)
        self._intake.pull_channel(until)
        return records

    def _take_until(self, until: int) -> list[Record]:
        self._intake.fence()
        return self._take(until)

    def _take(self, until: int) -> list[Record]:
        records: list[Record] = []
        while True:
            records += self._dispatch(self._intake.take(until))
            if not self._intake.more:
                return records

    def _dispatch(self, drained: Drained) -> list[Record]:
        dispatch = partial(self.dispatcher.dispatch, drained)
        records = self._journal.carry("drained", "", dispatch, drained=drained)
        records += self._note(drained)
        return records

    def _note(self, drained: Drained) -> list[Record]:
        """
        Heed what a drain says about the rings themselves.
        """
        if drained.lost:
            soon = monotonic_ns() - HOUSEKEEPING_NS + LOSS_NS
            self._housekept = min(self._housekept, soon)
        if drained.malformed:
            error = RingError(f"{drained.malformed} malformed messages")
            return self._journal.told(self._faults.failed(OWN, "rings", error))
        return []

    def cycle(self, into: list[Record]) -> None:
        """
        Take what may be released now, and look after everything else that is due.

        Args:
            into: gets the records, in order.
        """
        into += self.acknowledge()
        drained = self._intake.take_released()
        if drained is not None:
            into += self._dispatch(drained)
        self.look_after(into)

    def acknowledge(self) -> list[Record]:
        """
        Take note of wake-ups, and say what went wrong with that.
        """
        return self._guarded("rings", self._intake.acknowledge)

    def take_batches(self) -> tuple[Drained | None, list[Record]]:
        """
        Take what may be released now without handling it.
        """
        records = self.acknowledge()
        drained = self._intake.take_released()
        if drained is not None:
            records += self._note(drained)
            records += self.dispatcher.own_records(drained)
        return drained, records

    def look_after(self, into: list[Record]) -> None:
        """
        Read handlers' own sources, let time pass for them, and keep house.
        """
        for module, source, read in self._sources.readable():
            attached = self.attached[module]
            errors = self._faults.errors.get(module, 0)
            call = partial(self.dispatcher.call, attached.binding, source, read)
            into += self._journal.carry("source", module, call, source=source)
            if self._faults.errors.get(module, 0) != errors:
                self._sources.rest(module, source)
        into += self._ticks()
        self._intake.relieve_channel()
        if monotonic_ns() - self._housekept >= HOUSEKEEPING_NS:
            self._keep_house(into)

    def _ticks(self) -> list[Record]:
        now = monotonic_ns()
        records: list[Record] = []
        for attached in self.attached.values():
            handler = attached.binding.handler
            if now >= attached.next_tick:
                attached.next_tick = now + int(handler.tick_interval * 1e9)
                tick = partial(handler.tick, self._intake.now())
                call = partial(self.dispatcher.call, attached.binding, "tick", tick)
                records += self._journal.carry("tick", attached.binding.name, call)
        return records

    # -- keeping house ----------------------------------------------------------

    def _keep_house(self, into: list[Record]) -> None:
        now = self._housekept = monotonic_ns()
        self._clock.refresh()
        # The symbols and the BTF that attaching looked into; the answers stay.
        self._features.close()
        into += self._guarded("rings", self._intake.refresh)
        into += self._measure(now)
        for attached in list(self.attached.values()):
            into += self.new_losses(attached)
            into += self._revive(attached)
            if attached.resync_wanted and now - attached.resynced_at >= RESYNC_INTERVAL_NS:
                attached.resynced_at = now
                try:
                    self.scan(attached, resync=True, into=into)
                except Exception as error:  # noqa: BLE001 - it is tried again in a while
                    into += self._journal.told(
                        self._faults.failed(attached.binding.name, "resync", error)
                    )

    def _measure(self, now: int) -> list[Record]:
        """
        Return the records of metrics, if it is time for them.
        """
        interval = self.metrics_interval
        if interval is None or now - self._measured < interval * 1e9:
            return []
        self._measured = now
        records: list[Record] = []
        failures = self._guarded("metrics", lambda: records.extend(self.metrics()))
        return failures + self._journal.told(records)

    def _guarded(self, where: str, function: Callable[[], object]) -> list[Record]:
        try:
            function()
        except (KprobeModulesError, OSError) as error:
            return self._journal.told(self._faults.failed(OWN, where, error))
        return []

    def new_losses(self, attached: AttachedModule) -> list[Record]:
        """
        Return what a module lost or suppressed since the last call.

        Where messages of its own were lost, remember to scan it again.
        """
        at = self._intake.now()
        losses = [
            Lost(at, attached.binding.name, count.message, count.cpu, count.lost)
            for count in attached.losses.new_losses(attached.losses.read())
        ]
        own = {message.name for message in attached.binding.spec.messages}
        if any(count.message in own for count in losses):
            attached.resync_wanted = True
        told: list[Record] = [*losses]
        for cpu, count in attached.logs.new().items():
            told.append(Suppressed(at, attached.binding.name, cpu, count))
        return self._journal.told(told)

    def _revive(self, attached: AttachedModule) -> list[Record]:
        """
        Attach hooks whose kernel module has been loaded since.
        """
        arrived = {
            choice.hook.name
            for choice in attached.loaded.choices
            if choice.waiting and choice.hook.awaits and kernel_module_loaded(choice.hook.awaits)
        }
        if not arrived:
            return []
        # What was known of the kernel is out of date.
        self._features.close()
        self._features = Features(self._library)
        plan = attached.loaded.plan
        records: list[Record] = []
        for choice in choose(plan.manifest, plan.spec, self._features, chosen=plan.chosen):
            if choice.hook.name in arrived:
                records += self._supplement(attached, choice)
        records += self._slots.rearrange()
        attached.note_live()
        self._journal.note("live", attached.binding.name, live=dict(attached.live))
        return records

    def _supplement(self, attached: AttachedModule, choice: Choice) -> list[Record]:
        if choice.alternative is None:
            attached.loaded.settle(choice)
            return []
        try:
            attached.loaded.adopt(choice).close()
        except (KprobeModulesError, OSError) as error:
            # Settled all the same: it is not tried again every second.
            refusal = (choice.alternative.name, str(error))
            attached.loaded.settle(
                attrs.evolve(
                    choice, alternative=None, attach_point="", rejected=(*choice.rejected, refusal)
                )
            )
            return self._journal.told(
                self._faults.failed(attached.binding.name, choice.hook.name, error)
            )
        attached.resync_wanted = True
        attached.resynced_at = 0
        return []

    # -- numbers ----------------------------------------------------------------

    def metrics(self) -> list[Metrics]:
        """
        Return what each attached module costs, and what all share.
        """
        from kprobe_modules.metrics import MapMetrics, measure, measure_maps, measure_programs

        at, library = self._intake.now(), self._library
        found = [
            measure(
                name,
                at,
                self.counts(attached),
                measure_programs(
                    attached.loaded.loaded_programs(), attached.loaded.missed_runs(), library
                ),
                measure_maps(attached.loaded.own_maps(), library),
            )
            for name, attached in self.attached.items()
        ]
        shared = measure_maps(self._intake.common.fds(), library)
        shared.append(MapMetrics("rings", None, 0, self._intake.ring_memory))
        errors = {"errors": self._faults.errors.get(OWN, 0)}
        return [*found, measure(OWN, at, errors, (), shared)]

    def counts(self, attached: AttachedModule) -> dict[str, Any]:
        """
        Return a module's totals.
        """
        module_id, name = attached.binding.module_id, attached.binding.name
        received = attached.binding.received(self._intake.drainer)
        unclaimed = 0
        if self._intake.channel is not None:
            unclaimed = self._intake.channel.unclaimed.get(module_id, 0)
            names = {message.id: message.name for message in attached.binding.spec.messages}
            for (module, message, cpu), count in self._intake.channel.received.items():
                if module == module_id and message in names:
                    by_cpu = received.setdefault(names[message], {})
                    by_cpu[cpu] = by_cpu.get(cpu, 0) + count
        return {
            **attached.counts(received),
            "unclaimed": unclaimed,
            "errors": self._faults.errors.get(name, 0),
            "stalls": self._faults.stalls.get(name, 0),
        }


def _begin(attached: AttachedModule) -> list[Record]:
    """
    Let a handler do what it does once all its hooks are live.
    """
    attached.binding.handler.attached()
    return []
