# SPDX-License-Identifier: Apache-2.0
"""
A small workload of translated connections, for captures: each record that the nat module has
by itself comes of it.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

import attrs

from tests.support.nat import VIRTUAL, Translator, translating
from tests.support.watch import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kprobe_modules import Collector
    from kprobe_modules.capture.steps import Observation

__all__ = ["NatWorkload", "nat_workload"]

CONNTRACK_ID = struct.Struct("<Q")
"""What ``struct km_nat_seen`` begins with."""


@contextmanager
def nat_workload() -> Iterator[NatWorkload]:
    """
    Make what is to be there before the module is.
    """
    with translating() as translator:
        translator.connect(VIRTUAL[socket.AF_INET], 80, "tcp")
        translator.connect(VIRTUAL[socket.AF_INET6], 80, "tcp6", family=socket.AF_INET6)
        translator.flows()
        yield NatWorkload(translator)


class NatWorkload:
    """
    What is translated and forgotten, step by step.
    """

    def __init__(self, translator: Translator) -> None:
        self._translator = translator
        self._ids: set[object] = set()
        self._told: Counter[str] = Counter()

    def run(self, collector: Collector) -> None:
        """
        Do everything.
        """
        collector.attach("nat")
        self._translator.everything()
        self._translator.insert()
        count = len(self._translator.flows())
        self._until(collector, "nat_translated", count)
        collector.resync("nat")
        self._translator.close()
        self._translator.forget()
        self._until(collector, "nat_ended", count)

    def _until(self, collector: Collector, name: str, count: int) -> None:
        deadline = monotonic() + DEADLINE
        while self._told[name] < count:
            assert monotonic() < deadline, f"of {count} {name} there are {self._told[name]}"
            for record in collector.poll(timeout=0.2):
                if getattr(record, "netns", None) == self._translator.near.inode:
                    self._told[record.record] += 1

    # -- what of a capture is about it ------------------------------------------

    def row(self, fields: Mapping[str, object]) -> bool:
        """
        Tell whether a message is about it.
        """
        if fields["netns"] == self._translator.near.inode:
            self._ids.add(fields["conntrack_id"])
        return fields["conntrack_id"] in self._ids

    def observation(self, each: Observation) -> Observation:
        """
        Return an observation, in which the table of connections has no others.
        """
        if each.what.startswith("lookup seen_conntracks") and isinstance(each.seen, bytes):
            # A byte and a length come before the value.
            is_kept = each.seen and CONNTRACK_ID.unpack_from(each.seen, 5)[0] in self._ids
            return each if is_kept else attrs.evolve(each, seen=b"")
        return each
