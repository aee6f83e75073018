# SPDX-License-Identifier: Apache-2.0
"""
The collector: what a host program holds in its hands.

It composes the other rooms and decides nothing that they could decide.  Records
leave in the order of their time across all CPUs.  What makes that true is the
fence: before a drain, a program that does nothing is run on every CPU, after which
none of them has anything older than the moment before.  A record is therefore
delayed by at most the poll interval, plus the fences (some 30 µs per CPU), plus
`SLACK_NS`; should one still come behind a newer one, a `Late` record says so.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, Any, Self

from kprobe_modules.clock import Clock
from kprobe_modules.delivery import BACKLOG, Delivery
from kprobe_modules.dispatch import Faults
from kprobe_modules.ensemble import Ensemble
from kprobe_modules.errors import ConfigError, ModuleStateError, NotSupportedError, PrivilegeError
from kprobe_modules.intake import Intake
from kprobe_modules.journal import Journal
from kprobe_modules.libbpf import find
from kprobe_modules.records import Stats
from kprobe_modules.registry import Registry
from kprobe_modules.subscriptions import Subscription
from kprobe_modules.transport import RingOptions

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
    from types import TracebackType

    from kprobe_modules.attached import ModuleStatus
    from kprobe_modules.dispatch import MessageBatch
    from kprobe_modules.headstart import Headstart
    from kprobe_modules.libbpf import Descriptor, Library
    from kprobe_modules.manifest import Manifest
    from kprobe_modules.records import Metrics, Record

__all__ = ["Collector"]


class Collector:
    """
    Attaches modules, drains the rings, and hands out records.

    Args:
        modules: names of modules to attach at once, who exports a map before who imports
            it.  One that fails raises, after what was attached before has been detached
            again.
        rings: sizes, watermark and transport of the rings.
        interval: seconds after which the rings are drained at the latest.
        chosen: the user's choices of hook alternatives: ``module.hook`` to program
            name, kind, or ``kind/target``.
        registry: where modules are found; default, the installed entry points.
        library: the libbpf to use; default, the first that `libbpf.find` accepts.
        proc_root: where procfs is mounted, for handlers.
        backlog: how many records may wait to be polled; beyond it the oldest are
            discarded, counted and reported.
        metrics: seconds, one or more, between `Metrics` records of each module; None
            for none.  The runs of programs are counted too where we may
            (`count_runs`).
        journal: is told what handlers are given, as a `kprobe_modules.capture.Capture`
            is; it stays the caller's to close, after the collector.
        headstart: what was begun for the modules already, in threads; it stays the
            caller's to close, at any time.

    Raises:
        LibbpfNotFoundError, PrivilegeError, LoadError, RingError, AttachError.

    A collector is a context manager.  Its methods may be called from any thread;
    records are produced in the thread that asks for them, and no thread is started
    unless a subscription wants one.
    """

    def __init__(  # noqa: PLR0913 - each is a choice of the user's
        self,
        modules: Iterable[str | Manifest] = (),
        *,
        rings: RingOptions | None = None,
        interval: float = 0.1,
        chosen: Mapping[str, str] | None = None,
        registry: Registry | None = None,
        library: Library | None = None,
        proc_root: Path = Path("/proc"),
        backlog: int = BACKLOG,
        metrics: float | None = None,
        journal: Journal | None = None,
        headstart: Headstart | None = None,
    ) -> None:
        if metrics is not None and metrics < 1:
            msg = f"metrics is {metrics} seconds, expected 1 or more"
            raise ConfigError(msg)
        self._interval = interval
        self._registry = registry or Registry()
        self._library = library = library or find()
        clock = Clock()
        self._lock = threading.RLock()
        self._depth = 0
        self._closed = False
        self._freed = False
        self._statistics: Descriptor | None = None
        self._intake = Intake(rings or RingOptions(), library, clock)
        self._faults = Faults(self._intake.now)
        self._delivery = Delivery(backlog, self._intake.wake)
        self._journal = journal or Journal()
        self._ensemble = Ensemble(
            self._intake,
            library,
            clock,
            faults=self._faults,
            installed=self._registry.find,
            chosen=chosen or {},
            proc_root=proc_root,
            journal=self._journal,
            headstart=headstart,
        )
        try:
            if metrics is not None:
                self._ensemble.metrics_interval = metrics
                with suppress(PrivilegeError, NotSupportedError):
                    self._statistics = self.count_runs()
            for module in self._registry.exporters_first(modules):
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

        Whoever waits for records in another thread is given what is left and ends.
        Called in the midst of another operation of the same thread, as by a signal
        handler, it takes effect at the end of that.
        """
        with self._lock:
            self._closed = True
            if self._depth or self._freed:
                self._intake.wake()
                return
            self._freed = True
            try:
                self._ensemble.close()
            finally:
                self._intake.close()
                if self._statistics is not None:
                    self._statistics.close()
        for subscription in tuple(self._delivery.subscriptions):
            subscription.close()

    @contextmanager
    def _operation(self) -> Iterator[None]:
        """
        Have the collector to oneself; at the end, subscriptions get what has come.
        """
        with self._lock:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth:
                    self._delivery.serve()
                    if self._closed and not self._freed:
                        self.close()

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
        return tuple(self._ensemble.attached)

    def status(self, name: str) -> ModuleStatus:
        """
        Return which hooks of an attached module are live, and what it cannot fill.

        Raises:
            ModuleStateError: when it is not attached.
        """
        return self._ensemble.require(name).status

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
        manifest = self._registry.manifest(module)
        with self._operation():
            self._require_open()
            self._delivery.discarded.pop(manifest.name, None)
            records: list[Record] = []
            try:
                attached = self._ensemble.admit(manifest, tunables, records)
            except BaseException:
                records = [record for record in records if record.module != manifest.name]
                raise
            finally:
                self._delivery.queue(records)
            self._intake.wake()
            return attached.status

    def detach(self, name: str) -> list[Record]:
        """
        Detach a module; when this returns, no record of it will come.

        Its programs are unlinked and have finished, every CPU is fenced, and its
        last messages have been handled.  Other modules lose nothing.

        Returns:
            The module's records that nobody had taken yet, in order.  Subscriptions
            have been called with them too, unless it was one of them that detached.

        Raises:
            ModuleStateError: when it is not attached.
        """
        with self._operation():
            self._require_open()
            fresh = self._ensemble.dismiss(name)
            last = self._delivery.withdraw(name, fresh)
            self._intake.wake()
        for subscription in tuple(self._delivery.subscriptions):
            subscription.settle(name)
        return last

    def find(self, name: str) -> object | None:
        """
        Return what some attached handler offers under a name, or None.
        """
        return self._ensemble.offers.find(name)

    def resync(self, name: str) -> None:
        """
        Scan again what exists; only what was not reported before is.

        Raises:
            ModuleStateError: when the module is not attached.
            KprobeModulesError, OSError: when the kernel refuses.
        """
        with self._operation():
            self._require_open()
            records: list[Record] = []
            try:
                self._ensemble.scan(self._ensemble.require(name), resync=True, into=records)
            finally:
                self._delivery.queue(records)
            self._intake.wake()

    # -- taking records -----------------------------------------------------

    def fileno(self) -> int:
        """
        Return a descriptor that is readable when `poll` has something to do.
        """
        return self._intake.fileno()

    def _wait(self, timeout: float) -> None:
        """
        Wait for a watermark, for something to be queued, or for the time to pass.
        """
        if timeout > 0 and not self._intake.more and not self._delivery.waiting:
            self._intake.wait(min(timeout, self._interval))

    def _advance(self, timeout: float) -> None:
        self._wait(timeout)
        with self._operation():
            if self._closed:
                return
            records: list[Record] = []
            try:
                self._ensemble.cycle(records)
            finally:
                self._delivery.queue(records)

    def poll(self, max_records: int | None = None, timeout: float = 0.0) -> list[Record]:
        """
        Return what there is, waiting up to *timeout* seconds for the first record.

        Args:
            max_records: return no more than this; the rest waits for the next call.
            timeout: seconds; 0 returns at once.
        """
        deadline = monotonic() + timeout
        delivery = self._delivery
        # Backlog enough: the rings can wait, they are bounded and this is not.
        more = True
        while more and (max_records is None or delivery.waiting < max_records):
            self._advance(0)
            more = self._intake.more
        while not delivery.waiting and not self._closed and (left := deadline - monotonic()) > 0:
            self._advance(left)
        return delivery.take(max_records)

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
        pop = self._delivery.pop
        while max_records is None or given < max_records:
            record = pop()
            if record is not None:
                given += 1
                yield record
                continue
            if self._closed or (expired and not self._intake.more):
                return
            left = self._interval if deadline is None else deadline - monotonic()
            # Once more after the time is over: what has happened until then.
            expired = expired or (left <= 0 and not self._intake.more)
            self._advance(left)

    def __iter__(self) -> Iterator[Record]:
        return self.records()

    async def arecords(
        self,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it ends the iteration, raising nothing
        max_records: int | None = None,
    ) -> AsyncIterator[Record]:
        """
        Iterate as `records` does, with ``async for``; the event loop is not blocked.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        deadline = None if timeout is None else monotonic() + timeout
        given = 0
        expired = False
        # Of its own, so that several iterations do not take each other's reader.
        descriptor = os.dup(self.fileno())
        loop.add_reader(descriptor, ready.set)
        try:
            while max_records is None or given < max_records:
                record = self._delivery.pop()
                if record is not None:
                    given += 1
                    yield record
                    continue
                if self._closed or (expired and not self._intake.more):
                    return
                left = self._interval if deadline is None else deadline - monotonic()
                if left > 0 and not self._intake.more:
                    await _either(ready, min(left, self._interval))
                else:
                    await asyncio.sleep(0)
                expired = expired or (left <= 0 and not self._intake.more)
                ready.clear()
                if self._lock.acquire(blocking=False):
                    try:
                        self._advance(0)
                    finally:
                        self._lock.release()
                else:
                    # Some thread attaches or detaches: that may take a while.
                    expired = False
                    await asyncio.sleep(0.001)
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    def __aiter__(self) -> AsyncIterator[Record]:
        return self.arecords()

    def batches(self, *, timeout: float | None = None) -> Iterator[list[MessageBatch]]:
        """
        Iterate over drains as columns: one list of batches per drain.

        No handler runs for what is taken this way, and no record is made of it.
        Rows are in order within a batch.  What the framework itself has to say,
        such as losses, waits for `poll`.
        """
        deadline = None if timeout is None else monotonic() + timeout
        expired = False
        while not self._closed:
            left = self._interval if deadline is None else deadline - monotonic()
            if left > 0 and not self._intake.more:
                self._intake.wait(min(left, self._interval))
            expired = expired or (left <= 0 and not self._intake.more)
            named = self._take_batches()
            if named:
                yield named
            if expired and not self._intake.more:
                return

    def _take_batches(self) -> list[MessageBatch]:
        with self._operation():
            if self._closed:
                return []
            drained, records = self._ensemble.take_batches()
            try:
                self._ensemble.look_after(records)
            finally:
                self._delivery.queue(records)
            return self._ensemble.dispatcher.batches(drained) if drained is not None else []

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

        It may call the collector, but must not wait for another thread that does.

        Args:
            callback: what it raises is counted and reported, and goes no further.
            module: only records of this module.
            record: only records of this class, or of this name.
            threaded: give the callback its own thread and queue, so that it may be
                slow; what does not fit the queue is dropped and counted.
            capacity: how many records that queue holds.
        """
        with self._lock:
            self._require_open()
            subscription = Subscription(
                callback,
                module=module,
                record=record,
                capacity=capacity if threaded else None,
                faults=self._faults,
                forget=self._forget,
                report=self._delivery.report,
            )
            self._delivery.subscriptions.append(subscription)
        return subscription

    def _forget(self, subscription: Subscription) -> None:
        with self._lock:
            self._delivery.forget(subscription)

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
        with self._operation():
            self._require_open()
            records: list[Record] = []
            try:
                records += self._ensemble.acknowledge()
                records += self._ensemble.drain_until(monotonic_ns())
                for attached in self._ensemble.attached.values():
                    records += self._ensemble.new_losses(attached)
            finally:
                self._delivery.queue(records)
        return self._delivery.take()

    # -- numbers ------------------------------------------------------------

    def stats(self) -> Stats:
        """
        Return totals per module, also of those that were detached.

        ``emitted = received + lost`` for a module whose rings are drained.
        """
        with self._lock:
            totals: dict[str, dict[str, Any]] = dict(self._ensemble.departed)
            for name, attached in self._ensemble.attached.items():
                totals[name] = self._ensemble.counts(attached)
            discarded = self._delivery.discarded
            totals = {
                name: {**counts, "discarded": discarded[name]} for name, counts in totals.items()
            }
            stats = Stats(self._intake.now(), "collector", totals)
            self._journal.totals(stats)
            return stats

    def metrics(self) -> list[Metrics]:
        """
        Return what each attached module does and costs, and last what all share.

        Runs and run time of programs grow only while somebody has statistics on
        (`count_runs`).  Entries of hash maps are counted one by one, by the kernel:
        a millisecond or so for ten thousand.

        Raises:
            KernelError: when the kernel does not tell.
        """
        with self._operation():
            self._require_open()
            return self._ensemble.metrics()

    def count_runs(self) -> Descriptor:
        """
        Let the kernel count runs and run time of all its BPF programs, until closed.

        Each run of each program of the machine, also of others', then reads the
        clock twice: some tens of nanoseconds, 200 where a virtual machine's clock is
        slow to read.  A context manager.

        Raises:
            PrivilegeError: CAP_SYS_ADMIN is missing.
            NotSupportedError: the kernel is older than 5.8.
        """
        from kprobe_modules.libbpf import enable_stats

        return enable_stats(library=self._library)


async def _either(ready: asyncio.Event, seconds: float) -> None:
    """
    Wait for the event, or for so many seconds.
    """
    import asyncio

    with suppress(TimeoutError):
        await asyncio.wait_for(ready.wait(), seconds)
