# SPDX-License-Identifier: Apache-2.0
"""
Questions about containers that nobody waits for.

A question costs its caller a few microseconds; a few threads of this file do the waiting.
They start with the first question and end when there is none.  A socket is asked one thing at
a time, so that one that is slow holds one thread.  Every question that was taken is answered
once, if only with the reason why nothing is known.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
from kprobe_modules.modules.containers.runtimes.answers import Answer
from kprobe_modules.modules.containers.runtimes.endpoint import (
    CONTAINER_ID,
    Endpoint,
    UnknownError,
)
from kprobe_modules.modules.containers.runtimes.environment import NoProcessError, read_task
from kprobe_modules.modules.containers.runtimes.inspection import NonsenseError
from kprobe_modules.modules.containers.runtimes.unixhttp import Exchanges, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kprobe_modules.modules.containers.runtimes.metadata import Metadata

__all__ = ["SOCKETS", "Counts", "Enquiries", "Socket"]

UNKNOWN_ROUNDS: Final = 4
"""How often a container is asked for that no daemon knows: it may be about to, or gone."""
RETRY: Final = 0.1
RETRY_MAX: Final = 5.0
"""Seconds before a question is asked again: fourfold each time, up to that."""
IDLE: Final = 5.0
"""Seconds that a thread without questions stays."""
CACHED: Final = 1024
CACHED_FOR: Final = 300.0
"""Answers kept for another time, and seconds until they are too old."""
USER_ENDPOINTS: Final = 64
"""Rootless daemons known at a time."""


@attrs.frozen
class Socket:
    """
    Where a runtime's daemon listens.
    """

    runtime: str
    path: str
    """``{uid}`` in it stands for the user who runs a rootless container, and listens there."""


SOCKETS: Final = (
    Socket("docker", "/run/docker.sock"),
    Socket("podman", "/run/podman/podman.sock"),
    Socket("docker", "/run/user/{uid}/docker.sock"),
    Socket("podman", "/run/user/{uid}/podman/podman.sock"),
)
"""Where they listen unless somebody configured them otherwise."""


@attrs.define
class Counts:
    """
    How many of what there have been.  ``asked = answered + failed + under way``.
    """

    asked: int = 0
    refused: int = 0
    """Questions for which there was no room."""
    requests: int = 0
    """Requests to daemons, repetitions included."""
    answered: int = 0
    failed: int = 0
    cached: int = 0


@attrs.define(eq=False)
class _Question:
    """
    A question under way.
    """

    key: tuple[str, str | None, int | None]
    """Container id, runtime and user: a user can make a cgroup with any id in its name."""
    endpoints: list[Endpoint]
    procs: str | None
    due: float
    until: float
    cgroups: list[tuple[int, float]] = attrs.field(factory=list)
    """Ids of the cgroups that it is asked for, and when."""
    round: int = 0
    position: int = 0
    errors: list[str] = attrs.field(factory=list)
    """What was said in this round."""
    only_unknown: bool = True

    @property
    def container_id(self) -> str:
        return self.key[0]

    @property
    def runtime(self) -> str | None:
        return self.key[1]


class Enquiries:
    """
    Asks runtimes' daemons about containers, for one caller in one thread.

    Args:
        sockets: daemons to ask, in this order.
        limit: questions under way at most; more are refused.
        workers: threads at most.
        seconds: how long one request may take in all.
        patience: how long a question may take in all, retries included, in seconds.
        log: gets a line when a daemon stops answering, and one when it answers again.
        proc_root: where procfs is mounted.
    """

    def __init__(
        self,
        sockets: Sequence[Socket] = SOCKETS,
        *,
        limit: int = 2048,
        workers: int = 2,
        seconds: float = 5.0,
        patience: float = 30.0,
        log: logging.Logger | None = None,
        proc_root: Path = Path("/proc"),
    ) -> None:
        self.counts = Counts()
        self._sockets = tuple(sockets)
        self._limit = limit
        self._workers = workers
        self._seconds = seconds
        self._patience = patience
        self._log = log or logging.getLogger(__name__)
        self._proc_root = proc_root
        self._endpoints: OrderedDict[tuple[str, int | None], Endpoint] = OrderedDict()
        self._changed = threading.Condition()
        # All that follows is only touched with the condition's lock.
        self._questions: dict[tuple[str, str | None, int | None], _Question] = {}
        self._promised = 0
        """Answers that are to come to these."""
        self._full = False
        self._waiting: list[_Question] = []
        self._busy: set[Endpoint] = set()
        self._answers: list[Answer] = []
        self._cache: OrderedDict[tuple[object, int], tuple[float, Metadata, str]] = OrderedDict()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._closing = False
        self._exchanges = Exchanges()

    # -- for the caller -----------------------------------------------------

    def ask(
        self,
        container_id: str,
        runtime: str | None,
        cgroup_id: int,
        *,
        uid: int | None = None,
        procs: str | None = None,
    ) -> bool:
        """
        Ask about a container, best as soon as it starts: it may not last.

        Args:
            container_id: as `identify` found it.
            runtime: as `identify` found it; None asks every daemon of the host's.
            cgroup_id: comes back with the answer.  A container that was asked for with this
                cgroup before is answered from memory for a while.
            uid: the user who runs it, for a rootless runtime.
            procs: path of the ``cgroup.procs`` of a Nomad task's cgroup.

        Returns:
            Whether an answer will come: there is somebody to ask, and room to remember it
            (else `Counts.refused` goes up).
        """
        now = time.monotonic()
        with self._changed:
            if self._closing:
                return False
            key = (container_id, runtime, uid)
            question = self._questions.get(key)
            if question is None:
                endpoints = self._who(container_id, runtime, uid)
                procs = procs if runtime == "nomad" else None
                if not endpoints and procs is None:
                    return False
                question = _Question(key, endpoints, procs, due=now, until=now + self._patience)
            if not self._has_room():
                return False
            self.counts.asked += 1
            if not self._from_cache(question, cgroup_id, now):
                self._add(question, cgroup_id, now)
        return True

    def take(self, most: int | None = None) -> list[Answer]:
        """
        Return the answers that came and were not taken yet, and wait for none.

        Args:
            most: take no more than so many, the oldest.
        """
        with self._changed:
            taken = self._answers[:most]
            del self._answers[:most]
        return taken

    def under_way(self) -> int:
        """
        Return how many containers are being asked for.
        """
        with self._changed:
            return len(self._questions)

    def troubles(self) -> dict[str, str]:
        """
        Return who does not answer, and why.
        """
        with self._changed:
            return {
                str(known): known.trouble for known in self._endpoints.values() if known.trouble
            }

    def close(self, timeout: float = 1.0) -> None:
        """
        Stop asking, within *timeout* seconds; what was not answered is not.  Safe to call twice.
        """
        until = time.monotonic() + timeout
        with self._changed:
            self._closing = True
            self._waiting.clear()
            self._questions.clear()
            self._answers.clear()
            self._changed.notify_all()
            threads = list(self._threads)
        self._exchanges.cancel()
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        left = [thread.name for thread in threads if thread.is_alive()]
        if left:
            self._log.warning("still reading when closed: %s", ", ".join(left))

    # -- with the lock ------------------------------------------------------

    def _who(self, container_id: str, runtime: str | None, uid: int | None) -> list[Endpoint]:
        if not CONTAINER_ID.fullmatch(container_id):
            return []
        found = []
        for socket in self._sockets:
            rootless = "{uid}" in socket.path
            if runtime not in {None, socket.runtime} or rootless != (uid is not None and uid != 0):
                continue
            path = socket.path.replace("{uid}", str(uid)) if rootless else socket.path
            found.append(self._endpoint(socket.runtime, path, uid if rootless else None))
        return found

    def _endpoint(self, runtime: str, path: str, uid: int | None) -> Endpoint:
        key = (path, uid)
        endpoint = self._endpoints.get(key)
        if endpoint is None:
            endpoint = Endpoint(runtime, path, uid=uid, seconds=self._seconds, log=self._log)
            self._endpoints[key] = endpoint
            if len(self._endpoints) > USER_ENDPOINTS + len(self._sockets):
                self._endpoints.popitem(last=False)
        self._endpoints.move_to_end(key)
        return endpoint

    def _has_room(self) -> bool:
        """
        Tell whether there is room for another answer, and the log when there begins to be none.
        """
        if self._promised + len(self._answers) < self._limit:
            self._full = False
            return True
        self.counts.refused += 1
        if not self._full:
            self._full = True
            self._log.warning(
                "%d containers are being asked for; others go without metadata meanwhile",
                self._limit,
            )
        return False

    def _add(self, question: _Question, cgroup_id: int, now: float) -> None:
        self._promised += 1
        question.cgroups.append((cgroup_id, now))
        if question.key not in self._questions:
            self._questions[question.key] = question
            self._waiting.append(question)
            self._call_worker()

    def _from_cache(self, question: _Question, cgroup_id: int, now: float) -> bool:
        known = self._cache.get((question.key, cgroup_id))
        if known is None or now - known[0] > CACHED_FOR:
            return False
        _, metadata, source = known
        self.counts.cached += 1
        self.counts.answered += 1
        self._answers.append(
            Answer(question.container_id, question.runtime, cgroup_id, metadata, source, None, 0.0)
        )
        return True

    def _call_worker(self) -> None:
        """
        See to it that somebody minds the questions that wait.
        """
        if len(self._waiting) > self._idle and len(self._threads) < self._workers:
            thread = threading.Thread(target=self._work, name="enquiries", daemon=True)
            self._threads.add(thread)
            thread.start()
        else:
            self._changed.notify()

    def _finish(self, question: _Question, metadata: Metadata | None, source: str | None) -> None:
        now = time.monotonic()
        error = None
        if metadata is None:
            error = "; ".join(question.errors) or "nobody was asked"
        self._questions.pop(question.key, None)
        self._promised -= len(question.cgroups)
        for cgroup_id, asked in question.cgroups:
            if metadata is not None and source is not None:
                self.counts.answered += 1
                self._cache[question.key, cgroup_id] = (now, metadata, source)
            else:
                self.counts.failed += 1
            self._answers.append(
                Answer(
                    question.container_id, question.runtime, cgroup_id, metadata, source, error,
                    now - asked,
                )
            )  # fmt: skip
        while len(self._cache) > CACHED:
            self._cache.popitem(last=False)

    def _next(self, now: float) -> _Question | None:
        """
        Take the question that has been due longest and whose daemon is free.
        """
        ready = [
            question
            for question in self._waiting
            if question.due <= now and self._asks(question) not in self._busy
        ]
        if not ready:
            return None
        question = min(ready, key=lambda question: question.due)
        self._waiting.remove(question)
        return question

    @staticmethod
    def _asks(question: _Question) -> Endpoint | None:
        return question.endpoints[question.position] if question.endpoints else None

    def _step(self, question: _Question, now: float) -> None:
        """
        Go on after an error: to the next daemon, to another round later, or to the end.
        """
        question.position += 1
        if question.position < len(question.endpoints):
            question.due = now
            self._waiting.append(question)
            return
        question.round += 1
        question.position = 0
        delay = min(RETRY * 4 ** (question.round - 1), RETRY_MAX)
        pauses = [endpoint.paused_until for endpoint in question.endpoints]
        due = max(now + delay, min(pauses, default=0.0))
        gone = question.only_unknown and question.round >= UNKNOWN_ROUNDS
        if gone or due > question.until:
            self._finish(question, None, None)
            return
        question.due = due
        question.errors.clear()
        question.only_unknown = True
        self._waiting.append(question)

    # -- in a thread --------------------------------------------------------

    def _work(self) -> None:
        try:
            while (question := self._wait()) is not None:
                self._pursue(question)
        finally:
            with self._changed:
                self._threads.discard(threading.current_thread())

    def _wait(self) -> _Question | None:
        """
        Return a question to pursue; None when this thread is not needed any more.
        """
        idle_until = time.monotonic() + IDLE
        with self._changed:
            while not self._closing:
                now = time.monotonic()
                question = self._next(now)
                if question is not None:
                    endpoint = self._asks(question)
                    if endpoint is not None:
                        self._busy.add(endpoint)
                    if self._waiting:
                        self._call_worker()  # for these, should this one take long
                    return question
                later = [question.due for question in self._waiting if question.due > now]
                if not self._waiting and now >= idle_until:
                    break
                # What is due already waits for a daemon that is busy: then somebody notifies.
                until = min(later, default=idle_until if not self._waiting else now + IDLE)
                self._idle += 1
                self._changed.wait(until - now)
                self._idle -= 1
            # Nobody may count on this thread any more.
            self._threads.discard(threading.current_thread())
        return None

    def _pursue(self, question: _Question) -> None:
        endpoint = self._asks(question)
        metadata, source, error, unknown = None, None, "", False
        try:
            metadata, source = self._answer(question, endpoint)
        except (UnknownError, NoProcessError) as raised:
            error, unknown = str(raised), True
        except UnreachableError as raised:
            error = f"{endpoint}: {raised}"
        except NonsenseError as raised:
            error = str(raised)
        except Exception as raised:  # noqa: BLE001 - reported with its traceback
            # A mistake of ours: it must not end the thread, nor the question without a word.
            self._log.exception("asking about %s", question.container_id)
            error = f"{type(raised).__name__}: {raised}"
        with self._changed:
            if endpoint is not None:
                self._busy.discard(endpoint)
            if self._closing:
                return
            if metadata is not None:
                self._finish(question, metadata, source)
            else:
                question.errors.append(error)
                question.only_unknown = question.only_unknown and unknown
                self._step(question, time.monotonic())
            self._changed.notify_all()

    def _answer(self, question: _Question, endpoint: Endpoint | None) -> tuple[Metadata, str]:
        if endpoint is None:
            procs = question.procs or ""
            return read_task(question.container_id, procs, self._proc_root), procs
        if time.monotonic() < endpoint.paused_until and endpoint.trouble is not None:
            raise UnreachableError(endpoint.trouble)
        with self._changed:
            self.counts.requests += 1
        expected = question.runtime is not None
        metadata = endpoint.inspect(question.container_id, self._exchanges, expected=expected)
        return metadata, str(endpoint)
