# SPDX-License-Identifier: Apache-2.0
"""
The collector: owns rings, common maps and attached modules.

It composes the other rooms and decides nothing that they could decide.  Records
leave in the order of their time across all CPUs.  What makes that true is the
fence: before a drain, a program that does nothing is run on every CPU, after which
none of them has anything older than the moment before.  A record is therefore
delayed by at most the poll interval, plus the fences (some 30 µs per CPU), plus
`SLACK_NS`; should one still come behind a newer one, a `Late` record says so.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from contextlib import ExitStack, suppress
from functools import partial
from logging import getLogger
from pathlib import Path
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, Any, Self

from kprobe_modules import objectfile
from kprobe_modules.attached import AttachedModule, ModuleStatus
from kprobe_modules.clock import Clock
from kprobe_modules.dispatch import Binding, Dispatcher, Faults
from kprobe_modules.errors import KprobeModulesError, ModuleStateError
from kprobe_modules.features import Features
from kprobe_modules.handler import Context, DataChunk
from kprobe_modules.hooks import choose
from kprobe_modules.intake import DATA_CHANNEL, SLACK_NS, Intake
from kprobe_modules.libbpf import find
from kprobe_modules.libbpf.rcu import wait_for_programs
from kprobe_modules.loader import Plan, bring_up, kernel_module_loaded
from kprobe_modules.maps import machine_arch
from kprobe_modules.records import Lost, Stats
from kprobe_modules.registry import Registry
from kprobe_modules.resources import LoadedResources, Offers, Sources
from kprobe_modules.subscriptions import Subscription
from kprobe_modules.transport import RingOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
    from types import TracebackType

    from kprobe_modules.dispatch import MessageBatch
    from kprobe_modules.libbpf import Library
    from kprobe_modules.manifest import Manifest
    from kprobe_modules.records import Record
    from kprobe_modules.rings import Drained

__all__ = ["Collector"]

HOUSEKEEPING_NS = 1_000_000_000
"""How often losses, hot-plugged CPUs, and kernel modules are looked at."""

RESYNC_INTERVAL_NS = 1_000_000_000
"""After a loss, a module is scanned again no more often than this."""


class Collector:
    """
    Attaches modules, drains the rings, and hands out records.

    Args:
        modules: names of modules to attach at once.  One that fails raises, after
            what was attached before has been detached again.
        rings: sizes, watermark and transport of the rings.
        interval: seconds after which the rings are drained at the latest.
        chosen: the user's choices of hook alternatives: ``module.hook`` to program
            name, kind, or ``kind/target``.
        registry: where modules are found; default, the installed entry points.
        library: the libbpf to use; default, the first that `libbpf.find` accepts.
        proc_root: where procfs is mounted, for handlers.

    Raises:
        LibbpfNotFoundError, PrivilegeError, LoadError, RingError, AttachError.

    A collector is a context manager.  Its methods may be called from any thread;
    records are produced in the thread that asks for them, and no thread is started
    unless a subscription wants one.
    """

    def __init__(
        self,
        modules: Iterable[str | Manifest] = (),
        *,
        rings: RingOptions | None = None,
        interval: float = 0.1,
        chosen: Mapping[str, str] | None = None,
        registry: Registry | None = None,
        library: Library | None = None,
        proc_root: Path = Path("/proc"),
    ) -> None:
        self._interval = interval
        self._chosen = dict(chosen or {})
        self._registry = registry or Registry()
        self._proc_root = proc_root
        self._library = library or find()
        self._features = Features(self._library)
        self._clock = Clock()
        self._faults = Faults(self._clock.now)
        self._dispatcher = Dispatcher(self._faults, self._clock.now)
        self._lock = threading.RLock()
        self._pending: deque[Record] = deque()
        self._modules: dict[str, AttachedModule] = {}
        self._departed: dict[str, dict[str, Any]] = {}
        self._offers = Offers()
        self._subscriptions: list[Subscription] = []
        self._next_id = 1
        self._housekept = 0
        self._closed = False
        self._intake = Intake(rings or RingOptions(), self._library, self._clock)
        self._sources = Sources(self._intake.watch, self._intake.unwatch)
        try:
            for module in modules:
                self.attach(module)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """
        Detach everything and give all descriptors back.  Safe to call twice.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for name in reversed(list(self._modules)):
                self._drop(name)
            self._intake.wake()
            self._intake.close()
            self._features.close()
        for subscription in list(self._subscriptions):
            subscription.close()

    def _require_open(self) -> None:
        if self._closed:
            msg = "the collector is closed"
            raise ModuleStateError(msg)

    # -- modules ------------------------------------------------------------

    @property
    def modules(self) -> tuple[str, ...]:
        """
        Names of the attached modules, in the order they were attached.
        """
        return tuple(self._modules)

    def status(self, name: str) -> ModuleStatus:
        """
        Return which hooks of an attached module are live, and what it cannot fill.

        Raises:
            ModuleStateError: when it is not attached.
        """
        return self._attached(name).status

    def _attached(self, name: str) -> AttachedModule:
        try:
            return self._modules[name]
        except KeyError:
            attached = ", ".join(self._modules) or "none"
            msg = f"module {name} is not attached; attached: {attached}"
            raise ModuleStateError(msg) from None

    def attach(self, module: str | Manifest, **tunables: int | bool) -> ModuleStatus:
        """
        Attach a module: load its object, attach its hooks, scan what exists.

        What the scan finds waits to be polled, followed by a `Steady` record.

        Args:
            module: a registered name, or a manifest.
            tunables: values for the object's tunables.

        Raises:
            ModuleStateError: when a module of that name is attached.
            RegistryError, ManifestError, ObjectError, ConfigError: before the
                kernel is touched.
            LoadError, AttachError, PrivilegeError: when the kernel refuses; nothing
                of the module is left behind.
        """
        manifest = self._registry.load(module) if isinstance(module, str) else module
        with self._lock:
            self._require_open()
            name = manifest.name
            if name in self._modules:
                msg = f"module {name} is attached already; detach it first"
                raise ModuleStateError(msg)
            with ExitStack() as undo:
                attached = self._bring_up(manifest, tunables, undo)
                self._modules[name] = attached
                self._departed.pop(name, None)
                undo.pop_all()
            try:
                attached.binding.handler.attached()
                self._scan(attached, resync=False)
            except BaseException:
                self._drop(name)
                raise
            self._intake.wake()
            return attached.status

    def _bring_up(
        self, manifest: Manifest, tunables: Mapping[str, int | bool], undo: ExitStack
    ) -> AttachedModule:
        name = manifest.name
        data = manifest.object_bytes(machine_arch())
        spec = objectfile.read(data, name)
        self._check_tunables(name, tunables)
        module_id = self._next_id
        self._next_id = module_id % 0xFFFF + 1
        if DATA_CHANNEL in manifest.common_maps:
            self._intake.open_channel()
            undo.callback(self._close_unused_channel)
        live: dict[str, str] = {}
        resources = LoadedResources(name, self._library)
        context = self._context(manifest, spec, module_id, tunables, live, resources)
        undo.callback(self._offers.withdraw, name)
        handler = manifest.handler_class()(context)
        binding = Binding(name, module_id, spec, handler)
        # Messages may come as soon as the first hook is live.
        binding.register(self._intake.drainer)
        undo.callback(binding.unregister, self._intake.drainer)
        self._dispatcher.add(binding)
        undo.callback(self._dispatcher.remove, binding)
        loaded = bring_up(
            Plan(
                manifest=manifest,
                spec=spec,
                data=data,
                common=self._intake.common,
                library=self._library,
                features=self._features,
                constants={**self._constants(spec, module_id), **tunables},
                chosen=self._choices_of(name),
                open_source=partial(self._sources.open, name, handler),
            )
        )
        undo.callback(loaded.close)
        resources.loaded = loaded
        attached = AttachedModule(loaded, binding, self._library)
        live.update(attached.live())
        return attached

    def _check_tunables(self, name: str, tunables: Mapping[str, int | bool]) -> None:
        reserved = sorted(key for key in tunables if key.startswith("km_"))
        if reserved:
            msg = f"{name}: {', '.join(reserved)} belong to the framework and cannot be set"
            raise ModuleStateError(msg)

    def _constants(self, spec: objectfile.ObjectSpec, module_id: int) -> dict[str, int]:
        values = {"km_module_id": module_id, **self._intake.constants}
        constants = {}
        for tunable in spec.tunables:
            if tunable.name in values:
                constants[tunable.name] = values[tunable.name]
            elif tunable.name.startswith("km_slot_"):
                constants[tunable.name] = self._intake.common.slot(tunable.name.removeprefix("km_slot_"))
        return constants

    def _choices_of(self, name: str) -> dict[str, str]:
        prefix = f"{name}."
        return {
            key.removeprefix(prefix): value
            for key, value in self._chosen.items()
            if key.startswith(prefix)
        }

    def _context(
        self,
        manifest: Manifest,
        spec: objectfile.ObjectSpec,
        module_id: int,
        tunables: Mapping[str, int | bool],
        live: dict[str, str],
        resources: LoadedResources,
    ) -> Context:
        values = {
            item.name: item.default for item in spec.tunables if not item.name.startswith("km_")
        }

        def data(cpu: int, until: int) -> list[DataChunk]:
            channel = self._intake.channel
            return channel.take(module_id, cpu, until) if channel else []

        return Context(
            name=manifest.name,
            tunables={**values, **tunables},
            log=getLogger(f"kprobe_modules.modules.{manifest.name}"),
            proc_root=self._proc_root,
            provide=partial(self._offers.provide, manifest.name),
            find=self._offers.find,
            data=data,
            live=live,
            map=resources.map,
            program_fd=resources.program_fd,
        )

    def _close_unused_channel(self) -> None:
        if not any(DATA_CHANNEL in item.manifest.common_maps for item in self._modules.values()):
            self._intake.close_channel()

    def detach(self, name: str) -> list[Record]:
        """
        Detach a module; when this returns, no record of it will come.

        Its programs are unlinked and have finished, every CPU is fenced, and its
        last messages have been handled.  Other modules lose nothing.

        Returns:
            The module's records that nobody had taken yet, in order; subscriptions
            have been called with those that were produced here.

        Raises:
            ModuleStateError: when it is not attached.
        """
        with self._lock:
            self._require_open()
            attached = self._attached(name)
            attached.loaded.unlink()
            if not wait_for_programs():
                self._intake.fence()
            fresh = self._drain_until(monotonic_ns())
            self._departed[name] = self._counts(attached)
            last = [record for record in (*self._pending, *fresh) if record.module == name]
            others = [record for record in fresh if record.module != name]
            self._pending = deque(record for record in self._pending if record.module != name)
            self._drop(name)
            self._pending.extend(others)
            self._deliver(fresh)
            for subscription in self._subscriptions:
                subscription.discard(name)
            self._intake.wake()
            return last

    def _drop(self, name: str) -> None:
        """
        Free everything of a module.
        """
        attached = self._modules.pop(name)
        attached.loaded.close()
        with suppress(Exception):
            attached.binding.handler.detached()
        attached.binding.unregister(self._intake.drainer)
        self._dispatcher.remove(attached.binding)
        self._offers.withdraw(name)
        for common in attached.manifest.fills:
            self._intake.common.clear(common)
        if self._intake.channel is not None:
            self._intake.channel.forget(attached.binding.module_id)
        self._close_unused_channel()

    def find(self, name: str) -> object | None:
        """
        Return what some attached handler offers under a name, or None.
        """
        return self._offers.find(name)

    def resync(self, name: str) -> None:
        """
        Scan again what exists; only what was not reported before is.

        Raises:
            ModuleStateError: when the module is not attached.
        """
        with self._lock:
            self._require_open()
            self._scan(self._attached(name), resync=True)
            self._intake.wake()

    def _scan(self, attached: AttachedModule, *, resync: bool) -> None:
        name = attached.binding.name

        def drain() -> None:
            if self._intake.crowded():
                self._queue(self._drain_until(monotonic_ns() - SLACK_NS))

        self._dispatcher.scanning(name, on=True)
        try:
            attached.scan(drain, lambda records: self._queue(list(records)))
            self._queue(self._drain_until(monotonic_ns()))
        finally:
            self._dispatcher.scanning(name, on=False)
        handler = attached.binding.handler
        self._queue(
            self._dispatcher.call(
                attached.binding, "steady", partial(handler.steady, resync=resync)
            )
        )
        self._queue([self._dispatcher.steady(name, resync=resync)])
        attached.resync_wanted = False
        attached.resynced_at = monotonic_ns()

    # -- draining -----------------------------------------------------------

    def _drain_until(self, until: int) -> list[Record]:
        """
        Fence, then take and handle everything that is not newer than *until*.
        """
        self._intake.fence()
        records: list[Record] = []
        while True:
            records += self._dispatch(self._intake.take(until))
            if not self._intake.more:
                return records

    def _dispatch(self, drained: Drained) -> list[Record]:
        if drained.lost:
            self._housekept = 0
        return self._dispatcher.dispatch(drained)

    def _queue(self, records: list[Record]) -> None:
        """
        Keep records for whoever polls, after the subscriptions had them.
        """
        self._pending.extend(records)
        self._deliver(records)

    def _deliver(self, records: list[Record]) -> None:
        for subscription in tuple(self._subscriptions):
            self._pending.extend(subscription.deliver(records))

    def _wait(self, timeout: float) -> None:
        """
        Wait for a watermark, for something to be queued, or for the time to pass.
        """
        if self._intake.more or self._pending or timeout <= 0:
            return
        try:
            self._intake.wait(min(timeout, self._interval))
        except (OSError, ValueError):
            # Closed by another thread while we slept.
            if not self._closed:
                raise

    def _cycle(self) -> list[Record]:
        """
        Drain once and return the records, in order.
        """
        with self._lock:
            if self._closed:
                return []
            drained = self._intake.take_released()
            records = self._dispatch(drained) if drained is not None else []
            for module, source, read in self._sources.readable():
                records += self._dispatcher.call(self._modules[module].binding, source, read)
            records += self._ticks()
            if monotonic_ns() - self._housekept >= HOUSEKEEPING_NS:
                records += self._housekeeping()
            return records

    def _ticks(self) -> list[Record]:
        now = monotonic_ns()
        records: list[Record] = []
        for attached in self._modules.values():
            handler = attached.binding.handler
            if now >= attached.next_tick:
                attached.next_tick = now + int(handler.tick_interval * 1e9)
                tick = partial(handler.tick, self._clock.now())
                records += self._dispatcher.call(attached.binding, "tick", tick)
        return records

    def _advance(self, timeout: float) -> None:
        self._wait(timeout)
        records = self._cycle()
        if records:
            self._queue(records)

    def _housekeeping(self) -> list[Record]:
        now = self._housekept = monotonic_ns()
        self._clock.refresh()
        self._intake.refresh()
        records: list[Record] = []
        for attached in list(self._modules.values()):
            records += self._new_losses(attached)
            self._revive(attached)
            if attached.resync_wanted and now - attached.resynced_at >= RESYNC_INTERVAL_NS:
                self._queue(records)
                records = []
                self._scan(attached, resync=True)
        return records

    def _new_losses(self, attached: AttachedModule) -> list[Record]:
        at = self._clock.now()
        losses: list[Record] = [
            Lost(at, attached.binding.name, count.message, count.cpu, count.lost)
            for count in attached.losses.new_losses(attached.losses.read())
        ]
        if losses:
            attached.resync_wanted = True
        return losses

    def _revive(self, attached: AttachedModule) -> None:
        """
        Attach hooks whose kernel module has been loaded since.
        """
        if not any(choice.waiting for choice in attached.loaded.choices):
            return
        plan = attached.loaded.plan
        loaded = {
            choice.hook.awaits
            for choice in attached.loaded.choices
            if choice.waiting and choice.hook.awaits and kernel_module_loaded(choice.hook.awaits)
        }
        if not loaded:
            return
        self._features = Features(self._library)
        for choice in choose(plan.manifest, plan.spec, self._features, chosen=plan.chosen):
            if choice.hook.awaits in loaded and choice.alternative is not None:
                try:
                    attached.loaded.supplement(choice)
                except KprobeModulesError as error:
                    self._queue(self._faults.failed(attached.binding.name, choice.hook.name, error))
                else:
                    attached.resync_wanted = True

    # -- taking records -----------------------------------------------------

    def fileno(self) -> int:
        """
        Return a descriptor that is readable when `poll` has something to do.
        """
        return self._intake.fileno()

    def poll(self, max_records: int | None = None, timeout: float = 0.0) -> list[Record]:
        """
        Return what there is, waiting up to *timeout* seconds for the first record.

        Args:
            max_records: return no more than this; the rest waits for the next call.
            timeout: seconds; 0 returns at once.
        """
        deadline = monotonic() + timeout
        wanted = math.inf if max_records is None else max_records
        # Backlog enough: the rings can wait, they are bounded and this is not.
        more = True
        while more and len(self._pending) < wanted:
            self._advance(0)
            more = self._intake.more
        while not self._pending and not self._closed and (left := deadline - monotonic()) > 0:
            self._advance(left)
        records: list[Record] = []
        while len(records) < wanted:
            try:
                records.append(self._pending.popleft())
            except IndexError:
                break
        return records

    def records(
        self, *, timeout: float | None = None, max_records: int | None = None
    ) -> Iterator[Record]:
        """
        Iterate over records, in order, as they come.

        Args:
            timeout: seconds after which the iteration ends; None means never.
            max_records: how many to give at most.
        """
        deadline = None if timeout is None else monotonic() + timeout
        given = 0
        expired = False
        while max_records is None or given < max_records:
            try:
                record = self._pending.popleft()
            except IndexError:
                if self._closed or (expired and not self._intake.more):
                    return
                left = self._interval if deadline is None else deadline - monotonic()
                # Once more after the time is over: what has happened until then.
                expired = expired or (left <= 0 and not self._intake.more)
                self._advance(left)
                continue
            given += 1
            yield record

    def __iter__(self) -> Iterator[Record]:
        return self.records()

    async def arecords(
        self, *, timeout: float | None = None, max_records: int | None = None
    ) -> AsyncIterator[Record]:
        """
        The same as `records`, for use with ``async for``; the event loop is not blocked.
        """
        import asyncio  # noqa: PLC0415 - costs a third of the import budget

        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        deadline = None if timeout is None else monotonic() + timeout
        loop.add_reader(self.fileno(), ready.set)
        given = 0
        try:
            while not self._closed and (max_records is None or given < max_records):
                left = None if max_records is None else max_records - given
                records = self.poll(left)
                for record in records:
                    yield record
                given += len(records)
                now = monotonic()
                if deadline is not None and now >= deadline and not records:
                    return
                if not records:
                    wait = self._interval if deadline is None else min(self._interval, deadline - now)
                    ready.clear()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(ready.wait(), wait)
        finally:
            loop.remove_reader(self.fileno())

    def __aiter__(self) -> AsyncIterator[Record]:
        return self.arecords()

    def batches(self, *, timeout: float | None = None) -> Iterator[list[MessageBatch]]:
        """
        Iterate over drains as columns: one list of batches per drain.

        No handler runs for what is taken this way, and no record is made of it.
        Rows are in order within a batch.
        """
        deadline = None if timeout is None else monotonic() + timeout
        while not self._closed:
            left = self._interval if deadline is None else deadline - monotonic()
            if left > 0 and not self._intake.more:
                self._intake.wait(min(left, self._interval))
            with self._lock:
                drained = self._intake.take_released()
                named = self._dispatcher.batches(drained) if drained is not None else []
            if named:
                yield named
            elif left <= 0:
                return

    def subscribe(
        self,
        callback: Callable[[Record], object],
        *,
        module: str | None = None,
        record: type[Record] | str | None = None,
        threaded: bool = False,
        capacity: int = 10_000,
    ) -> Subscription:
        """
        Call *callback* with records, of one module or kind or all, while polling.

        Args:
            callback: what it raises is counted and reported, and goes no further.
            module: only records of this module.
            record: only records of this class, or of this name.
            threaded: give the callback its own thread and queue, so that it may be
                slow; what does not fit the queue is dropped and counted.
            capacity: how many records that queue holds.
        """
        subscription = Subscription(
            callback,
            module=module,
            record=record,
            capacity=capacity if threaded else None,
            faults=self._faults,
            forget=self._forget,
        )
        with self._lock:
            self._subscriptions.append(subscription)
        return subscription

    def _forget(self, subscription: Subscription) -> None:
        with self._lock, suppress(ValueError):
            self._subscriptions.remove(subscription)

    def run(self, *, timeout: float | None = None) -> None:
        """
        Poll for the subscriptions' sake until the time is over or `close` is called.
        """
        for _ in self.records(timeout=timeout):
            pass

    def flush(self) -> list[Record]:
        """
        Return everything that has happened until now.
        """
        with self._lock:
            self._require_open()
            self._queue(self._drain_until(monotonic_ns()))
            for attached in self._modules.values():
                self._queue(self._new_losses(attached))
            records = list(self._pending)
            self._pending.clear()
            return records

    # -- numbers ------------------------------------------------------------

    def _counts(self, attached: AttachedModule) -> dict[str, Any]:
        received = attached.binding.received(self._intake.drainer)
        if self._intake.channel is not None:
            names = {message.id: message.name for message in attached.binding.spec.messages}
            for (module, message, cpu), count in self._intake.channel.received.items():
                if module == attached.binding.module_id and message in names:
                    by_cpu = received.setdefault(names[message], {})
                    by_cpu[cpu] = by_cpu.get(cpu, 0) + count
        name = attached.binding.name
        return {
            **attached.counts(received),
            "errors": self._faults.errors.get(name, 0),
            "stalls": self._faults.stalls.get(name, 0),
        }

    def stats(self) -> Stats:
        """
        Return totals per module, also of those that were detached.

        ``emitted = received + lost`` for a module whose rings are drained.
        """
        with self._lock:
            totals = dict(self._departed)
            for name, attached in self._modules.items():
                totals[name] = self._counts(attached)
            return Stats(self._clock.now(), "collector", totals)
