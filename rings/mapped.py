# SPDX-License-Identifier: Apache-2.0
"""
What owns a ring's descriptor and mapping, and what owns an epoll over rings.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import sys
from typing import TYPE_CHECKING

from kprobe_modules.rings.twin import Drainer

from kprobe_modules.errors import RingError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from kprobe_modules.rings.framing import Framing

__all__ = ["MappedRing", "RingSet"]


class MappedRing:
    """
    A descriptor and the mappings of the ring behind it.

    Args:
        fd: the descriptor.
        own: close it together with the ring.
    """

    def __init__(self, fd: int, *, own: bool) -> None:
        self._fd = fd
        self._own = own
        self._maps: list[mmap.mmap] = []

    def _map(self, length: int, *, writable: bool, offset: int = 0) -> mmap.mmap:
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        # Before 3.13 a mapping always keeps a duplicate of the descriptor.
        keep: dict[str, bool] = {} if sys.version_info < (3, 13) else {"trackfd": False}
        try:
            mapped = mmap.mmap(self._fd, length, mmap.MAP_SHARED, access, offset=offset, **keep)
        except (OSError, ValueError) as error:
            message = f"ring: {length} bytes cannot be mapped: {error}"
            raised = RingError(message)
            raised.errno = getattr(error, "errno", None)
            raise raised from error
        self._maps.append(mapped)
        return mapped

    def fileno(self) -> int:
        """
        Return the ring's descriptor.
        """
        return self._fd

    def close(self) -> None:
        """
        Unmap the ring, and close its descriptor if it is owned. Closing twice is harmless.

        Raises:
            RingError: a drainer still uses the memory.
        """
        try:
            for mapped in self._maps:
                mapped.close()
        except BufferError:
            message = "ring: is still in a drainer, remove it there before closing"
            raise RingError(message) from None
        if self._own and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        """
        Return the ring itself.
        """
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """
        Close the ring.
        """
        self.close()


class RingSet:
    """
    A drainer and an epoll over the rings in it.

    Attributes:
        drainer: takes the records of all rings.
    """

    drainer: Drainer

    def __init__(self, framing: Framing) -> None:
        self.drainer = Drainer(framing)
        self._epoll = select.epoll()
        self._watched = 0

    def fileno(self) -> int:
        """
        Return the epoll's descriptor; it is readable when a ring asks to be drained.
        """
        return self._epoll.fileno()

    def _watch(self, fd: int) -> None:
        # Edge-triggered: a BPF ring buffer is "readable" whenever it holds
        # anything, and what is held back on purpose must not spin the waiter.
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        self._watched += 1

    def _unwatch(self, fd: int) -> None:
        with contextlib.suppress(OSError):
            self._epoll.unregister(fd)
        self._watched -= 1

    def wait(self, timeout: float) -> bool:
        """
        Sleep until a ring asks to be drained, at most *timeout* seconds.

        A ring asks when its watermark is passed, not for each record; below
        it, the timeout is what bounds the delay.

        Returns:
            True if a ring asked, or if anything is waiting when time is up.
        """
        events = self._epoll.poll(timeout, self._watched or 1)
        if not events:
            return self.drainer.pending() > 0
        if any(mask & (select.EPOLLHUP | select.EPOLLERR) for _, mask in events):
            self._hung_up()
        return True

    def _hung_up(self) -> None:
        """
        React to a ring whose source is gone.
        """

    def close(self) -> None:
        """
        Close the epoll. Closing twice is harmless.
        """
        self._epoll.close()

    def __enter__(self) -> Self:
        """
        Return the set itself.
        """
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """
        Close everything.
        """
        self.close()
