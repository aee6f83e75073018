# SPDX-License-Identifier: Apache-2.0
"""
Callbacks: who wants which records, and what happens when they fail.

A callback runs in the thread that polls, unless it asks for its own.  Then a
bounded queue stands between, and a callback that stalls loses its own records,
counted, while everybody else's go on.
"""

from __future__ import annotations

import threading
from collections import deque
from time import perf_counter_ns
from typing import TYPE_CHECKING, Self

from kprobe_modules.dispatch import STALL_NS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from types import TracebackType

    from kprobe_modules.dispatch import Faults
    from kprobe_modules.records import Record

__all__ = ["Subscription"]


class Subscription:
    """
    One callback and what it wants.  Closing it ends it.

    Attributes:
        delivered: records the callback took.
        dropped: records that found a threaded subscription's queue full.
        errors: records at which the callback raised.
    """

    def __init__(
        self,
        callback: Callable[[Record], object],
        *,
        module: str | None,
        record: type[Record] | str | None,
        capacity: int | None,
        faults: Faults,
        forget: Callable[[Subscription], None],
        report: Callable[[Iterable[Record]], None],
    ) -> None:
        self._callback = callback
        self._module = module
        self._record = record
        self._faults = faults
        self._forget = forget
        self._report = report
        self._capacity = capacity
        self._queue: deque[Record] = deque()
        self._ready = threading.Condition()
        self._closed = False
        self._entered = 0
        self._left = 0
        """How many records entered the queue, and how many the callback is done with."""
        self._thread: threading.Thread | None = None
        self.delivered = 0
        self.dropped = 0
        self.errors = 0
        self.name = getattr(callback, "__qualname__", type(callback).__name__)
        if capacity is not None:
            self._thread = threading.Thread(
                target=self._run, name=f"kprobe-modules {self.name}", daemon=True
            )
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def wants(self, record: Record) -> bool:
        """
        Tell whether a record is for this subscription.
        """
        if self._module is not None and record.module != self._module:
            return False
        if self._record is None:
            return True
        if isinstance(self._record, str):
            return record.record == self._record
        return isinstance(record, self._record)

    def deliver(self, records: Iterable[Record], revoked: Collection[str] = ()) -> list[Record]:
        """
        Hand over the records it wants; return what there is to report about that.

        Args:
            records: in order.
            revoked: modules whose records are not to be handed over any more; it
                may grow meanwhile.
        """
        reports: list[Record] = []
        if self._capacity is not None:
            self._enqueue(
                record for record in records if self.wants(record) and record.module not in revoked
            )
            return reports
        for record in records:
            if self.wants(record) and not self._closed and record.module not in revoked:
                reports += self._call(record)
        return reports

    def _call(self, record: Record) -> list[Record]:
        where = f"subscription {self.name}"
        before = perf_counter_ns()
        try:
            self._callback(record)
        except Exception as error:  # noqa: BLE001 - a consumer's failure stays its own
            self.errors += 1
            return self._faults.failed(record.module, where, error)
        self.delivered += 1
        took = perf_counter_ns() - before
        return self._faults.stalled(record.module, where, took) if took > STALL_NS else []

    def _enqueue(self, records: Iterable[Record]) -> None:
        assert self._capacity is not None  # noqa: S101 - only threaded ones come here
        with self._ready:
            if self._closed:
                return
            for record in records:
                if len(self._queue) >= self._capacity:
                    self.dropped += 1
                else:
                    self._queue.append(record)
                    self._entered += 1
            self._ready.notify_all()

    def _run(self) -> None:
        while True:
            with self._ready:
                while not self._queue and not self._closed:
                    self._ready.wait()
                if not self._queue:
                    return
                record = self._queue.popleft()
            reports = self._call(record)
            with self._ready:
                self._left += 1
                self._ready.notify_all()
            if reports:
                self._report(reports)

    def settle(self, module: str, timeout: float = 1.0) -> int:
        """
        Let a thread of its own finish with the records of a module that was detached.

        Args:
            module: the module.
            timeout: seconds to wait; what a stalling callback has not taken by then
                is dropped.

        Returns:
            How many were dropped.
        """
        if self._thread is None:
            return 0
        with self._ready:
            mark = self._entered
            if self._thread is not threading.current_thread():
                self._ready.wait_for(lambda: self._left >= mark or self._closed, timeout)
            # What entered since belongs to whoever was attached since.
            old = max(0, len(self._queue) - (self._entered - mark))
            kept = deque(
                record
                for index, record in enumerate(self._queue)
                if index >= old or record.module != module
            )
            dropped = len(self._queue) - len(kept)
            self._queue = kept
            self._left += dropped
        self.dropped += dropped
        return dropped

    def close(self, timeout: float = 1.0) -> None:
        """
        End the subscription; a thread of its own first takes what is queued.

        Args:
            timeout: seconds to wait for that thread; one that stalls for longer is
                left behind as a daemon.
        """
        with self._ready:
            if self._closed:
                return
            self._closed = True
            self._ready.notify_all()
        self._forget(self)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
