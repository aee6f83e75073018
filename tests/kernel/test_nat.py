# SPDX-License-Identifier: Apache-2.0
"""
The nat module against ``conntrack``, on whatever kernel this runs on.
"""

from __future__ import annotations

import socket
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kprobe_modules.modules.nat import MODULE, ctnetlink, handler
from kprobe_modules.modules.nat.records import NatEnded, NatRemapped, NatTranslated

from kprobe_modules import Collector, RingOptions
from kprobe_modules.capture import Capture, Replay
from kprobe_modules.records import as_dict
from tests.support.alternatives import absent_programs, names_live
from tests.support.emulation import fewer
from tests.support.namespaces import alone
from tests.support.nat import INNER, VIRTUAL, Flow, Translator, flow_of, translating
from tests.support.requirements import has_kprobes, needs
from tests.support.sockets import ROOMY, Watch, of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kprobe_modules import Record

V4, V6 = socket.AF_INET, socket.AF_INET6
CTNETLINK = "ctnetlink"
HOOKS = ("end", "start", "existing")
MANY = fewer(499, 97)
KERNEL_MODULES = (
    "nft_masq", "nft_redir", "nft_nat", "nft_ct", "nft_chain_nat", "xt_MASQUERADE", "xt_nat",
    "iptable_nat", "ip6table_nat", "nf_nat", "nf_conntrack_netlink", "xt_conntrack",
    "nf_conntrack",
)  # fmt: skip
"""What may stand on conntrack, itself last."""
INLINED = {"ex_tuples_k", "ex_tuples_f"}
"""Of functions that no kernel has which we know."""
BEFORE_517 = {"end_destroy_f", "end_destroy_k"}


@pytest.fixture(autouse=True)
def _needs() -> None:
    needs.root()
    needs.command("ip")
    needs.command("nft")
    needs.command("conntrack")


def conntrack_is_loaded() -> bool:
    return Path("/sys/module/nf_conntrack").exists()


def unload_conntrack() -> None:
    """
    Take the kernel module away, with what stands on it.
    """
    if conntrack_is_loaded() and not Path("/sys/module/nf_conntrack/refcnt").exists():
        pytest.xfail("connection tracking is built in")
    for name in KERNEL_MODULES:
        if not Path("/sys/module", name).exists():
            continue
        subprocess.run(["rmmod", name], check=False, capture_output=True)
    needs.that(not conntrack_is_loaded(), "needs nf_conntrack to be unloaded")


class Told:
    """
    What was recorded of the connections that one namespace translates.
    """

    def __init__(self, watch: Watch, translator: Translator) -> None:
        self.watch = watch
        self.netns = translator.near.inode

    def of(self, kind: type[Any]) -> list[Any]:
        return [each for each in of(self.watch.records, kind) if each.netns == self.netns]

    def flows(self, kind: type[Any]) -> Counter[Flow]:
        return Counter(map(flow_of, self.of(kind)))

    def until(self, kind: type[Any], flows: set[Flow]) -> None:
        """
        Take records until all of *flows* were told of.
        """
        self.watch.until(lambda: flows <= self.flows(kind).keys())


def check_replay(path: Path, records: Sequence[Record]) -> None:
    """
    Compare what was recorded of connections with what a capture gives.
    """
    again = [each for some in Replay(path).records() for each in some]

    assert [as_dict(each) for each in again if each.record.startswith("nat_")] == [
        as_dict(each) for each in records if each.record.startswith("nat_")
    ]


def check_lives(told: Told, old: set[Flow], new: set[Flow]) -> None:
    """
    Compare all that was told with what there was: each once, and each end after its start.
    """
    began, ended = told.of(NatTranslated), told.of(NatEnded)

    assert told.flows(NatTranslated) == told.flows(NatEnded) == Counter(old | new)
    assert {flow_of(each) for each in began if each.existing} == old
    assert len({each.conntrack_id for each in began}) == len(began)
    starts = {each.conntrack_id: each for each in began}
    for each in ended:
        start = starts[each.conntrack_id]
        assert flow_of(start) == flow_of(each)
        assert start.time <= each.time
        if start.existing:
            assert each.duration is None
        else:
            # Whoever writes a message may be interrupted between its two times.
            assert abs(each.duration - (each.time - start.time)) < 1e9
    stats = told.watch.collector.stats().modules["nat"]
    assert stats["lost"] == stats["errors"] == 0, stats


def test_conntrack_may_be_loaded_later() -> None:
    """
    Attaching does not load it; when it comes, the hooks come alive.
    """
    unload_conntrack()
    with Collector(["nat"], rings=ROOMY) as collector:
        watch = Watch(collector)
        assert set(collector.status("nat").waiting) == set(HOOKS)
        assert not conntrack_is_loaded()
        with translating() as translator:
            told = Told(watch, translator)
            translator.connect(VIRTUAL[V4], 80, "tcp")
            old = translator.flows()
            watch.until(lambda: not collector.status("nat").waiting)
            told.until(NatTranslated, old)
            translator.send(VIRTUAL[V4], 53)
            new = translator.flows() - old
            told.until(NatTranslated, old | new)
            translator.close()
            translator.forget()
            told.until(NatEnded, old | new)

    assert len(old) == len(new) == 1
    assert told.flows(NatTranslated) == told.flows(NatEnded) == Counter(old | new)


@pytest.fixture(scope="module")
def translator() -> Iterator[Translator]:
    needs.root()
    needs.command("nft")
    needs.command("conntrack")
    with translating() as made:
        # The kernel's part of it is loaded when it is asked for first.
        if not Path("/sys/module/nf_conntrack_netlink").exists():
            made.flows()
        yield made


@pytest.fixture(scope="module")
def absent(translator: Translator) -> frozenset[str]:
    """
    Return the programs that this kernel cannot attach, with conntrack.
    """
    assert translator.near.inode
    return absent_programs(MODULE)


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "translator" in request.fixturenames:
        made: Translator = request.getfixturevalue("translator")
        made.close()
        if made.are_left():
            made.forget()


def test_no_function_is_missing(absent: frozenset[str]) -> None:
    """
    Every kernel with kprobes that we know has all of them: what is missing was renamed.
    """
    needs.kprobes()
    traced = {name for name in absent if name.endswith(("_f", "fentry", "fexit"))}

    if Path("/sys/kernel/btf/nf_conntrack").exists():
        assert absent == INLINED
    else:  # 5.10 has no BTF of kernel modules
        assert absent - traced == {each for each in INLINED | BEFORE_517 if each.endswith("_k")}


CHOICES = (
    ("end_fentry", "start_fexit", "ex_ip_f"),
    ("end_kprobe", "start_return", "existing_kprobe"),
    ("end_count_k", "start_return", "ex_ip_k"),
    ("end_cleanup_f", "start_fexit", "ex_port_f"),
    ("end_cleanup_k", "start_return", "ex_port_k"),
    ("end_fentry", "start_fexit", CTNETLINK),
    ("end_fentry", "start_fexit", "ex_tuples_f"),
    ("end_kprobe", "start_return", "ex_tuples_k"),
    (CTNETLINK, CTNETLINK, CTNETLINK),
)
"""Alternatives of the hooks `HOOKS`; where the last is missing, the others are in another line."""

INSERTED = {"existing_kprobe", "ex_ip_f", CTNETLINK}
"""With which `conntrack` makes a connection: it takes a second, emulated."""


def test_all_alternatives_are_chosen() -> None:
    for hook, chosen in zip(HOOKS, zip(*CHOICES, strict=True), strict=True):
        assert set(chosen) == {each.name for each in MODULE.hook(hook).alternatives}


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Have ctnetlink looked at more often.
    """
    monkeypatch.setattr(handler, "LOOK_NS", 300_000_000)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("names", CHOICES, ids="-".join)
def test_each_alternative(
    names: tuple[str, ...], absent: frozenset[str], translator: Translator
) -> None:
    """
    Each is heard with the truth, of every kind of connection.

    A hook that lacks the chosen one uses the first that there is.
    """
    programs = {each.name: each.programs for hook in MODULE.hooks for each in hook.alternatives}
    wanted = dict(zip(HOOKS, names, strict=True))
    chosen = {hook: name for hook, name in wanted.items() if not absent & set(programs[name])}
    if "existing" not in chosen or (chosen == {"existing": CTNETLINK} and not has_kprobes()):
        pytest.xfail(f"this kernel has none of {', '.join(names)}")
    ported = wanted["existing"].startswith("ex_port")
    inserted = wanted["existing"] in INSERTED
    translator.connect(VIRTUAL[V4], 80, "tcp")
    translator.connect(VIRTUAL[V6], 80, "tcp6", family=V6)
    translator.ping(V4)
    if not ported:
        translator.send_unported()
    old = translator.flows()
    options = {f"nat.{hook}": name for hook, name in chosen.items()}
    with Collector(["nat"], chosen=options, rings=ROOMY) as collector:
        live = names_live(collector, "nat")
        assert {hook: live[hook] for hook in chosen} == chosen
        told = Told(Watch(collector), translator)
        told.until(NatTranslated, old)
        translator.everything()
        if inserted:
            translator.insert()
        new = translator.flows() - old
        told.until(NatTranslated, old | new)
        translator.close()
        translator.forget()
        told.until(NatEnded, old | new)
        check_lives(told, old, new)
        assert collector.status("nat").waiting == ()

    assert len(old) == (3 if ported else 4)
    assert len(new) == 10 + ported + inserted
    assert {flow.kind for flow in new} == {"source", "destination", "both"}


def test_those_that_are_idle_for_too_long_end(translator: Translator) -> None:
    translator.near.set("net/netfilter/nf_conntrack_udp_timeout", 1)
    try:
        with Collector(["nat"], rings=ROOMY) as collector:
            told = Told(Watch(collector), translator)
            translator.send(VIRTUAL[V4], 53)
            # Whoever looks takes away what is too old.
            told.watch.until(lambda: not translator.flows() and told.of(NatEnded))
            (began,), (ended,) = told.of(NatTranslated), told.of(NatEnded)
    finally:
        translator.near.set("net/netfilter/nf_conntrack_udp_timeout", 30)

    assert flow_of(began) == flow_of(ended)
    assert ended.duration > 0


@pytest.mark.usefixtures("soon")
def test_those_of_a_namespace_end_with_it() -> None:
    with Collector(["nat"], rings=ROOMY) as collector:
        watch = Watch(collector)
        with alone() as here:
            here.run(
                "nft",
                "table ip kmtest { chain output { type nat hook output priority -100; "
                "udp dport 53 redirect to :5353; } ; }",
            )
            with here.open_socket(V4, socket.SOCK_DGRAM) as one:
                one.sendto(b"something", (here.ipv4, 53))
                watch.until(
                    lambda: [x for x in of(watch.records, NatTranslated) if x.netns == here.inode]
                )
        watch.until(lambda: [x for x in of(watch.records, NatEnded) if x.netns == here.inode])
    began, ended = (
        [each for each in of(watch.records, kind) if each.netns == here.inode]
        for kind in (NatTranslated, NatEnded)
    )

    assert [flow_of(each) for each in began] == [flow_of(each) for each in ended]
    assert len(began) == 1
    assert (began[0].kind, began[0].translated_destination_port) == ("destination", 5353)


def test_many(translator: Translator) -> None:
    with Collector(["nat"], rings=ROOMY) as collector:
        told = Told(Watch(collector), translator)
        for _ in range(MANY):
            translator.send(VIRTUAL[V4], 53)
        new = translator.flows()
        told.until(NatTranslated, new)
        translator.close()
        translator.forget("-p", "udp")
        told.until(NatEnded, new)
        check_lives(told, set(), new)

    assert len(new) == MANY


def test_what_rings_lose_is_found(translator: Translator) -> None:
    """
    Nobody reads while more happens than a ring has room for.
    """
    with Collector(["nat"], rings=RingOptions(pages=1)) as collector:
        if collector.status("nat").live["start"] == f"source/{CTNETLINK}":
            pytest.xfail("no program tells of anything here")
        told = Told(Watch(collector), translator)
        for _ in range(MANY):
            translator.send(VIRTUAL[V4], 53)
        new = translator.flows()
        told.until(NatTranslated, new)
        translator.close()
        translator.forget()
        told.until(NatEnded, new)
        stats = collector.stats().modules["nat"]

    assert stats["messages"]["nf_conntrack_alter_reply"]["lost"] > 0
    assert stats["messages"]["nf_nat_cleanup_conntrack"]["lost"] > 0
    assert stats["emitted"] == stats["received"] + stats["lost"]
    assert told.flows(NatTranslated) == told.flows(NatEnded) == Counter(new)


@pytest.mark.usefixtures("soon")
def test_what_ctnetlink_loses_is_found(
    translator: Translator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """
    Nobody reads while more happens than a socket has room for.
    """
    monkeypatch.setattr(ctnetlink, "_BUFFER", 1)
    options = {f"nat.{hook}": CTNETLINK for hook in HOOKS}
    path = tmp_path / "c.kmc"
    with (
        Capture(path) as capture,
        Collector(["nat"], chosen=options, rings=ROOMY, journal=capture) as collector,
    ):
        told = Told(Watch(collector), translator)
        translator.connect(VIRTUAL[V4], 80, "tcp")
        first = translator.flows()
        told.until(NatTranslated, first)
        translator.close()
        translator.forget()
        for _ in range(MANY):
            translator.send(VIRTUAL[V4], 53)
        new = translator.flows()
        told.until(NatTranslated, new)
        told.until(NatEnded, first)
        translator.close()
        translator.forget()
        told.until(NatEnded, new)

    assert "ctnetlink has lost messages" in caplog.text
    check_replay(path, told.watch.records)
    assert told.flows(NatTranslated) == told.flows(NatEnded) == Counter(first | new)


@pytest.mark.usefixtures("soon")
def test_ctnetlink_without_events(translator: Translator) -> None:
    with translator.near.inside():
        before = Path("/proc/sys/net/netfilter/nf_conntrack_events").read_text("ascii")
    translator.near.set("net/netfilter/nf_conntrack_events", 0)
    options = {f"nat.{hook}": CTNETLINK for hook in HOOKS}
    try:
        with Collector(["nat"], chosen=options, rings=ROOMY) as collector:
            told = Told(Watch(collector), translator)
            translator.send(VIRTUAL[V4], 53)
            new = translator.flows()
            told.until(NatTranslated, new)
            translator.close()
            translator.forget()
            told.until(NatEnded, new)
    finally:
        translator.near.set("net/netfilter/nf_conntrack_events", int(before))

    assert len(new) == 1
    assert told.flows(NatTranslated) == told.flows(NatEnded) == Counter(new)


# -- sockets ---------------------------------------------------------------------


def ends(one: socket.socket) -> tuple[str, int, str, int]:
    """
    Return the ends of a socket as it has them; those over IPv4 as such.
    """
    local, remote = one.getsockname(), one.getpeername()
    return (
        local[0].removeprefix("::ffff:"), local[1],
        remote[0].removeprefix("::ffff:"), remote[1],
    )  # fmt: skip


def remapped(record: Any) -> tuple[tuple[str, int, str, int], tuple[str, int, str, int]]:
    return (
        (record.local_address, record.local_port, record.remote_address, record.remote_port),
        (
            record.translated_local_address,
            record.translated_local_port,
            record.translated_remote_address,
            record.translated_remote_port,
        ),
    )


def test_sockets_are_known_by_both_names(translator: Translator, tmp_path: Path) -> None:
    """
    Each side of each connection, found and new, whichever module is attached first.
    """
    near, far = translator.near, translator.far
    pairs = [translator.connect(VIRTUAL[V4], 81, "tcp")]
    path = tmp_path / "c.kmc"
    with (
        Capture(path) as capture,
        Collector(["nat", "tcp", "udp"], rings=ROOMY, journal=capture) as collector,
    ):
        watch = Watch(collector)
        pairs += [
            translator.connect(f"::ffff:{VIRTUAL[V4]}", 80, "tcp", family=V6),
            translator.connect(near.ipv4, 82, "own"),
            translator.connect(VIRTUAL[V6], 80, "tcp6", family=V6),
            translator.connect(
                far.ipv6, translator.port("tcp6"), "tcp6", family=V6, source=INNER[V6]
            ),
            translator.connect(far.ipv4, translator.port("tcp"), "tcp"),
        ]
        sender = translator.send(VIRTUAL[V4], 53)
        wanted = Counter()
        for one, other in pairs[:-1]:
            here, there = ends(one), ends(other)
            wanted[here, (*there[2:], *there[:2])] += 1
            wanted[there, (*here[2:], *here[:2])] += 1
        # This one is not connected.
        local = near.ipv4, sender.getsockname()[1]
        wanted[(*local, VIRTUAL[V4], 53), (*local, far.ipv4, translator.port("udp"))] += 1

        def found() -> list[Any]:
            spaces = {near.inode, far.inode}
            return [each for each in of(watch.records, NatRemapped) if each.netns in spaces]

        watch.until(lambda: wanted.keys() <= set(map(remapped, found())))
        assert Counter(map(remapped, found())) == wanted
        first = len(found())
        collector.detach("nat")
        watch.flush()
        collector.attach("nat")
        watch.until(lambda: wanted.keys() <= set(map(remapped, found()[first:])))
        assert Counter(map(remapped, found()[first:])) == wanted
        opened = {
            each.socket_id: each
            for each in watch.records
            if each.record in {"tcp_opened", "udp_opened"}
        }
        errors = {name: stats["errors"] for name, stats in collector.stats().modules.items()}

    assert not any(errors.values()), errors
    check_replay(path, watch.records)
    translated = {each.conntrack_id: each for each in of(watch.records, NatTranslated)}
    for each in found():
        known = opened[each.socket_id]
        assert (each.netns, each.pid, each.family) == (known.netns, known.pid, known.family)
        assert known.record.partition("_")[0] == each.transport
        assert translated[each.conntrack_id].netns == near.inode
