# SPDX-License-Identifier: Apache-2.0
"""
Hooks that are served through slots while another module calls them.

Where the kernel has no kprobes, raw tracepoints take their place.
"""

from __future__ import annotations

import os
import threading
from itertools import count
from typing import TYPE_CHECKING

import attrs
import pytest

from kprobe_modules import Collector, hooks, loader
from kprobe_modules.api import Alternative
from kprobe_modules.capture import Capture, Replay
from kprobe_modules.errors import AttachError, ManifestError
from kprobe_modules.libbpf import map as bpf_map
from kprobe_modules.libbpf import prog_info
from kprobe_modules.records import Failure, Steady
from kprobe_modules.registry import Registry
from tests.support import hooked, passing
from tests.support.footprint import assert_gone, held
from tests.support.generator import assert_closed, take_until
from tests.support.passing import PASSED, PASSING, act, numbers
from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from kprobe_modules import Record
    from kprobe_modules.api import Manifest


@pytest.fixture(autouse=True)
def slot_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "SLOT_KINDS", passing.SLOT_KINDS)


def calling(*slots: str) -> Manifest:
    """
    Return the module that calls, with all its alternatives calling these slots.
    """
    hook = PASSING.hooks[0]
    given = tuple(attrs.evolve(each, calls=slots) for each in hook.alternatives)
    return attrs.evolve(PASSING, hooks=(attrs.evolve(hook, alternatives=given),))


def attach(collector: Collector, *manifests: Manifest) -> None:
    for each in manifests:
        collector.attach(each, watched=os.getpid())
    collector.flush()


def served(collector: Collector, number: int = 0) -> int | None:
    """
    Return the id of the program in a slot.
    """
    fd = collector._intake.common.fd("tail_calls")
    value = bpf_map.lookup(fd, number.to_bytes(4, "little"), 4)
    return None if value is None else int.from_bytes(value, "little")


def live(collector: Collector, module: str = "passed") -> str | None:
    return next(iter(collector.status(module).live.values()), None)


def ways(records: Iterable[Record], module: str = "passed") -> set[bool]:
    """
    Return whether a module was passed events through the slot.
    """
    return {
        bool(each.how & passing.SERVED)
        for each in records
        if isinstance(each, passing.Seen) and each.module == module
    }


def links() -> int:
    """
    Return how many links this process holds.
    """
    return sum(kind == "link" for kind, _ in held())


def test_the_way_changes_with_the_caller() -> None:
    needs.root()
    with Collector() as collector:
        alone = held()
        attach(collector, PASSED)
        own = live(collector)
        assert own is not None
        assert not own.startswith("slot/")
        handler = collector.find("passed")
        assert isinstance(handler, passing.PassingHandler)
        only, attached = held(), links()
        numbered = count(1)
        for _ in range(3):
            act(next(numbered) for _ in range(5))
            assert ways(collector.flush()) == {False}
            attach(collector, PASSING)
            choice = collector.status("passed").choices[0]
            assert (choice.attach_point, choice.caller) == ("slot/passed", "passing")
            assert handler.context.live["passed"].startswith("served_")
            # The caller's, in the place of the module's own.
            assert links() == attached
            act(next(numbered) for _ in range(5))
            records = collector.flush()
            assert ways(records) == {True}
            assert numbers(records, "passed") == numbers(records, "passing")
            collector.detach("passing")
            assert live(collector) == own
            assert handler.context.live["passed"].startswith("own_")
            assert {each for each in held() if each[0] != "link"} == {
                each for each in only if each[0] != "link"
            }
        act([1009])
        assert numbers(collector.flush(), "passed") == [1009]
        assert handler.repeated == 0
        assert_closed(collector, "passed")
        collector.detach("passed")
        assert held() == alone
    assert_gone(only)


def test_who_is_served_may_come_last_and_leave_first() -> None:
    needs.root()
    with Collector() as collector:
        attach(collector, PASSING)
        assert served(collector) is None
        for turn in range(3):
            attach(collector, PASSED)
            assert live(collector) == "slot/passed"
            program = collector._ensemble.attached["passed"].loaded.program
            name = collector.status("passed").choices[0].alternative
            assert name is not None
            assert served(collector) == prog_info(program(name.program).fd).id
            act(range(turn * 10, turn * 10 + 7))
            last = collector.detach("passed")
            assert numbers(last, "passed") == list(range(turn * 10, turn * 10 + 7))
            assert ways(last) == {True}
            # The caller falls through.
            assert served(collector) is None
            collector.flush()
            act([1000 + turn])
            assert numbers(collector.flush(), "passing") == [1000 + turn]


def test_under_traffic_nothing_is_missed_and_nothing_comes_twice() -> None:
    """
    In the module that stays: every event; in the other, every one of each stay.
    """
    needs.root()
    passing.prove_under_traffic(turns=7)


def test_who_chooses_another_way_is_not_served() -> None:
    needs.root()
    with Collector(chosen={"passed.passed": "raw_tp"}) as collector:
        attach(collector, PASSED, PASSING)
        assert live(collector) == "raw_tp/sys_enter"
        assert served(collector) is None
        act([1, 2])
        records = collector.flush()
        assert ways(records) == {False}
        assert numbers(records, "passed") == [1, 2]


def test_one_serves_a_slot_and_a_rival_helps_itself() -> None:
    needs.root()
    rival = attrs.evolve(PASSED, name="rival", object_name="passed")
    with Collector() as collector:
        attach(collector, PASSING, PASSED, rival)
        assert live(collector) == "slot/passed"
        choice = collector.status("rival").choices[0]
        assert not choice.attach_point.startswith("slot/")
        refusals = [reason for _, reason in choice.rejected]
        assert any("module rival offers it, passed already serves it" in each for each in refusals)
        program = served(collector)
        collector.detach("rival")
        assert served(collector) == program
        act([1])
        assert numbers(collector.flush(), "passed") == [1]


def refuse_own(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """
    Let the kernel refuse to attach the programs of the hook's own alternatives.
    """
    attach_program = loader.attach_program
    tried: list[str] = []

    def refusing(program: object, spec: object, link_info: bytes = b"") -> object:
        name = spec.name  # type: ignore[attr-defined]
        if name.startswith("own_"):
            tried.append(name)
            what = f"program {name}"
            raise AttachError(what, [(name, "not today")])
        return attach_program(program, spec, link_info)  # type: ignore[arg-type]

    monkeypatch.setattr(loader, "attach_program", refusing)
    return tried


def test_a_hook_without_any_way_dies_and_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    needs.root()
    with Collector() as collector:
        attach(collector, PASSING, PASSED)
        tried = refuse_own(monkeypatch)
        act([1])
        last = collector.detach("passing")
        assert numbers(last, "passing") == [1]
        records = collector.flush()
        told = [each for each in records if isinstance(each, Failure)]
        assert [(each.module, each.where) for each in told] == [("passed", "passed")]
        assert "not today" in told[0].error
        status = collector.status("passed")
        assert status.live == {}
        assert {name for name, _ in status.choices[0].rejected} >= set(tried)
        assert tried
        # Each is tried once; the others come and go as before.
        before = list(tried)
        act([2])
        assert numbers(collector.flush(), "passed") == []
        attach(collector, PASSING)
        assert live(collector) == "slot/passed"
        # What was missed meanwhile is looked for.
        collector._ensemble._housekept = 0
        take_until(collector, lambda came: any(isinstance(each, Steady) for each in came))
        act([3])
        assert numbers(collector.flush(), "passed") == [3]
        collector.detach("passing")
        assert tried == before
        collector.detach("passed")


@pytest.mark.parametrize("required", [True, False])
def test_a_hook_that_only_a_slot_serves(*, required: bool) -> None:
    needs.root()
    hook = attrs.evolve(PASSED.hooks[0], required=required)
    needy = attrs.evolve(PASSED, hooks=(hook,))
    with Collector(chosen={"passed.passed": "slot/passed"}) as collector:
        if required:
            with pytest.raises(AttachError, match="no module that is attached calls slot passed"):
                collector.attach(needy, watched=os.getpid())
            assert served(collector) is None
            attach(collector, PASSING, needy)
        else:
            # One that can do without comes alive with the caller.
            attach(collector, needy)
            assert live(collector) is None
            attach(collector, PASSING)
        assert live(collector) == "slot/passed"
        act([1])
        assert numbers(collector.flush(), "passed") == [1]
        collector.detach("passing")
        assert live(collector) is None
        told = [each for each in collector.flush() if isinstance(each, Failure)]
        assert [(each.module, each.where) for each in told] == [("passed", "passed")]
        assert "no module that is attached calls slot passed" in told[0].error


def test_slots_are_each_collectors_own() -> None:
    needs.root()
    with Collector() as one, Collector() as other:
        attach(one, PASSING)
        attach(other, PASSED)
        assert live(other) != "slot/passed"
        attach(other, PASSING)
        attach(one, PASSED)
        for collector in (one, other):
            assert live(collector) == "slot/passed"
        one.detach("passing")
        assert live(one) != "slot/passed"
        assert live(other) == "slot/passed"
        act([1, 2, 3])
        for collector in (one, other):
            assert numbers(collector.flush(), "passed") == [1, 2, 3]


def test_both_come_and_go_from_several_threads() -> None:
    needs.root()
    failures: list[BaseException] = []

    def come_and_go(collector: Collector, manifest: Manifest) -> None:
        try:
            for _ in range(13):
                collector.attach(manifest, watched=os.getpid())
                collector.detach(manifest.name)
        except BaseException as error:  # noqa: BLE001 - told by the test
            failures.append(error)

    with Collector() as collector:
        alone = held()
        threads = [
            threading.Thread(target=come_and_go, args=(collector, each))
            for each in (PASSING, PASSED)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert failures == []
        assert collector.modules == ()
        assert held() == alone
        assert not [each for each in collector.flush() if isinstance(each, Failure)]


@pytest.mark.parametrize(
    ("kinds", "manifest", "words"),
    [
        (("kprobe",), PASSED, "program served_raw is of kind raw_tp; slots are for kprobe"),
        (("kprobe",), PASSING, "program pass_raw is of kind raw_tp; slots are for kprobe"),
        (
            passing.SLOT_KINDS,
            calling("else"),
            "calls slot else, the object has no constant km_slot_else",
        ),
    ],
)
def test_manifest_and_object_agree_on_slots(
    monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, ...], manifest: Manifest, words: str
) -> None:
    needs.root()
    monkeypatch.setattr(hooks, "SLOT_KINDS", kinds)
    with Collector() as collector, pytest.raises(ManifestError, match=words):
        collector.attach(manifest)


def test_a_program_for_a_slot_that_the_verifier_refuses() -> None:
    """
    Only that alternative is struck out.
    """
    needs.root()
    refused = Alternative("start_refused", slot="starts")
    hook = attrs.evolve(hooked.MODULE.hooks[0], alternatives=(refused, "start_raw"))
    manifest = attrs.evolve(hooked.MODULE, hooks=(hook, *hooked.MODULE.hooks[1:]))
    manifest = attrs.evolve(manifest, own_programs=("start_kprobe",))
    with Collector() as collector:
        choice = collector.attach(manifest, quiet=True).choices[0]
        assert choice.attach_point == "raw_tp/sched_process_fork"
        assert "refused by the verifier" in dict(choice.rejected)["start_refused"]
        assert served(collector) is None


def test_a_replay_gives_the_same_records(tmp_path: Path) -> None:
    """
    Also of an event that came both ways.
    """
    needs.root()
    registry = Registry({"passing": PASSING, "passed": PASSED})
    records: list[Record] = []
    numbered = count(1)
    with (
        Capture(tmp_path / "shared.kmc") as journal,
        Collector(journal=journal, registry=registry) as collector,
    ):
        for name in ("passed", "passing"):
            collector.attach(name, watched=os.getpid())
            act(next(numbered) for _ in range(5))
        for name in ("passing", "passed"):
            records += collector.flush()
            records += collector.detach(name)
            act(next(numbered) for _ in range(5))
    replayed = [
        each
        for batch in Replay(tmp_path / "shared.kmc", registry=registry).records()
        for each in batch
    ]
    assert numbers(records, "passed") == list(range(1, 16))
    assert replayed == records
