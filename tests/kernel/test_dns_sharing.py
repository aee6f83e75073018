# SPDX-License-Identifier: Apache-2.0
"""
The dns module beside the udp module: packets by slots, and one name for a socket.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import dns.message
import pytest
from kprobe_modules.modules.dns import MODULE
from kprobe_modules.modules.dns.records import DnsQuery, DnsResponse
from kprobe_modules.modules.udp.records import UdpClosed, UdpOpened

from kprobe_modules import Collector
from tests.support.requirements import has_kprobes, needs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kprobe_modules.api import Manifest

KPROBES = {"udp.send": "send4_kprobe", "udp.receive": "receive_kprobe"}
SERVED = {"udp_sent": "slot/udp_sent", "udp_received": "slot/udp_received"}
TURNS = 3
LOCALHOST = "127.0.0.1"
NETNS = Path("/proc/self/ns/net").stat().st_ino


class Chat:
    """
    A client and a server that ask and answer, one number after the other.

    Attributes:
        asked: how many queries were asked and answered.
        ports: the client's, and the server's, at which DNS is spoken.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._ends = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
        for end in self._ends:
            end.bind((LOCALHOST, 0))
            end.settimeout(60)
        self.ports = [end.getsockname()[1] for end in self._ends]

    def ask(self) -> None:
        client, server = self._ends
        query = dns.message.make_query(f"n{self.asked}.example.", "A")
        # Packets at the same few addresses, whose headers are the same too.
        query.id = 7
        client.sendto(query.to_wire(), (LOCALHOST, self.ports[1]))
        wire, peer = server.recvfrom(4096)
        server.sendto(dns.message.make_response(dns.message.from_wire(wire)).to_wire(), peer)
        client.recv(4096)
        self.asked += 1

    def close(self) -> None:
        for end in self._ends:
            end.close()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """
        Ask without end, meanwhile.
        """
        over = threading.Event()

        def go_on() -> None:
            while not over.is_set():
                self.ask()
                time.sleep(0.002)  # emulated guests lose the clock to a loop that never rests

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@pytest.fixture
def chat() -> Iterator[Chat]:
    needs.root()
    chat = Chat()
    yield chat
    chat.close()


def of_chat(record: Any, chat: Chat) -> bool:
    """
    Tell whether it is about a socket of ours: others may speak at the same ports elsewhere.
    """
    return record.netns == NETNS and record.local_port in chat.ports


def told(records: Sequence[Any], chat: Chat) -> Counter[tuple[str, str, str]]:
    return Counter(
        (each.record, each.role, each.question_name)
        for each in records
        if isinstance(each, DnsQuery | DnsResponse) and of_chat(each, chat)
    )


def asked(chat: Chat) -> Counter[tuple[str, str, str]]:
    return Counter(
        (record, role, f"n{number}.example")
        for record in ("dns_query", "dns_response")
        for role in ("client", "server")
        for number in range(chat.asked)
    )


def live(collector: Collector) -> dict[str, str]:
    status = collector.status("dns").live
    return {hook: status[hook] for hook in SERVED}


def missed_runs(collector: Collector, name: str) -> int:
    return int(collector.stats().modules[name]["missed"])


def rest(collector: Collector, chat: Chat) -> list[Any]:
    """
    Let some more be asked.
    """
    until, records = chat.asked + 20, []
    while chat.asked < until:
        records += collector.poll(timeout=0.05)
    return records


def with_own(kind: str) -> Manifest:
    """
    Return the dns module, which without a caller prefers hooks of a kind.
    """
    hooks = [
        attrs.evolve(
            hook,
            alternatives=sorted(
                hook.alternatives,
                key=lambda item: (not item.slot, not item.program.endswith(f"_{kind}")),
            ),
        )
        for hook in MODULE.hooks
    ]
    return attrs.evolve(MODULE, hooks=hooks)


@pytest.mark.parametrize("kind", ["kprobe", "fentry"])
def test_dns_misses_nothing_while_udp_comes_and_goes(chat: Chat, kind: str) -> None:
    """
    Whose packets they are changes under traffic.

    Where the kernel preempts a task that is in bpf(2) with a map, as 7.3 does (lazy preemption), it
    passes over the programs of kprobes on that CPU meanwhile, and counts them.
    """
    needs.kprobes()
    records: list[Any] = []
    missed = 0
    with Collector(chosen=KPROBES) as collector:
        collector.attach(with_own(kind), port_2=chat.ports[1])
        own = live(collector)
        assert {each.partition("/")[0] for each in own.values()} == {kind}
        with chat.going_on():
            for _ in range(TURNS):
                collector.attach("udp")
                assert live(collector) == SERVED
                records += rest(collector, chat)
                collector.detach("udp")
                missed += missed_runs(collector, "udp")
                assert live(collector) == own
                records += rest(collector, chat)
        records += collector.flush()
        missed += missed_runs(collector, "dns")
    found = told(records, chat)
    assert found <= asked(chat)
    assert (asked(chat) - found).total() <= missed


def test_udp_misses_nothing_while_dns_comes_and_goes(chat: Chat) -> None:
    records: list[Any] = []
    # Without kprobes they see the same packets, each by hooks of its own.
    with Collector(chosen=KPROBES if has_kprobes() else {}) as collector:
        collector.attach("udp", traffic_interval_ms=0)
        with chat.going_on():
            for _ in range(TURNS):
                collector.attach("dns", port_2=chat.ports[1])
                records += rest(collector, chat)
                collector.detach("dns")
                records += rest(collector, chat)
        chat.close()
        while sum(isinstance(each, UdpClosed) for each in ended(records, chat)) < len(chat.ports):
            records += collector.poll(timeout=1)
    totals = [(each.datagrams_sent, each.datagrams_received) for each in ended(records, chat)]
    assert totals == [(chat.asked, chat.asked)] * 2
    assert set(told(records, chat).values()) == {1}


def ended(records: Sequence[Any], chat: Chat) -> list[Any]:
    return [each for each in records if isinstance(each, UdpClosed) and of_chat(each, chat)]


@pytest.mark.parametrize("order", [("udp", "dns"), ("dns", "udp")])
def test_both_have_the_same_name_for_a_socket(chat: Chat, order: tuple[str, str]) -> None:
    with Collector() as collector:
        for name in order:
            collector.attach(name, **({"port_2": chat.ports[1]} if name == "dns" else {}))
        chat.ask()
        records = collector.flush()
        opened = {
            each.local_port: each.socket_id
            for each in records
            if isinstance(each, UdpOpened) and of_chat(each, chat)
        }
        named = {
            each.local_port: each.socket_id
            for each in records
            if isinstance(each, DnsQuery | DnsResponse) and of_chat(each, chat)
        }
        assert named == opened
        # Without udp it has a name too, and not a used one.
        collector.detach("udp")
        chat.ask()
        alone = {
            each.socket_id for each in collector.flush() if isinstance(each, DnsQuery | DnsResponse)
        }
        assert len(alone) == len(chat.ports)
        assert not alone & set(named.values())
