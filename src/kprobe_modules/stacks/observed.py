# SPDX-License-Identifier: Apache-2.0
"""
Frames that are named once, where the process lives, and are the same when read again.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import attrs

from kprobe_modules.stacks.frame import Frame

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kprobe_modules.stacks.resolver import Resolver

__all__ = ["ObservedResolver"]


class ObservedResolver:
    """
    Names the frames of stacks through observations, as handlers read their surroundings.

    Args:
        observe: as `kprobe_modules.handler.Context.observe`.
        resolver: gives what does the naming, when there is something to name.
    """

    def __init__(
        self,
        observe: Callable[[str, Callable[[], bytes]], bytes],
        resolver: Callable[[], Resolver],
    ) -> None:
        self._observe = observe
        self._resolver = resolver

    def kernel(self, addresses: Sequence[int]) -> tuple[Frame, ...]:
        """
        Return the frames of a kernel stack, innermost first.
        """
        return self._named("stack kernel", addresses, lambda: self._resolver().kernel(addresses))

    def user(self, pid: int, addresses: Sequence[int]) -> tuple[Frame, ...]:
        """
        Return the frames of a stack of a process, innermost first.
        """
        what = f"stack {pid}"
        return self._named(what, addresses, lambda: self._resolver().user(pid, addresses))

    def _named(
        self, what: str, addresses: Sequence[int], name: Callable[[], tuple[Frame, ...]]
    ) -> tuple[Frame, ...]:
        try:
            raw = self._observe(what, lambda: _pack(name()))
        except OSError:
            # Nobody named them then, and the process is another one by now.
            return tuple(Frame("", address) for address in addresses)
        return tuple(Frame(*fields) for fields in json.loads(raw))


def _pack(frames: tuple[Frame, ...]) -> bytes:
    return json.dumps([attrs.astuple(frame) for frame in frames]).encode()
