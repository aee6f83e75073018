# SPDX-License-Identifier: Apache-2.0
"""
Which queries are open, and which were a short while ago.

A query is found by where it came by (socket, role, peer), its number and its question.  So the two
legs of a resolver, which may have all but the socket in common, are two queries.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from operator import attrgetter
from typing import TypeAlias

import attrs

__all__ = ["OPEN_COUNT", "PAST_COUNT", "REMEMBERED_NS", "Asked", "Key", "Query", "QueryTable"]

OPEN_COUNT = 1 << 15
"""How many open queries are kept at most."""

PAST_COUNT = 1 << 13
"""How many are remembered that were answered or timed out."""

REMEMBERED_NS = 30_000_000_000
"""For how long these are, so that a further answer is known as such."""

_LATEST = 16
"""How many queries are looked at that differ in their question only."""

Key: TypeAlias = tuple[str, bytes, int, int]
"""Role, address and port of the peer, query id: within a socket."""

Asked: TypeAlias = tuple[str, int, int]
"""The question: name in lower case, type, class."""

Said: TypeAlias = tuple[
    int, int | None, int | None, int | None, int, str, str, int, str, int, str, str, int,
    str, str | None, str | None, str | None,
]  # fmt: skip
"""The fields that every record about a query has, but for the time."""


@attrs.define(eq=False)
class Query:
    """
    A query that was sent or received.
    """

    socket_id: int
    """The socket it came by, as the kernel half numbers them."""
    key: Key
    asked: Asked | None
    """None if it has no question."""
    time: int
    """When it came by, the last time."""
    said: Said
    """What was said of it then."""
    retries: int = 0
    answered: bool = False
    timed_out: bool = False


class QueryTable:
    """
    Queries by where they came by.

    Args:
        timeout: nanoseconds after which a query without an answer is expired; 0: never.

    Attributes:
        forgotten: open queries that had to make room for others; answers to them are told as
            if the query was not seen.
    """

    def __init__(self, timeout: int) -> None:
        self.forgotten = 0
        self._timeout = timeout
        self._sockets: dict[int, dict[Key, dict[Asked | None, Query]]] = {}
        self._open: OrderedDict[Query, None] = OrderedDict()
        """By `Query.time`."""
        self._past: OrderedDict[Query, int] = OrderedDict()
        """By the time at which they were answered or timed out, which is the value."""

    def __len__(self) -> int:
        return len(self._open)

    def ask(self, time: int, socket_id: int, key: Key, asked: Asked | None, said: Said) -> Query:
        """
        Enter a query, in the place of one that it repeats.
        """
        query = Query(socket_id, key, asked, time, said)
        same = self._sockets.get(socket_id, {}).get(key, {}).get(asked)
        if same is not None:
            if not same.answered:
                query.retries = same.retries + 1
            self._remove(same)
        self._sockets.setdefault(socket_id, {}).setdefault(key, {})[asked] = query
        self._open[query] = None
        if len(self._open) > OPEN_COUNT:
            self._remove(next(iter(self._open)))
            self.forgotten += 1
        return query

    def find(self, socket_id: int, key: Key, asked: Asked | None) -> Query | None:
        """
        Return the query that a response belongs to.

        Args:
            socket_id: which the response came by.
            key: the same as the query's.
            asked: the question; None if the response has none, as some that refuse: then the
                last with its number is taken that is open, or else the last.
        """
        found = self._sockets.get(socket_id, {}).get(key, {})
        if asked is not None:
            return found.get(asked)
        latest = list(islice(reversed(found.values()), _LATEST))
        return next((query for query in latest if query in self._open), next(iter(latest), None))

    def answer(self, time: int, query: Query) -> None:
        """
        Note that a query was answered.
        """
        query.answered = True
        if query in self._open:
            self._to_past(time, query)

    def expired(self, time: int) -> list[Query]:
        """
        Return the queries that are not answered in time, once each; forget old ones.
        """
        while self._past and time - next(iter(self._past.values())) >= REMEMBERED_NS:
            self._remove(next(iter(self._past)))
        found: list[Query] = []
        while self._timeout and self._open:
            query = next(iter(self._open))
            if time - query.time < self._timeout:
                break
            query.timed_out = True
            self._to_past(time, query)
            found.append(query)
        return found

    def close(self, socket_id: int) -> list[Query]:
        """
        Forget the queries of a socket; return those that are open.
        """
        by_key = self._sockets.get(socket_id, {})
        queries = [query for by_question in by_key.values() for query in by_question.values()]
        unanswered = [query for query in queries if query in self._open]
        for query in queries:
            self._remove(query)
        return sorted(unanswered, key=attrgetter("time"))

    def _to_past(self, time: int, query: Query) -> None:
        del self._open[query]
        self._past[query] = time
        if len(self._past) > PAST_COUNT:
            self._remove(next(iter(self._past)))

    def _remove(self, query: Query) -> None:
        self._open.pop(query, None)
        self._past.pop(query, None)
        by_key = self._sockets[query.socket_id]
        del by_key[query.key][query.asked]
        if not by_key[query.key]:
            del by_key[query.key]
            if not by_key:
                del self._sockets[query.socket_id]
