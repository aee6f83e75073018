# SPDX-License-Identifier: Apache-2.0
"""
How much of everything a run does: enough for a median, or as little as works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Effort"]


@attrs.frozen
class Effort:
    """
    Every part takes one of these; the defaults are what ``make bench`` does.
    """

    scratch: Path
    """Where logs and captured output go."""
    rounds: int = 15
    """Of each comparison; one more goes first and is thrown away."""
    sizes: tuple[int, ...] = (64, 1024)
    """Pages of ring per CPU: what libbpf's examples open, and a large ring."""
    messages: int | None = None
    """Per CPU and fill; None means as many as the ring holds."""
    seconds: float = 2.0
    """How long a steady rate, or an idle collector, is watched."""
    drains: int = 101
    """How many single events are drained."""
    loops: int = 1000
    """Forks and execs, connections, MiB or datagrams per measurement."""
    starts: int = 15
    """How often each watcher of that loop is started; rounds are spread over them."""
    progress: Callable[[str], None] = lambda _: None
