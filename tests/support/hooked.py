# SPDX-License-Identifier: Apache-2.0
"""
A module with real hooks, some of whose alternatives fail on purpose.
"""

from __future__ import annotations

import attrs

from kprobe_modules.api import Alternative, Handler, Hook, Manifest, Record

__all__ = ["MODULE", "HookedHandler", "Seen"]

REFUSED, KPROBE, RAW, END, LATE, EXISTING = range(1, 7)
"""The numbers of the programs, as in ``hooked.h``."""

STARTS = (KPROBE, RAW)
"""Those of which one is live, for a process that starts."""


@attrs.define
class Seen(Record, module="hooked"):
    """
    A process, and the program that saw it.
    """

    pid: int
    parent_pid: int
    how: int
    existing: bool
    number: int


class HookedHandler(Handler):
    """
    Records what came, and offers itself.
    """

    def attached(self) -> None:
        self.context.provide(self.context.name, self)

    def on_seen(
        self, time: int, pid: int, parent_pid: int, how: int, existing: int, number: int
    ) -> Record:
        return Seen(time, pid, parent_pid, how, bool(existing), number)


MODULE = Manifest(
    name="hooked",
    package="tests.bpf.objects",
    handler=HookedHandler,
    hooks=(
        Hook(
            "start",
            "START",
            (
                Alternative("start_refused", fields_missing=("seen.pid",)),
                "start_kprobe",
                Alternative("start_raw", fields_missing=("seen.number",), note="works everywhere"),
            ),
        ),
        Hook("end", "END", ("end_raw",)),
        Hook(
            "late",
            "TELEMETRY",
            ("late_raw",),
            awaits="km_test_module",
            fields_missing=("seen.existing",),
        ),
        Hook("existing", "EXISTING", ("existing_iter",)),
    ),
    records=(Seen,),
    summary="sees processes in several ways",
)
