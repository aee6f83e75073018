# SPDX-License-Identifier: Apache-2.0
"""
Running a workload under a collector and sorting what was recorded by process.
"""

from __future__ import annotations

import subprocess
import threading
from collections import defaultdict
from time import monotonic
from typing import TYPE_CHECKING

from tests.support.emulation import fewer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kprobe_modules import Collector, Record

__all__ = ["by_pid", "record_until", "record_work", "record_workload"]

DEADLINE = float(fewer(60, 240))
"""Seconds: emulated guests are slow, and a test that gets here has failed."""


def record_until(collector: Collector, done: Callable[[], bool]) -> list[Record]:
    """
    Take records until *done*, then everything that has happened until then.
    """
    records: list[Record] = []
    deadline = monotonic() + DEADLINE
    while not done():
        assert monotonic() < deadline, f"not done after {DEADLINE} s"
        records += collector.poll(timeout=0.2)
    return records + collector.flush()


def record_work(collector: Collector, work: Callable[[], object]) -> list[Record]:
    """
    Have a thread do something; return what was recorded, or raise what went wrong there.
    """
    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again below
            failed.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    records = record_until(collector, lambda: not thread.is_alive())
    thread.join()
    if failed:
        raise failed[0]
    return records


def record_workload(collector: Collector, command: Sequence[str]) -> tuple[list[Record], str]:
    """
    Run a command to its end; return what was recorded and what it printed.
    """
    printed: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        # Its output outgrows a pipe before it ends.
        reader = threading.Thread(target=lambda: printed.append(process.stdout.read()))  # type: ignore[union-attr]
        reader.start()
        records = record_until(collector, lambda: process.poll() is not None)
        reader.join()
    assert process.returncode == 0
    return records, printed[0]


def by_pid(records: Iterable[Record], pids: Iterable[int]) -> dict[int, list[Record]]:
    """
    Sort records that have a ``pid`` among *pids* by it, keeping their order.
    """
    wanted = set(pids)
    found: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        pid = getattr(record, "pid", None)
        if pid in wanted:
            found[pid].append(record)
    return found
