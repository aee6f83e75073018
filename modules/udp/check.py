# SPDX-License-Identifier: Apache-2.0
"""
Looking after sockets whose ends the kernel may not show.

Without kprobes and fentry the end of a socket is the free of its memory, and the kernel
frees some without saying so.  So each address in ``udp_open_sockets`` is looked at now and
then, by ``check_open`` (``traffic.h`` says how it tells that a socket is gone).
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from kprobe_modules.api import run_program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kprobe_modules.api import Context

__all__ = ["INTERVAL_NS", "OpenCheck"]

INTERVAL_NS = 3_000_000_000
"""From one look at all sockets to the next.  What is gone is told of at the second one."""

_BLIND = "end_slab_btf"
"""The alternative of the hook ``end`` that may not see an end."""

_AT_ONCE = 12
"""``KM_UDP_CHECKED``: how many addresses one run of ``check_open`` takes."""

_RUNS = 48
"""Of which there are so many in a tick at most: a millisecond or two."""

_ARGUMENTS = 8 * _AT_ONCE


class OpenCheck:
    """
    Has the kernel look at the sockets that it has, at some of them in each tick.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._left: Iterator[bytes] | None = None
        """What is still to be looked at, of the look that is under way."""
        self._next = 0
        """When the next one is due."""

    def tick(self, now: int) -> None:
        """
        Go on looking; what is gone is told of in the rings.

        Args:
            now: nanoseconds since the epoch.

        Raises:
            KernelError: when the program does not run.
        """
        if self._context.live.get("end") != _BLIND:
            return
        if self._left is None:
            if now < self._next:
                return
            self._next = now + INTERVAL_NS
            self._left = iter(self._context.map("udp_open_sockets").keys())
        for _ in range(_RUNS):
            addresses = b"".join(islice(self._left, _AT_ONCE))
            if not addresses:
                self._left = None
                return
            self._look(addresses)

    def _look(self, addresses: bytes) -> None:
        fd = self._context.program_fd
        arguments = addresses.ljust(_ARGUMENTS, b"\0")
        self._context.observe(
            "check_open",
            lambda: run_program(fd("check_open"), context=arguments).to_bytes(4, "little"),
        )
