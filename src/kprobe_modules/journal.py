# SPDX-License-Identifier: Apache-2.0
"""
What a collector tells of the lives of its handlers, as they are led.

Whatever reaches a handler is told here in the order in which it does: messages, time
that passes, scans, what its own sources say.  That is enough to lead the same life
again elsewhere (`kprobe_modules.capture`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from kprobe_modules.attached import AttachedModule
    from kprobe_modules.dispatch import Faults
    from kprobe_modules.handler import Context
    from kprobe_modules.records import Record, Stats

__all__ = ["Journal", "Told"]

Told = TypeVar("Told", bound="list[Record]")
"""A list of records of some class."""


class Journal:
    """
    Listens to one collector, under the collector's lock.  This one writes nothing down.
    """

    def opened(self, now: Callable[[], int], faults: Faults) -> None:
        """
        Begin with a collector.

        Args:
            now: the time of what the framework itself says, ns since the epoch.
            faults: counts what goes wrong.
        """

    def context(self, context: Context) -> Context:
        """
        Return the context to give to a handler, in place of this one.
        """
        return context

    def join(self, name: str, function: Callable[[], AttachedModule]) -> AttachedModule:
        """
        Let *function* make a module's handler and bring it up.

        Args:
            name: the module's.
            function: called once; what it raises goes on to the caller.
        """
        del name
        return function()

    def carry(
        self, kind: str, module: str, function: Callable[[], list[Record]], **facts: object
    ) -> list[Record]:
        """
        Let *function* give something to handlers, and return the records it made.

        Args:
            kind: ``drained``, ``tick``, ``source``, ``scan``, ``steady``, ``attached``
                or ``detached``.
            module: whose handler; empty for ``drained``, which is for all of them.
            function: called once; what it raises goes on to the caller.
            facts: what the handlers are given.
        """
        del kind, module, facts
        return function()

    def note(self, kind: str, module: str, **facts: object) -> None:
        """
        Note what concerns a module without being given to its handler.

        Args:
            kind: ``scanning``, ``live``, ``admitted`` or ``refused``.
            module: its name.
            facts: what there is to know.
        """

    def told(self, records: Told) -> Told:
        """
        Note records that the framework makes of itself, and return them.
        """
        return records

    def totals(self, stats: Stats) -> None:
        """
        Note totals that somebody asked for.
        """
