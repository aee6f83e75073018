# SPDX-License-Identifier: Apache-2.0
"""
Processes that start and end in every way there is, and the truth about them.

The truth comes from the workload itself (fork, waitpid, /proc), which knows
nothing of BPF.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from tests.support.compiled import compiled
from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Process", "build", "churn_command", "read_truth"]

SOURCE = Path(__file__).with_name("churn.c")


@attrs.frozen
class Process:
    """
    What the workload knows of one of its processes.
    """

    index: int
    kind: str
    pid: int
    parent_pid: int
    exit_code: int
    signal: int
    born: int
    """CLOCK_MONOTONIC in ns, just before it was forked."""
    died: int
    """The same, once it was seen dead."""
    ticks: int
    """Start time as /proc/PID/stat has it."""

    @property
    def execs(self) -> list[list[str]]:
        """
        The argument vectors that it executed, in order.
        """
        times = {"exec": 1, "exec_chain": 3, "exec_thread": 1}.get(self.kind, 0)
        return [self._argv(left) for left in reversed(range(times))]

    def _argv(self, left: int) -> list[str]:
        padded = f"--of={self.index:040d}"
        return ["churn-exec", str(self.index), str(left), padded, "", "two words"]

    @property
    def renamed(self) -> str | None:
        """
        The name it gave itself, if it did.
        """
        return f"churned-{self.index}" if self.kind == "rename" else None


def build() -> Path:
    """
    Return the workload's program.
    """
    compiler = needs.command("cc", "gcc")
    return compiled([compiler, "-O2", "-static", "-pthread"], [SOURCE])


def churn_command(count: int, pause_us: int = 0) -> list[str]:
    """
    Return the command that makes *count* processes, pausing between them.
    """
    return [str(build()), str(count), str(pause_us)]


def read_truth(output: str) -> Sequence[Process]:
    """
    Parse what the workload said.
    """
    return [Process(**json.loads(line)) for line in output.splitlines()]
