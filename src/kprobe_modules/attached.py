# SPDX-License-Identifier: Apache-2.0
"""
One module while it is attached: what the collector keeps about it.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from kprobe_modules.byfields import ByFields
from kprobe_modules.libbpf import Link
from kprobe_modules.losses import COUNTERS_MAP, LOG_STATE_MAP, LossCounters, SuppressedLogs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from kprobe_modules.dispatch import Binding
    from kprobe_modules.hooks import Choice
    from kprobe_modules.libbpf import Library
    from kprobe_modules.loader import Closeable, LoadedModule
    from kprobe_modules.manifest import Alternative, Manifest

__all__ = ["AttachedModule", "ModuleStatus"]


@attrs.frozen(eq=False, repr=False)
class ModuleStatus(ByFields):
    """
    What is live of a module on this kernel.
    """

    name: str
    version: str
    choices: tuple[Choice, ...]

    @property
    def live(self) -> dict[str, str]:
        """
        Hook name to the attach point that is live.
        """
        return {
            choice.hook.name: choice.attach_point for choice in self.choices if choice.alternative
        }

    @property
    def missing(self) -> tuple[str, ...]:
        """
        Record fields that cannot be filled, as ``record.field``.
        """
        return tuple(sorted({name for choice in self.choices for name in choice.fields_missing}))

    @property
    def waiting(self) -> tuple[str, ...]:
        """
        Hooks that wait for a kernel module to be loaded.
        """
        return tuple(choice.hook.name for choice in self.choices if choice.waiting)


class AttachedModule:
    """
    A live module: object and links, handler, counters.
    """

    def __init__(
        self, loaded: LoadedModule, binding: Binding, library: Library, live: dict[str, str]
    ) -> None:
        self.loaded = loaded
        self.binding = binding
        spec = loaded.plan.spec
        own = {item.name for item in spec.maps}

        def fd(name: str) -> int | None:
            return loaded.map_fd(name) if name in own else None

        self.losses = LossCounters(spec, fd(COUNTERS_MAP), library)
        self.logs = SuppressedLogs(fd(LOG_STATE_MAP), library)
        self.live = live
        """Hook name to the program that is live; the handler sees the same object."""
        self.resync_wanted = False
        self.resynced_at = 0
        self.next_tick = 0
        self.note_live()

    @property
    def manifest(self) -> Manifest:
        """
        The module's manifest.
        """
        return self.loaded.plan.manifest

    @property
    def status(self) -> ModuleStatus:
        """
        What is live now.
        """
        return ModuleStatus(self.manifest.name, self.manifest.version, self.loaded.choices)

    def note_live(self) -> None:
        """
        Bring `live` up to date.
        """
        self.live.clear()
        for choice in self.loaded.choices:
            if choice.alternative is not None:
                self.live[choice.hook.name] = choice.alternative.name

    def scan(
        self,
        step: int,
        drain: Callable[[], None],
        ask: Callable[[str], None],
    ) -> None:
        """
        Make everything that exists report itself.

        Args:
            step: how many entities an iterator reports at a time.
            drain: called between steps, so that no ring fills up.
            ask: asks the handler what it finds by itself, for the hook of that name.
        """
        for choice in self.loaded.choices:
            alternative = choice.alternative
            if choice.hook.tag != "EXISTING" or alternative is None:
                continue
            handler = self.binding.handler
            if alternative.source:
                ask(choice.hook.name)
            elif choice.attach_point.startswith("iter/"):
                for surroundings in handler.surroundings(choice.hook.name):
                    with surroundings, self._links(alternative) as links:
                        self._iterate(links[-1], step, drain)
            else:
                with self._links(alternative):
                    handler.poke(choice.hook.name)
            drain()

    @contextmanager
    def _links(self, alternative: Alternative) -> Iterator[list[Closeable]]:
        """
        Attach for as long as a scan lasts.
        """
        with ExitStack() as stack:
            links = self.loaded.attach(alternative)
            for link in links:
                stack.callback(link.close)
            yield links

    def _iterate(self, link: Closeable, step: int, drain: Callable[[], None]) -> None:
        assert isinstance(link, Link)  # noqa: S101 - only links of iterators come here
        fd = link.create_iter()
        try:
            # An entity that is reported writes one byte, and a short read makes the
            # kernel stop its walk after as many.
            while os.read(fd, step):
                drain()
        finally:
            os.close(fd)

    def counts(self, received: Mapping[str, Mapping[int, int]]) -> dict[str, Any]:
        """
        Return totals: emitted, received and lost, and the same per message; runs that were missed.
        """
        messages: dict[str, dict[str, int]] = {}
        for count in self.losses.read():
            entry = messages.setdefault(count.message, {"emitted": 0, "received": 0, "lost": 0})
            entry["emitted"] += count.emitted
            entry["lost"] += count.lost
        for name, by_cpu in received.items():
            if by_cpu:
                entry = messages.setdefault(name, {"emitted": 0, "received": 0, "lost": 0})
                entry["received"] += sum(by_cpu.values())
        totals = {
            what: sum(entry[what] for entry in messages.values())
            for what in ("emitted", "received", "lost")
        }
        suppressed = sum(self.logs.read().values())
        return {
            **totals,
            "missed": self.loaded.missed_runs().total(),
            "suppressed": suppressed,
            "late": self.binding.late,
            "handler_time": self.binding.handler_time,
            "messages": messages,
        }
