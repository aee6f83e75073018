# SPDX-License-Identifier: Apache-2.0
"""
Interleaved rounds: fill, drain, check, next consumer; and all over again.
"""

from __future__ import annotations

import random
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

import attrs

from tests.bench.generator import Generator
from tests.bench.peers import Peer, Seen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from tests.bench.workshop import Workshop

__all__ = ["Contender", "Laps", "Race", "WrongContentsError"]

PAGE = 4096


class WrongContentsError(Exception):
    """
    A consumer did not see what was written: its time means nothing.
    """


@attrs.frozen
class Contender:
    """
    One line of the comparison: a peer process (shared by equal *peer* names) in a mode.
    """

    name: str
    peer: str
    command: Sequence[str]
    mode: str
    environment: Mapping[str, str] = attrs.field(factory=dict)
    decodes: bool = True
    """Whether its checksum is to be compared."""


@attrs.frozen
class Laps:
    """
    Nanoseconds per event of one contender in one round.
    """

    cold: float
    warm: float


def _verify_count(contender: Contender, seen: Seen, expected: int) -> None:
    if seen.events != expected or seen.lost:
        msg = f"{contender.name}: {seen.events} events and {seen.lost} lost of {expected}"
        raise WrongContentsError(msg)


def _verify_contents(contender: Contender, seen: Seen, reference: Seen) -> None:
    problems = []
    if seen.malformed:
        problems.append(f"{seen.malformed} malformed or out of order")
    if seen.sequence != reference.sequence:
        problems.append(f"sequence sum {seen.sequence}, expected {reference.sequence}")
    # Those who hand out records sum the sequence only.
    if seen.checksum not in (0, reference.checksum):
        problems.append(f"checksum {seen.checksum}, expected {reference.checksum}")
    if problems:
        msg = f"{contender.name}: {'; '.join(problems)}"
        raise WrongContentsError(msg)


class Race:
    """
    Contenders with their rings open, all of *pages* pages per CPU.

    The first contender decodes everything: its sums are what others must have.
    """

    def __init__(
        self, workshop: Workshop, contenders: Sequence[Contender], pages: int, messages: int | None
    ) -> None:
        self._contenders = contenders
        processes = {contender.peer: contender for contender in contenders}
        with ExitStack() as stack:
            self._generator = stack.enter_context(Generator(workshop, len(processes)))
            self._count = messages or self._generator.capacity(pages * PAGE)
            self._peers: dict[str, tuple[int, Peer]] = {}
            for index, (name, contender) in enumerate(processes.items()):
                peer = Peer(
                    contender.command,
                    self._generator.events[index],
                    pages,
                    environment=contender.environment,
                    undisturbed=True,
                )
                self._peers[name] = (index, stack.enter_context(peer))
            self._stack = stack.pop_all()

    def round(self, turn: int) -> dict[str, Laps]:
        """
        Let everybody drain full rings, in an order of this round's own.

        Who ran before leaves the caches as he likes, so the first drain of each
        is cold; a second one warms them and the third is warm.

        Raises:
            WrongContentsError: somebody saw other messages than were written.
        """
        laps: dict[str, Laps] = {}
        sums: dict[str, Seen] = {}
        for contender in random.Random(turn).sample(self._contenders, len(self._contenders)):  # noqa: S311 - no secret
            cold, _, warm = (self._drain(contender, check=check) for check in (False, False, True))
            laps[contender.name] = Laps(cold.ns / cold.events, warm.ns / warm.events)
            sums[contender.name] = warm
        reference = sums[self._contenders[0].name]
        for contender in self._contenders:
            if contender.decodes:
                _verify_contents(contender, sums[contender.name], reference)
        return laps

    def _drain(self, contender: Contender, *, check: bool) -> Seen:
        index, peer = self._peers[contender.peer]
        written = self._generator.fill(index, self._count)
        if written.lost:
            msg = f"{written.lost} messages did not fit the ring"
            raise WrongContentsError(msg)
        seen = peer.drain(contender.mode, written.emitted, check=check)
        _verify_count(contender, seen, written.emitted)
        return seen

    def close(self) -> None:
        """
        End all processes; safe to call twice.
        """
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
