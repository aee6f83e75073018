# SPDX-License-Identifier: Apache-2.0
"""
A collector made from options, and waiting that signals and readers can end.
"""

from __future__ import annotations

import os
import select
import signal
from typing import TYPE_CHECKING, Any, Self

import attrs

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from kprobe_modules.collector import Collector
    from kprobe_modules.config import Options
    from kprobe_modules.headstart import Headstart
    from kprobe_modules.journal import Journal
    from kprobe_modules.registry import Registry

__all__ = ["Interrupts", "interval_of", "open_collector"]

DEFAULT_INTERVAL = 0.1


def interval_of(options: Options) -> float:
    """
    Return the seconds between drains of quiet rings.
    """
    return DEFAULT_INTERVAL if options.interval is None else options.interval


def open_collector(
    options: Options,
    registry: Registry,
    *,
    metrics: float | None = None,
    journal: Journal | None = None,
    headstart: Headstart | None = None,
) -> Collector:
    """
    Open a collector as the options say; nothing is attached yet.

    Args:
        options: what was asked for.
        registry: where modules are found.
        metrics: seconds between records of metrics; None for none.
        journal: is told what handlers are given; None for nobody.
        headstart: what was begun for the modules already; None for nothing.

    Raises:
        KprobeModulesError: a privilege, a feature or libbpf is missing.
    """
    from kprobe_modules.collector import Collector
    from kprobe_modules.transport import RingOptions

    given = {
        name: getattr(options, name)
        for name in ("transport", "pages", "data_pages", "watermark")
        if getattr(options, name) is not None
    }
    return Collector(
        rings=RingOptions(**given),
        interval=interval_of(options),
        chosen=options.hooks,
        registry=registry,
        metrics=metrics,
        journal=journal,
        headstart=headstart,
    )


@attrs.define(eq=False, repr=False)
class Interrupts:
    """
    Turns SIGINT and SIGTERM into a flag and a wake-up, while entered.

    The first signal asks for an orderly end; the second raises KeyboardInterrupt,
    for when the end does not come.

    Attributes:
        requested: whether a signal has come.
    """

    requested: bool = False
    _before: dict[int, Any] = attrs.field(factory=dict, init=False)
    _wake: int = attrs.field(default=-1, init=False)
    _wake_before: int = attrs.field(default=-1, init=False)

    def __enter__(self) -> Self:
        # Python retries a sleep that a signal interrupts (PEP 475); the byte that
        # arrives here ends it.
        self._wake, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(signal.set_wakeup_fd(self._wake_before))
        os.close(self._wake)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def wait(self, descriptor: int, timeout: float, output: int | None = None) -> None:
        """
        Sleep until the descriptor is readable, a signal comes, or the time is over.

        Args:
            descriptor: what becomes readable.
            timeout: seconds.
            output: a descriptor that we write to.

        Raises:
            BrokenPipeError: nobody reads the output any more.
        """
        if self.requested:
            return
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        waiting.register(self._wake, select.POLLIN)
        if output is not None:
            waiting.register(output, 0)  # errors are reported unasked
        for ready, events in waiting.poll(max(0.0, timeout) * 1000):
            if ready == output and events & (select.POLLERR | select.POLLHUP):
                raise BrokenPipeError
