# SPDX-License-Identifier: Apache-2.0
"""
Between the modules and whoever takes records: a bounded backlog, and subscriptions.

Records come in batches under the collector's lock, in order.  They wait here for
those who poll, and in a second queue for the subscriptions, which are served when
the collector is in no other operation, so that a callback may call it.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from time import monotonic_ns
from typing import TYPE_CHECKING

import attrs

from kprobe_modules.dispatch import FAILURE_INTERVAL_NS
from kprobe_modules.records import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kprobe_modules.records import Record
    from kprobe_modules.subscriptions import Subscription

__all__ = ["BACKLOG", "Delivery"]

BACKLOG = 1 << 18
"""Records that wait for whoever polls; beyond it the oldest are discarded, and counted."""


@attrs.define(eq=False, repr=False)
class _Parcel:
    """
    A batch on its way to the subscriptions.
    """

    records: list[Record]
    revoked: set[str] = attrs.field(factory=set)
    """Modules that were detached meanwhile, by a callback."""


class Delivery:
    """
    Keeps records until they are taken, and brings them to subscriptions.

    Taking (`pop`, `take`) is safe in any thread; everything else is done under the
    collector's lock.

    Args:
        backlog: how many records may wait.
        wake: called when another thread has left something to report.

    Attributes:
        discarded: records that found the backlog full, per module.
        subscriptions: those that are not closed.
    """

    def __init__(self, backlog: int, wake: Callable[[], None]) -> None:
        self.discarded: Counter[str] = Counter()
        self.subscriptions: list[Subscription] = []
        self._backlog = backlog
        self._wake = wake
        self._pending: deque[Record] = deque()
        self._unsaid: Counter[str] = Counter()
        self._said = -FAILURE_INTERVAL_NS
        # Taking must not wait for an attach that is under way.
        self._lock = threading.Lock()
        self._parcels: deque[_Parcel] = deque()
        self._under_way: _Parcel | None = None
        self._reports: deque[Record] = deque()

    @property
    def waiting(self) -> int:
        """
        How many records wait to be taken.
        """
        return len(self._pending)

    def pop(self) -> Record | None:
        """
        Take the oldest record, or None.
        """
        with self._lock:
            if self._unsaid:
                self._say_discarded()
            return self._pending.popleft() if self._pending else None

    def take(self, limit: int | None = None) -> list[Record]:
        """
        Take the oldest records, all or no more than *limit*.
        """
        with self._lock:
            if self._unsaid:
                self._say_discarded()
            pending = self._pending
            if limit is None or limit >= len(pending):
                taken = list(pending)
                pending.clear()
                return taken
            return [pending.popleft() for _ in range(limit)]

    def queue(self, records: list[Record]) -> None:
        """
        Accept a batch.
        """
        while self._reports:
            records.append(self._reports.popleft())
        if not records:
            return
        if self.subscriptions:
            self._parcels.append(_Parcel(records))
        with self._lock:
            self._pending.extend(records)
            while len(self._pending) > self._backlog:
                module = self._pending.popleft().module
                self.discarded[module] += 1
                self._unsaid[module] += 1

    def _say_discarded(self) -> None:
        """
        Put in front what is missing there, for whoever comes to take: once a second.
        """
        now = monotonic_ns()
        if not self._pending or now - self._said < FAILURE_INTERVAL_NS:
            return
        self._said = now
        at = self._pending[0].time
        for module, count in self._unsaid.items():
            text = f"{count} records discarded, as {self._backlog} waited already: poll more often"
            self._pending.appendleft(Failure(at, module, "backlog", text))
        self._unsaid.clear()

    def report(self, records: Iterable[Record]) -> None:
        """
        Accept, from any thread, what there is to say about a consumer.
        """
        self._reports.extend(records)
        self._wake()

    def serve(self) -> None:
        """
        Bring what has come since the last time to the subscriptions.

        A callback that ends up here again changes nothing: the first call goes on
        with what it left.
        """
        if self._under_way is not None:
            return
        try:
            while self._parcels:
                parcel = self._under_way = self._parcels.popleft()
                reports: list[Record] = []
                for subscription in tuple(self.subscriptions):
                    reports += subscription.deliver(parcel.records, parcel.revoked)
                self.queue(reports)
        finally:
            self._under_way = None

    def withdraw(self, module: str, fresh: list[Record]) -> list[Record]:
        """
        Forget a module that leaves.

        Args:
            module: its name.
            fresh: what came last, of any module.

        Returns:
            The module's records that nobody has taken.
        """
        in_callback = self._under_way is not None
        for parcel in (*self._parcels, *([self._under_way] if self._under_way else ())):
            parcel.revoked.add(module)
        with self._lock:
            last = [record for record in self._pending if record.module == module]
            kept = [record for record in self._pending if record.module != module]
            self._pending = deque(kept)
        own = [record for record in fresh if record.module == module]
        if self.subscriptions and not in_callback:
            # One parcel, so that callbacks see everything in order.
            self._parcels.append(_Parcel(fresh))
            with self._lock:
                self._pending.extend(record for record in fresh if record.module != module)
        else:
            self.queue([record for record in fresh if record.module != module])
        return last + own

    def forget(self, subscription: Subscription) -> None:
        """
        Take a subscription off the list.
        """
        if subscription in self.subscriptions:
            self.subscriptions.remove(subscription)
