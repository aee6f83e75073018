# SPDX-License-Identifier: Apache-2.0
"""
Interleaved rounds: fill, drain, check, next consumer; and all over again.
"""

from __future__ import annotations

import random
from contextlib import ExitStack
from typing import TYPE_CHECKING

import attrs

from tests.bench.generator import Generator
from tests.bench.peers import Peer, Seen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.bench.effort import Effort
    from tests.bench.workshop import Workshop

__all__ = ["Contender", "WrongContentsError", "race"]

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


def race(
    workshop: Workshop,
    contenders: Sequence[Contender],
    pages: int,
    effort: Effort,
) -> dict[str, list[float]]:
    """
    Let each contender drain full rings of *pages* pages, round by round.

    The first contender decodes everything: its sums are what others must have.

    Returns:
        nanoseconds per event, a value per round, by contender name.

    Raises:
        WrongContentsError: somebody saw other messages than were written.
    """
    processes = {contender.peer: contender for contender in contenders}
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    with ExitStack() as stack:
        generator = stack.enter_context(Generator(workshop, len(processes)))
        count = effort.messages or generator.capacity(pages * PAGE)
        peers = {}
        for index, (name, contender) in enumerate(processes.items()):
            peer = Peer(
                contender.command,
                generator.events[index],
                pages,
                environment=contender.environment,
                undisturbed=True,
            )
            peers[name] = (index, stack.enter_context(peer))
        for turn in range(effort.rounds + 1):
            seen: dict[str, Seen] = {}
            # In another order each round: who ran before leaves the caches as he likes.
            order = random.Random(turn).sample(contenders, len(contenders))  # noqa: S311 - no secret
            for contender in order:
                index, peer = peers[contender.peer]
                written = generator.fill(index, count)
                if written.lost:
                    msg = f"{written.lost} messages did not fit the ring"
                    raise WrongContentsError(msg)
                seen[contender.name] = peer.drain(contender.mode, written.emitted)
                _verify_count(contender, seen[contender.name], written.emitted)
            reference = seen[contenders[0].name]
            for contender in contenders:
                if contender.decodes:
                    _verify_contents(contender, seen[contender.name], reference)
                if turn:
                    took = seen[contender.name]
                    times[contender.name].append(took.ns / took.events)
            effort.progress(f"{pages} pages: round {turn} of {effort.rounds}")
    return times
