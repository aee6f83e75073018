# SPDX-License-Identifier: Apache-2.0
"""
Messages per second of the parser of DNS messages, next to dnspython and dpkt, and of the handler.

Each reads the same queries and responses.  Ours makes text of all that is answered; the others keep
what they have read in objects, and are asked for nothing more.
"""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from socket import AF_INET, inet_aton
from time import perf_counter_ns
from typing import TYPE_CHECKING

from kprobe_modules.modules.dns import message
from kprobe_modules.modules.dns.handler import DnsHandler

from kprobe_modules.api import Context
from tests.bench.figures import Figure, Missing, Target, ratios
from tests.bench.rounds import WrongContentsError
from tests.bench.schedule import CONSUMER_CPU, scheduled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.bench.effort import Effort
    from tests.bench.workshop import Workshop

    Reader = Callable[[Sequence[bytes]], int]
    """Reads messages and returns how many answers they have."""

__all__ = ["measure"]

NAMES = 1009
"""Each is asked for once, and answered."""


def _answers(name: str, number: int) -> list[tuple[str, str, tuple[str, ...]]]:
    """
    Return what is answered to one query of eight kinds: owner, type, values.

    None is HTTPS, which dpkt refuses.
    """
    far = f"edge-{number % 7}.cdn.example.net."
    return [
        [(name, "A", ("192.0.2.1",))],
        [(name, "AAAA", ("2001:db8::1", "2001:db8::2"))],
        [(name, "CNAME", (far,)), (far, "A", ("192.0.2.1", "192.0.2.2", "192.0.2.3"))],
        [],
        [(name, "A", tuple(f"192.0.2.{last}" for last in range(1, 11)))],
        [(name, "MX", (f"10 mx1.{name}", f"20 mx2.{name}"))],
        [(name, "TXT", ('"v=spf1 include:_spf.example.net -all"', f'"{"x" * 200}"'))],
        [(name, "SRV", (f"0 5 5060 sip.{name}",))],
    ][number % 8]


def corpus(count: int) -> list[bytes]:
    """
    Return queries for *count* names, each followed by its response.
    """
    import dns.message
    import dns.rrset

    soa = "ns1.example.org. hostmaster.example.org. 2026010100 7200 3600 1209600 300"
    made = []
    for number in range(count):
        name = f"host-{number:x}.zone-{number % 13}.example.org."
        answers = _answers(name, number)
        query = dns.message.make_query(name, answers[0][1] if answers else "A", use_edns=0)
        query.id = number
        response = dns.message.make_response(query)
        for owner, rdtype, values in answers:
            response.answer.append(dns.rrset.from_text(owner, 300, "IN", rdtype, *values))
        if not answers:
            response.set_rcode(3)
            response.authority.append(dns.rrset.from_text("example.org.", 300, "IN", "SOA", soa))
        made += [query.to_wire(), response.to_wire()]
    return made


def _ours(messages: Sequence[bytes]) -> int:
    # No name is known but a query's when its response comes.
    message._names.clear()
    parse = message.parse
    return sum(len(parse(each).answers) for each in messages)


def _dnspython(messages: Sequence[bytes]) -> int:
    from dns.message import from_wire

    return sum(len(rrset) for each in messages for rrset in from_wire(each).answer)


def _dpkt(messages: Sequence[bytes]) -> int:
    from dpkt.dns import DNS

    return sum(len(DNS(each).an) for each in messages)


def _handler(messages: Sequence[bytes]) -> int:
    """
    Make records of all, as one client's that sends queries and receives responses.
    """
    message._names.clear()
    handle = partial(_new_handler().on_dns_packet, start_time=1, cgroup_id=1, pid=1, netns=1)
    where = {
        "family": AF_INET,
        "local_address": inet_aton("192.0.2.1").ljust(16, b"\0"),
        "remote_address": inet_aton("192.0.2.2").ljust(16, b"\0"),
        "local_port": 4000,
        "remote_port": 53,
    }
    answers = 0
    for time, each in enumerate(messages):
        (record,) = handle(
            time, 1, **where, direction=time % 2, transport=0, route=0, packet=time + 1, offset=0,
            total_length=len(each), payload=each,
        )  # fmt: skip
        answers += len(getattr(record, "answers", ()))
    return answers


def _new_handler() -> DnsHandler:
    def refuse(*_: object) -> object:
        raise AssertionError

    return DnsHandler(
        Context(
            name="dns",
            tunables={"timeout_ms": 10_000},
            proc_root=Path("/proc"),
            provide=refuse,
            find=refuse,
            data=refuse,
            live={},
            map=refuse,
            program_fd=refuse,
        )
    )


READERS: dict[str, Reader] = {
    "ours": _ours,
    "dnspython": _dnspython,
    "dpkt": _dpkt,
    "handler": _handler,
}


def measure(workshop: Workshop, effort: Effort) -> list[Figure | Missing]:
    """
    Rates of our parser and our handler, and how much faster the parser is than others.
    """
    del workshop  # nothing is to be compiled
    try:
        messages = corpus(min(effort.messages or NAMES, NAMES))
        import dpkt.dns  # noqa: F401 - whether it is there
    except ImportError as error:
        return [Missing("dns_messages_per_s", f"needs dnspython and dpkt: {error}")]
    rates: dict[str, list[float]] = {name: [] for name in READERS}
    for turn in range(effort.rounds + 1):
        found = _round(messages, turn)
        # The first round compiles and fills what later ones find.
        for name, rate in found.items() if turn else ():
            rates[name].append(rate)
        effort.progress(f"dns: round {turn} of {effort.rounds}")
    ours = rates["ours"]
    faster = ratios(ours, rates["dnspython"]), ratios(ours, rates["dpkt"])
    size = sum(map(len, messages)) / len(messages)
    return [
        Figure("dns_messages_per_s", ours, "1/s", note=f"of {size:.0f} bytes on average"),
        Figure("dns_vs_dnspython", faster[0], "x", Target(at_least=5), note="as fast"),
        Figure("dns_vs_dpkt", faster[1], "x", Target(at_least=1), note="as fast"),
        Figure("dns_handler_per_s", rates["handler"], "1/s", note="packets to records"),
    ]


def _round(messages: Sequence[bytes], turn: int) -> dict[str, float]:
    """
    Let everybody read all messages, in an order of this round's own; return messages per second.

    Raises:
        WrongContentsError: they do not see the same number of answers.
    """
    rates: dict[str, float] = {}
    seen: dict[str, int] = {}
    with scheduled(CONSUMER_CPU):
        for name in random.Random(turn).sample(list(READERS), len(READERS)):  # noqa: S311 - no secret
            before = perf_counter_ns()
            seen[name] = READERS[name](messages)
            rates[name] = len(messages) * 1e9 / (perf_counter_ns() - before)
    if len(set(seen.values())) != 1:
        msg = f"answers seen: {seen}"
        raise WrongContentsError(msg)
    return rates
