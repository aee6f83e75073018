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
from contextlib import ExitStack, suppress
from time import monotonic_ns
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
        self._library = library
        self._clock = clock
        self._stack = ExitStack()
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
        os.eventfd_write(self._wake_fd, 1)

    def wait(self, timeout: float) -> None:
        """
        Wait for a watermark or for `wake`, no longer than *timeout* seconds.
        """
        events = self._epoll.poll(timeout)
        if any(fd == self._wake_fd for fd, _ in events):
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)

    def fence(self) -> None:
        """
        Run the fence on every CPU: none has anything older to come.
        """
        for cpu in self.rings.cpus:
            # A CPU that has just gone offline has nothing to come at all.
            with suppress(KernelError):
                test_run(self.common.fence_fd, cpu=cpu, library=self._library)

    def take(self, until: int, budget: int = DRAIN_BUDGET) -> Drained:
        """
        Take a bounded part of what is not newer than *until*, in order.

        Args:
            until: CLOCK_MONOTONIC in nanoseconds, not later than the last fence.
            budget: bytes.
        """
        drained = self.drainer.drain(until, time_offset=self._clock.offset, budget=budget)
        self.more = drained.more
        return drained

    def take_released(self) -> Drained | None:
        """
        Take what may be released now, fencing first; None when the rings are empty.
        """
        if self.more:
            # What the last fence released is not all taken yet.
            return self.take(self._released, STREAM_BUDGET)
        if not self.drainer.pending():
            return None
        self._released = monotonic_ns() - SLACK_NS
        self.fence()
        return self.take(self._released, STREAM_BUDGET)

    def crowded(self) -> bool:
        """
        Tell whether so much is waiting that a scan should let it drain.
        """
        return self.drainer.pending() > self.options.wakeup(self.options.pages) // 2

    def refresh(self) -> None:
        """
        Follow CPUs that came or went, and expire unclaimed payload.
        """
        self.rings.refresh()
        if self.channel is not None:
            self.channel.rings.refresh()
            self.channel.expire(monotonic_ns())

    def open_channel(self) -> None:
        """
        Open the data channel, unless it is open.
        """
        if self.channel is not None:
            return
        pages = self.options.data_pages
        fd = self.common.fd(DATA_CHANNEL)
        rings = open_perf_rings(fd, pages, self.options.wakeup(pages), self._library)
        self.channel = DataChannel(rings, self._clock)
        self.watch(rings.fileno())

    def close_channel(self) -> None:
        """
        Close the data channel, if it is open.
        """
        if self.channel is None:
            return
        self.unwatch(self.channel.rings.fileno())
        self.channel.close()
        self.channel = None

    def close(self) -> None:
        """
        Give all descriptors back.  Safe to call twice.
        """
        self.close_channel()
        self._stack.close()
