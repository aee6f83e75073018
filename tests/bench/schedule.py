# SPDX-License-Identifier: Apache-2.0
"""
Where a measured process runs, and how little it is disturbed there.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CONSUMER_CPU", "PRODUCER_CPU", "scheduled"]

CONSUMER_CPU = 0
"""Where whatever reads rings runs."""

PRODUCER_CPU = min(1, max(os.sched_getaffinity(0)))
"""Where whatever fills them runs: another one, if there is another one."""


@contextmanager
def scheduled(cpu: int | None = None, *, undisturbed: bool = True) -> Iterator[None]:
    """
    What is started within inherits this, with all the threads of its runtime.

    On one *cpu* if given; ahead of ordinary processes if *undisturbed*, because
    being put aside once turns a tenth of a millisecond into ten.
    """
    before = os.sched_getaffinity(0)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    try:
        if undisturbed:
            # Containers may be refused real-time scheduling; then there is more noise.
            with suppress(PermissionError):
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, before)
