# SPDX-License-Identifier: Apache-2.0
"""
Each part of the benchmark runs once, with next to nothing, so that none can rot.

The figures are not judged: this machine may be busy.  What is judged is that
every consumer saw exactly what was written, which the parts check themselves.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.bench import dns, drain, emit, guest, overhead, report, slot, startup, steady, tcp, udp
from tests.bench.effort import Effort
from tests.bench.figures import Figure, Missing, Target, ratios
from tests.bench.rounds import Contender, Race, WrongContentsError
from tests.bench.workshop import PACKAGES, Workshop
from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Sequence


@pytest.fixture
def effort(tmp_path: Path) -> Effort:
    return Effort(
        tmp_path, rounds=1, sizes=(8,), messages=101, seconds=0.2, drains=3, loops=23, starts=1
    )


@pytest.fixture
def workshop() -> Workshop:
    needs.root()
    for proof in ("/usr/include/bpf/libbpf.h", "/usr/bin/gcc", "/usr/bin/clang"):
        needs.that(Path(proof).exists(), f"needs the package {PACKAGES[proof]}")
    return Workshop()


def names(figures: Sequence[Figure | Missing]) -> set[str]:
    return {figure.name for figure in figures}


def test_every_consumer_sees_the_same_messages(workshop: Workshop, effort: Effort) -> None:
    for proof in ("/usr/bin/go", "/usr/lib/python3/dist-packages/bcc"):
        needs.that(Path(proof).exists(), f"needs the package {PACKAGES[proof]}")
    figures = drain.measure(workshop, effort)
    assert all(isinstance(figure, Figure) for figure in figures)
    assert {name for name, *_ in drain.COMPARISONS} <= names(figures)


def test_a_consumer_that_sees_something_else_is_refused(workshop: Workshop, effort: Effort) -> None:
    command = [str(workshop.consume_c())]
    honest = Contender("honest", "one", command, "decode")
    # Counts, and so has no sums, but claims to decode.
    wrong = Contender("wrong", "two", command, "count")
    with (
        Race(workshop, [honest, wrong], 8, effort.messages) as race,
        pytest.raises(WrongContentsError, match="wrong: sequence sum 0"),
    ):
        race.round(0)


def test_steady_rates(workshop: Workshop, effort: Effort) -> None:
    needs.cpus(2)
    figures = steady.measure(workshop, effort)
    wanted = {"steady_flat_out_cpu_percent", "steady_20k_cpu_percent", "drain_one_us"}
    assert wanted | {"steady_flat_out_2048_pages_lost_percent"} <= names(figures)


def test_emit_costs(workshop: Workshop, effort: Effort) -> None:
    assert "emit_ringbuf_vs_perf" in names(emit.measure(workshop, effort))


def test_startup(workshop: Workshop, effort: Effort) -> None:
    del workshop  # for its requirements
    assert {"import_ms", "first_record_ms", "idle_rss_mib"} <= names(startup.measure(effort))


def test_overhead(workshop: Workshop, effort: Effort) -> None:
    found = names(overhead.measure(workshop, effort))
    assert any(name.startswith("program_start_") for name in found)
    found |= names(tcp.measure(workshop, effort))
    assert any(name.startswith("program_accept_") for name in found)
    # Measured or missing, and what the guest's part looks for in its file.
    assert guest.FIGURES.keys() <= found


def test_datagrams(workshop: Workshop, effort: Effort) -> None:
    found = names(udp.measure(workshop, effort))
    assert {"flood_slowdown_udp", "exchange_slowdown_dns", "resolve_slowdown_both"} <= found
    assert {"udp_kib", "dns_kib", "slot_empty", "slot_taken"} <= found


def test_an_empty_slot_can_be_called(workshop: Workshop, effort: Effort) -> None:
    assert names(slot.measure(workshop, effort)) == {"slot_empty_ns"}


def test_dns_parsers_see_the_same_answers(workshop: Workshop, effort: Effort) -> None:
    figures = dns.measure(workshop, effort)
    assert all(isinstance(figure, Figure) for figure in figures)
    assert {"dns_vs_dnspython", "dns_vs_dpkt"} <= names(figures)


def test_figures_state_the_median_and_judge_it() -> None:
    figure = Figure("speed", ratios([6, 9, 40], [2, 3, 4]), "x", Target(at_most=3))
    assert figure.median == 3
    assert figure.met
    assert not Figure("speed", (2.0,), "x", Target(at_least=4)).met
    assert Figure("speed", (2.0,), "x").met is None


def test_the_table_and_the_file(tmp_path: Path) -> None:
    figures: list[Figure | Missing] = [
        Figure("first", (1.0, 5.0, 2.0), "ms", Target(at_most=1)),
        Missing("second", "needs kprobes"),
    ]
    lines = report.table(figures).splitlines()
    assert lines[1].split() == ["first", "2", "ms", "1", "..", "5", "<=", "1", "MISSED"]
    assert lines[2].split() == ["second", "-", "needs", "kprobes"]
    path = tmp_path / "bench.json"
    report.write(path, figures)
    report.write(path, [Figure("third", (7.0,), "x")])
    assert json.loads(path.read_text()) == {"first": 2.0, "third": 7.0}
    rounds = json.loads((tmp_path / "bench-rounds.json").read_text())
    assert rounds["first"] == [1.0, 5.0, 2.0]
