# SPDX-License-Identifier: Apache-2.0
"""
What the collector takes messages in through: common maps, rings, and the fence.

The fence is a program that does nothing.  Once it has run on a CPU, that CPU has
nothing older to write than the moment before, whether it was busy or idle; so what
is older may be released in the order of its time.
"""

from __future__ import annotations

import os
import select
import threading
from contextlib import ExitStack, suppress
from time import monotonic_ns, sleep
from typing import TYPE_CHECKING

from kprobe_modules.channel import DataChannel
from kprobe_modules.libbpf import KernelError, test_run
from kprobe_modules.maps import CommonMaps
from kprobe_modules.transport import PAGE, TRANSPORTS, RingOptions, open_bpf_rings, open_perf_rings

if TYPE_CHECKING:
    from kprobe_modules.clock import Clock
    from kprobe_modules.libbpf import Library
    from kprobe_modules.rings import BpfRings, Drained, Drainer, PerfRings

__all__ = ["DATA_CHANNEL", "SLACK_NS", "Intake"]

SLACK_NS = 50_000
"""What is younger than this at the fence waits for the next drain: a program may have
taken its time stamp and be interrupted, by the fence itself, before its output."""

DRAIN_BUDGET = 1 << 20
"""Bytes taken from the rings at a time, so that memory stays bounded."""

STREAM_BUDGET = 1 << 15
"""The same while records are handed out one by one: a few hundred live objects stay in
the cache, and creating a record costs half of what it costs among ten thousand."""

LARGEST_STEP = 128
"""Entities that a scan reports between two looks at the rings, where there is room."""

ROOM_PER_ENTITY = 1024
"""Bytes of a ring for each of them: a step must not fill one that is half full."""

DATA_CHANNEL = "data_channel"


class Intake:
    """
    Owns the common maps and the rings over them.

    Raises:
        LoadError, RingError, PrivilegeError: when the kernel refuses.
    """

    def __init__(self, options: RingOptions, library: Library, clock: Clock) -> None:
        self.options = options
        self.channel: DataChannel | None = None
        self.more = False
        """Whether the last drain left something that may be taken at once."""
        self._released = 0
        self.horizon = monotonic_ns()
        """CLOCK_MONOTONIC in ns: everything up to here has been handed out."""
        self._library = library
        self._clock = clock
        self._stack = ExitStack()
        self._idle = threading.Condition()
        self._sleepers: list[int] = []
        self._closing = False
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise

    def _open(self) -> None:
        options = self.options
        size = self._buffer_size() if options.transport == "ringbuf" else None
        self.common = self._stack.enter_context(CommonMaps(self._library, ring_bytes=size))
        events = self.common.fd("events")
        self.rings: PerfRings | BpfRings
        if size is not None:
            self.rings = open_bpf_rings(events, size)
        else:
            watermark = options.wakeup(options.pages)
            self.rings = open_perf_rings(events, options.pages, watermark, self._library)
        self._stack.callback(self.rings.close)
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stack.callback(os.close, self._wake_fd)
        self._epoll = self._stack.enter_context(select.epoll())
        self.watch(self._wake_fd)
        self.watch(self.rings.fileno())

    def _buffer_size(self) -> int:
        """
        Return the size of the one ring buffer that stands for all per-CPU rings.
        """
        wanted = self.options.pages * PAGE * (os.cpu_count() or 1)
        return 1 << (wanted - 1).bit_length()

    @property
    def constants(self) -> dict[str, int]:
        """
        The constants by which emit sites know the transport (bpf/km/emit.h).
        """
        return {
            "km_transport": TRANSPORTS[self.options.transport],
            "km_ring_wakeup": self.options.wakeup(self.options.pages),
        }

    @property
    def ring_memory(self) -> int:
        """
        Bytes of the perf rings; a BPF ring buffer is a map and accounted for as one.
        """
        options, cpus = self.options, len(self.rings.cpus)
        pages = options.pages + 1 if options.transport == "perf" else 0
        if self.channel is not None:
            pages += options.data_pages + 1
        return pages * PAGE * cpus

    @property
    def drainer(self) -> Drainer:
        """
        The reader of all rings of ``events``.
        """
        return self.rings.drainer

    def fileno(self) -> int:
        """
        Return a descriptor that is readable when a ring or `wake` asks for attention.
        """
        return self._epoll.fileno()

    def watch(self, fd: int) -> None:
        """
        Let `wait` end also when *fd* is readable.
        """
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """
        Forget a descriptor given to `watch`.
        """
        with suppress(OSError, ValueError):
            self._epoll.unregister(fd)

    def wake(self) -> None:
        """
        End a `wait` of another thread.
        """
        with self._idle:
            if not self._closing:
                os.eventfd_write(self._wake_fd, 1)

    def wait(self, timeout: float) -> None:
        """
        Wait for a watermark or for `wake`, no longer than *timeout* seconds.

        Any number of threads may; `close` ends them all.  What was waited for
        counts as noticed once `acknowledge` is called.
        """
        me = threading.get_ident()
        with self._idle:
            if self._closing:
                return
            self._sleepers.append(me)
        try:
            self._epoll.poll(timeout)
        except (OSError, ValueError):
            # A signal handler of this thread may have closed us meanwhile.
            if not self._closing:
                raise
        finally:
            with self._idle:
                self._sleepers.remove(me)
                self._idle.notify_all()

    def acknowledge(self) -> None:
        """
        Take note of every wake-up there was: the next one is about something new.

        Raises:
            RingError: when a CPU came or went and its ring cannot follow.
        """
        data = self.channel.rings if self.channel is not None else None
        for fd, _ in self._epoll.poll(0):
            if fd == self._wake_fd:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wake_fd)
            elif fd == self.rings.fileno():
                self.rings.wait(0)
            elif data is not None and fd == data.fileno():
                data.wait(0)

    def now(self) -> int:
        """
        Return the time of what the framework itself has to say, in ns since the epoch.

        It is that of the last thing handed out, so that records stay in order.
        """
        return self.horizon + self._clock.offset

    def fence(self) -> None:
        """
        Run the fence on every CPU: none has anything older to come.
        """
        for cpu in self.rings.cpus:
            # A CPU that has just gone offline has nothing to come at all.
            with suppress(KernelError):
                test_run(self.common.fence_fd, cpu=cpu, library=self._library)

    def settle(self, until: int) -> None:
        """
        Make sure that everything up to *until* (CLOCK_MONOTONIC, ns) is in the rings.
        """
        left = until + SLACK_NS - monotonic_ns()
        if left > 0:
            sleep(left / 1e9)
        self.fence()

    def take(self, until: int, budget: int = DRAIN_BUDGET) -> Drained:
        """
        Take a bounded part of what is not newer than *until*, in order.

        Args:
            until: CLOCK_MONOTONIC in nanoseconds, not later than the last fence.
            budget: bytes.
        """
        drained = self.drainer.drain(until, time_offset=self._clock.offset, budget=budget)
        self.more = drained.more
        self.horizon = max(self.horizon, drained.newest if drained.more else until)
        return drained

    def take_released(self) -> Drained | None:
        """
        Take what may be released now, fencing first; None when the rings are empty.
        """
        if self.more:
            # What the last fence released is not all taken yet.
            return self.take(self._released, STREAM_BUDGET)
        self._released = monotonic_ns() - SLACK_NS
        if not self.drainer.pending():
            self.horizon = max(self.horizon, self._released)
            return None
        self.fence()
        return self.take(self._released, STREAM_BUDGET)

    def crowded(self) -> bool:
        """
        Tell whether so much is waiting that a scan should let it drain.
        """
        return self.drainer.pending() > self.options.wakeup(self.options.pages) // 2

    @property
    def scan_step(self) -> int:
        """
        How many entities a scan may report between two looks at the rings.
        """
        return max(1, min(LARGEST_STEP, self.options.pages * PAGE // ROOM_PER_ENTITY))

    def refresh(self) -> None:
        """
        Follow CPUs that came or went, and expire unclaimed payload.
        """
        self.rings.refresh()
        if self.channel is not None:
            self.channel.expire(monotonic_ns())

    def open_channel(self) -> DataChannel:
        """
        Return the data channel, opening it for the first module that wants it.
        """
        if self.channel is None:
            pages = self.options.data_pages
            fd = self.common.fd(DATA_CHANNEL)
            rings = open_perf_rings(fd, pages, self.options.wakeup(pages), self._library)
            self.channel = DataChannel(rings, self._clock)
            self.watch(rings.fileno())
        return self.channel

    def leave_channel(self, module: int) -> None:
        """
        Forget a module's payload, and close the channel behind the last one.

        Args:
            module: the module's id; it may be one that never wanted the channel.
        """
        if self.channel is not None and not self.channel.forget(module):
            self._close_channel()

    def _close_channel(self) -> None:
        if self.channel is not None:
            self.unwatch(self.channel.rings.fileno())
            self.channel.close()
            self.channel = None

    def pull_channel(self, until: int) -> None:
        """
        Take payload up to *until* (CLOCK_MONOTONIC, ns) out of the rings of the data channel.
        """
        if self.channel is not None:
            self.channel.pull(until)

    def relieve_channel(self) -> None:
        """
        Do so when they are crowded; it is kept for the handlers, within bounds.
        """
        most = self.options.wakeup(self.options.data_pages)
        if self.channel is not None and self.channel.crowded(most):
            self.channel.pull(self.horizon)

    def close(self) -> None:
        """
        Give all descriptors back, once nobody waits any more.  Safe to call twice.
        """
        me = threading.get_ident()
        with self._idle:
            if self._closing:
                return
            # Nobody reads it from now on: all who wait see it.
            os.eventfd_write(self._wake_fd, 1)
            self._closing = True
            # A signal handler may have interrupted this thread's own wait.
            self._idle.wait_for(lambda: all(sleeper == me for sleeper in self._sleepers))
        self._close_channel()
        self._stack.close()
