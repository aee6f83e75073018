# SPDX-License-Identifier: Apache-2.0
"""
One daemon's socket: asks it, remembers how it is, and says so once when that changes.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final

from kprobe_modules.modules.containers.runtimes.inspection import NonsenseError, read_inspection
from kprobe_modules.modules.containers.runtimes.unixhttp import AbsentError, UnreachableError, get

if TYPE_CHECKING:
    from logging import Logger

    from kprobe_modules.modules.containers.runtimes.metadata import Metadata
    from kprobe_modules.modules.containers.runtimes.unixhttp import Exchanges

__all__ = ["Endpoint", "UnknownError"]

CONTAINER_ID: Final = re.compile(r"[0-9a-f]{64}")
ANSWER_SIZE: Final = 1 << 20
"""Bytes of an answer that are accepted; a few KiB are usual."""
PAUSE: Final = 0.5
PAUSE_MAX: Final = 30.0
"""Seconds without questions after a failure: doubled each time, up to that."""
NONSENSE_IN_A_ROW: Final = 3

_OK: Final = 200
_NOT_FOUND: Final = 404


class UnknownError(LookupError):
    """
    The daemon has no such container, or none any more.
    """


class Endpoint:
    """
    A daemon that speaks Docker's Engine API at a Unix socket.

    For use by one thread at a time, but for `paused_until`.
    """

    def __init__(
        self, runtime: str, path: str, *, uid: int | None = None, seconds: float, log: Logger
    ) -> None:
        self.runtime = runtime
        self.path = path
        self.paused_until = 0.0
        """On the monotonic clock; until then it is not asked."""
        self.trouble: str | None = None
        """Why it does not answer, or None: it does, or was never asked."""
        self._uid = uid
        self._seconds = seconds
        self._log = log
        self._pause = PAUSE
        self._nonsense = 0

    def __str__(self) -> str:
        return f"{self.runtime} at {self.path}"

    def inspect(
        self, container_id: str, exchanges: Exchanges, *, expected: bool = True
    ) -> Metadata:
        """
        Return what the daemon says of a container.

        Args:
            container_id: 64 hexadecimal digits.
            exchanges: knows the connection meanwhile.
            expected: whether the container is known to be this runtime's; else it is
                no trouble that there is no daemon.

        Raises:
            UnknownError: it does not know the container.
            UnreachableError: it does not answer; it is left alone for a while then.
            NonsenseError: its answer is none.
        """
        if not CONTAINER_ID.fullmatch(container_id):
            msg = f"{self}: expected an id of 64 hexadecimal digits, found {container_id[:80]!r}"
            raise UnknownError(msg)
        try:
            metadata = self._ask(container_id, exchanges)
        except AbsentError as error:
            if not expected:
                msg = f"{self}: {error}"
                raise UnknownError(msg) from None
            self._failed(str(error))
            raise
        except UnreachableError as error:
            self._failed(str(error))
            raise
        except NonsenseError as error:
            self._spoke_nonsense(str(error))
            raise
        except UnknownError:
            self._answered()
            raise
        self._answered()
        return metadata

    def _ask(self, container_id: str, exchanges: Exchanges) -> Metadata:
        reply = get(
            self.path,
            f"/containers/{container_id}/json",
            seconds=self._seconds,
            limit=ANSWER_SIZE,
            exchanges=exchanges,
            uid=self._uid,
        )
        if reply.status == _NOT_FOUND:
            msg = f"{self}: no such container"
            raise UnknownError(msg)
        if reply.status != _OK:
            msg = f"{self}: expected status 200 or 404, found {reply.status}: {reply.body[:120]!r}"
            raise NonsenseError(msg)
        if len(reply.body) > ANSWER_SIZE:
            msg = f"{self}: expected at most {ANSWER_SIZE} bytes, found more"
            raise NonsenseError(msg)
        try:
            return read_inspection(reply.body, container_id)
        except NonsenseError as error:
            msg = f"{self}: {error}"
            raise NonsenseError(msg) from None

    # -- how it is ----------------------------------------------------------

    def _answered(self) -> None:
        self._pause = PAUSE
        self._nonsense = 0
        if self.trouble is not None:
            self.trouble = None
            self._log.info("%s answers again", self)

    def _failed(self, reason: str) -> None:
        self.paused_until = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, PAUSE_MAX)
        self._note(reason)

    def _spoke_nonsense(self, reason: str) -> None:
        # Some of it may be about one container only.
        self._nonsense += 1
        if self._nonsense >= NONSENSE_IN_A_ROW:
            self._note(reason)

    def _note(self, reason: str) -> None:
        first = self.trouble is None
        self.trouble = reason
        if first:
            self._log.warning(
                "%s does not answer: %s; containers go without metadata meanwhile", self, reason
            )
