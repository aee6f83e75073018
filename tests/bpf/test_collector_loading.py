# SPDX-License-Identifier: Apache-2.0
"""
From a manifest to a live module: alternatives, common maps, tunables, tail calls.
"""

from __future__ import annotations

import os
import subprocess
from functools import partial
from typing import TYPE_CHECKING

import attrs
import pytest

from kprobe_modules import Collector, Steady, ensemble, loader
from kprobe_modules.api import Handler, Manifest
from kprobe_modules.errors import (
    AttachError,
    ConfigError,
    IncompatibleMapError,
    ManifestError,
    ModuleStateError,
    VerifierError,
)
from kprobe_modules.features import Answer, Features, Support
from kprobe_modules.libbpf import map as bpf_map
from kprobe_modules.libbpf import prog_info
from kprobe_modules.loader import kernel_module_loaded
from tests.support import generator, hooked
from tests.support.footprint import held
from tests.support.generator import take_until
from tests.support.requirements import needs

if TYPE_CHECKING:
    from pathlib import Path

    from kprobe_modules import Record
    from kprobe_modules.libbpf import Library


def seen(records: list[Record], how: int) -> list[hooked.Seen]:
    return [each for each in records if isinstance(each, hooked.Seen) and each.how == how]


def spawn(count: int) -> list[int]:
    pids = []
    for _ in range(count):
        with subprocess.Popen(["/bin/true"]) as child:
            pids.append(child.pid)
    return pids


def optional(**required: bool) -> Manifest:
    hooks = tuple(
        attrs.evolve(hook, required=required.get(hook.name, hook.required))
        for hook in hooked.MODULE.hooks
    )
    return attrs.evolve(hooked.MODULE, hooks=hooks)


# -- alternatives -----------------------------------------------------------------


def test_the_first_alternative_that_works_is_live(library: Library) -> None:
    """
    The verifier refuses the first, the kernel may refuse the second.
    """
    needs.root()
    with Collector(library=library) as collector:
        status = collector.attach(hooked.MODULE, watched=os.getpid())
        choice = next(each for each in status.choices if each.hook.name == "start")
        assert choice.rejected[0][0] == "start_refused"
        assert "refused by the verifier" in choice.rejected[0][1]
        assert status.live["end"] == "raw_tp/sched_process_exit"
        assert status.live["existing"] == "iter/task"
        handler = collector.find("hooked")
        assert isinstance(handler, hooked.HookedHandler)
        live = handler.context.live
        assert live["start"] in {"start_kprobe", "start_raw"}
        assert status.missing == (("seen.number",) if live["start"] == "start_raw" else ())
        collector.flush()
        how = {"start_kprobe": hooked.KPROBE, "start_raw": hooked.RAW}[live["start"]]
        children = spawn(7)
        records = collector.flush()
        assert [each.pid for each in seen(records, how)] == children
        ended = {each.pid for each in seen(records, hooked.END)}
        assert ended == set(children)


def test_what_only_fails_when_attached_falls_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Kernels without kprobes load such a program and then do not attach it.
    """
    needs.root()
    has_kprobes = bool(Features().kprobes())
    monkeypatch.setattr(Features, "program", lambda *_: Answer(Support.UNKNOWN, "nobody knows"))
    with Collector() as collector:
        status = collector.attach(hooked.MODULE, quiet=True)
        choice = next(each for each in status.choices if each.hook.name == "start")
        rejected = [name for name, _ in choice.rejected]
        if has_kprobes:
            assert rejected == ["start_refused"]
            assert choice.attach_point == "kprobe/wake_up_new_task"
        else:
            assert rejected == ["start_refused", "start_kprobe"]
            assert choice.attach_point == "raw_tp/sched_process_fork"


def test_a_required_hook_that_the_verifier_refuses() -> None:
    needs.root()
    with Collector(chosen={"hooked.start": "start_refused"}) as collector:
        before = held()
        with pytest.raises(VerifierError) as refused:
            collector.attach(hooked.MODULE)
        assert refused.value.program == "start_refused"
        assert "map_value_or_null" in refused.value.log
        assert refused.value.tail() in str(refused.value)
        assert len(refused.value.log.splitlines()) > 3
        assert held() == before


def test_an_optional_hook_that_the_verifier_refuses_degrades() -> None:
    needs.root()
    with Collector(chosen={"hooked.start": "start_refused"}) as collector:
        status = collector.attach(optional(start=False), watched=os.getpid())
        choice = next(each for each in status.choices if each.hook.name == "start")
        assert choice.alternative is None
        assert [name for name, _ in choice.rejected] == ["start_refused"]
        assert "start" not in status.live
        collector.flush()
        children = spawn(5)
        records = collector.flush()
        assert {each.pid for each in seen(records, hooked.END)} == set(children)
        assert seen(records, hooked.RAW) == []


def test_a_required_hook_without_any_way(monkeypatch: pytest.MonkeyPatch) -> None:
    needs.root()
    monkeypatch.setattr(Features, "kprobes", lambda _: Answer(Support.NO, "it has no kprobes"))
    with Collector(chosen={"hooked.start": "kprobe"}) as collector:
        with pytest.raises(AttachError, match="hooked, hook start") as refused:
            collector.attach(hooked.MODULE)
        assert refused.value.tried == (("start_kprobe", "it has no kprobes"),)
        assert collector.modules == ()


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"hooked.start": "start_nowhere"}, "no alternative is called 'start_nowhere'.*start_raw"),
        ({"hooked.begin": "start_raw"}, "there is no such hook; there are start, end"),
    ],
)
def test_choices_of_what_is_not(chosen: dict[str, str], words: str) -> None:
    needs.root()
    with Collector(chosen=chosen) as collector:
        with pytest.raises(ConfigError, match=words):
            collector.attach(hooked.MODULE)
        collector.attach(generator.MODULE)


@pytest.mark.parametrize("choice", ["start_raw", "raw_tp", "raw_tp/sched_process_fork"])
def test_choices_by_name_kind_or_place(choice: str) -> None:
    needs.root()
    # The kind alone fits the refused one too, which then falls to the next of that kind.
    with Collector(chosen={"hooked.start": choice}) as collector:
        status = collector.attach(hooked.MODULE, quiet=True)
        assert status.live["start"] == "raw_tp/sched_process_fork"


def test_existing_is_found_in_steps_through_small_rings() -> None:
    needs.root()
    from kprobe_modules import Lost, RingOptions

    with Collector(rings=RingOptions(pages=1)) as collector:
        collector.attach(hooked.MODULE)
        records = collector.flush()
        found = seen(records, hooked.EXISTING)
        assert not any(isinstance(each, Lost) for each in records)
        assert os.getpid() in {each.pid for each in found}
        steady = [each for each in records if isinstance(each, Steady)]
        assert [(each.found, each.resync) for each in steady] == [(len(found), False)]
        assert len(found) > 5
        collector.resync("hooked")
        records = collector.flush()
        steady = [each for each in records if isinstance(each, Steady)]
        assert [(each.found, each.resync) for each in steady] == [
            (len(seen(records, hooked.EXISTING)), True)
        ]


def test_nothing_is_attached_in_between_for_existing() -> None:
    needs.root()
    with Collector() as collector:
        collector.attach(hooked.MODULE, quiet=True)
        links = {each for each in held() if each[0] == "link"}
        collector.resync("hooked")
        assert {each for each in held() if each[0] == "link"} == links


# -- waiting for a kernel module ------------------------------------------------------


@pytest.fixture
def sys_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """
    Make a sysfs in which no kernel module is loaded, and a kernel that lacks its functions.
    """
    asked = partial(kernel_module_loaded, sys=tmp_path)
    monkeypatch.setattr(loader, "kernel_module_loaded", asked)
    monkeypatch.setattr(ensemble, "kernel_module_loaded", asked)
    program = Features.program

    def patched(self: Features, kind: str, target: str) -> Answer:
        if target == "sched_process_exec" and not asked("km_test_module"):
            return Answer(Support.NO, "no such tracepoint yet")
        return program(self, kind, target)

    monkeypatch.setattr(Features, "program", patched)
    return tmp_path


def arrive(sys_root: Path) -> None:
    (sys_root / "module" / "km_test_module").mkdir(parents=True)


@pytest.mark.usefixtures("library")
def test_a_hook_waits_for_its_kernel_module(sys_root: Path, library: Library) -> None:
    needs.root()
    with Collector(library=library) as collector:
        status = collector.attach(hooked.MODULE, watched=os.getpid())
        assert status.waiting == ("late",)
        assert "seen.existing" in status.missing
        handler = collector.find("hooked")
        assert isinstance(handler, hooked.HookedHandler)
        assert "late" not in handler.context.live
        collector.flush()
        spawn(3)
        assert seen(collector.flush(), hooked.LATE) == []
        arrive(sys_root)
        # It comes alive by itself, and the module is scanned again.
        take_until(
            collector, lambda came: any(isinstance(each, Steady) and each.resync for each in came)
        )
        status = collector.status("hooked")
        assert status.waiting == ()
        assert status.live["late"] == "raw_tp/sched_process_exec"
        assert handler.context.live["late"] == "late_raw"
        collector.flush()
        children = spawn(5)
        records = collector.flush()
        assert [each.pid for each in seen(records, hooked.LATE)] == children
        # The maps are those of the first object: its counters go on, its table is shared.
        generator.assert_closed(collector, "hooked")
        runs = handler.context.map("runs")
        value = runs.lookup(hooked.LATE.to_bytes(4, "little"))
        assert value is not None
        assert int.from_bytes(value, "little") == 5
        collector.detach("hooked")
        spawn(3)
        assert collector.flush() == []


def test_a_late_hook_that_fails_is_told_once(
    sys_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs.root()
    with Collector(interval=0.02) as collector:
        collector.attach(hooked.MODULE, watched=os.getpid())
        collector.flush()
        before = held()
        tried = []

        def refused(*arguments: object) -> None:
            tried.append(arguments)
            reasons = [("raw_tp sched_process_exec", "not today")]
            what = "program late_raw"
            raise AttachError(what, reasons)

        monkeypatch.setattr(loader, "attach_program", refused)
        arrive(sys_root)
        records = take_until(collector, lambda came: came)
        assert [each.record for each in records] == ["failure"]
        collector._ensemble._housekept = 0
        assert collector.poll(timeout=0.1) == []
        assert len(tried) == 1
        status = collector.status("hooked")
        assert status.waiting == ()
        assert "not today" in dict(status.choices[2].rejected)["late_raw"]
        assert held() == before


def test_a_required_hook_may_wait(sys_root: Path) -> None:
    needs.root()
    assert sys_root.is_dir()
    with Collector() as collector:
        assert collector.attach(optional(late=True), quiet=True).waiting == ("late",)


# -- common maps ----------------------------------------------------------------------


MISMATCHED = Manifest(
    name="mismatched",
    package="tests.bpf.objects",
    handler=Handler,
    hooks=(),
    common_maps=("events", "tgid_info_table", "seen_inodes"),
    own_programs=("touch",),
)


def test_every_difference_of_common_maps_is_told() -> None:
    needs.root()
    with Collector() as collector:
        before = held()
        with pytest.raises(IncompatibleMapError) as refused:
            collector.attach(MISMATCHED)
        assert held() == before
    told = refused.value.differences
    for words in (
        "common map tgid_info_table: value is",
        "common map seen_inodes: type name is",
        "common map seen_inodes: key size is 8, the collector has 4",
        "common map seen_inodes: value size is 2, the collector has 8",
        "common map seen_inodes: flags is 1, the collector has 0",
        "common map seen_inodes: key is",
        "common map seen_inodes: value is",
    ):
        assert sum(words in each for each in told) == 1, (words, told)
    assert len(told) == 7
    assert str(refused.value).startswith("mismatched: common map")


def test_manifest_and_object_agree_on_common_maps() -> None:
    needs.root()
    fewer = attrs.evolve(MISMATCHED, common_maps=("events", "tgid_info_table", "data_channel"))
    with Collector() as collector, pytest.raises(IncompatibleMapError) as refused:
        collector.attach(fewer)
    told = refused.value.differences
    assert any("data_channel: the manifest lists it" in each for each in told)
    assert any("seen_inodes: the object declares it" in each for each in told)


# -- tunables --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tunables", "words"),
    [
        ({"colour": 1}, "no tunable named colour; there are: offset, quiet, watched"),
        ({"km_module_id": 7}, "km_module_id.*the framework's"),
        ({"watched": -1}, "watched is -1, expected 0 to 4294967295"),
        ({"watched": 1 << 32}, "expected 0 to 4294967295"),
        ({"watched": "12"}, "watched is '12', expected 0 to"),
        ({"watched": 1.5}, "watched is 1.5, expected 0 to"),
        ({"offset": 1 << 31}, "expected -2147483648 to 2147483647"),
        ({"quiet": 2}, "quiet is 2, expected true or false"),
    ],
)
def test_wrong_tunables(tunables: dict[str, int], words: str) -> None:
    needs.root()
    with Collector() as collector:
        before = held()
        with pytest.raises(ConfigError, match=words):
            collector.attach(hooked.MODULE, **tunables)
        assert held() == before
        assert collector.modules == ()


def test_tunables_reach_program_and_handler() -> None:
    needs.root()
    with Collector() as collector:
        collector.attach(hooked.MODULE, watched=os.getpid(), offset=-1009)
        handler = collector.find("hooked")
        assert isinstance(handler, hooked.HookedHandler)
        assert handler.context.tunables == {
            "watched": os.getpid(),
            "offset": -1009,
            "quiet": False,
        }
        collector.flush()
        spawn(1)
        assert {each.number - each.how for each in seen(collector.flush(), hooked.END)} == {-1009}


# -- tail calls ------------------------------------------------------------------------


def calling(name: str, *, serves: bool) -> Manifest:
    return Manifest(
        name=name,
        package="tests.bpf.objects",
        object_name="calling",
        handler=Handler,
        hooks=(),
        common_maps=("events", "tail_calls"),
        own_programs=("call", "serve"),
        tail_calls={"greeting": "serve"} if serves else {},
    )


def served(collector: Collector) -> int | None:
    fd = collector._intake.common.fd("tail_calls")
    value = bpf_map.lookup(fd, bytes(4), 4)
    return None if value is None else int.from_bytes(value, "little")


def test_a_slot_is_filled_and_emptied() -> None:
    needs.root()
    with Collector() as collector:
        collector.attach(calling("caller", serves=False))
        assert served(collector) is None
        collector.attach(calling("server", serves=True))
        attached = collector._ensemble.attached["server"]
        assert served(collector) == prog_info(attached.loaded.program("serve").fd).id
        # One at a time; who comes second changes nothing.
        with pytest.raises(ModuleStateError, match="rival offers it, server already serves it"):
            collector.attach(calling("rival", serves=True))
        assert served(collector) == prog_info(attached.loaded.program("serve").fd).id
        collector.detach("server")
        assert served(collector) is None
        collector.attach(calling("rival", serves=True))
        assert served(collector) is not None


def test_a_manifest_without_its_object() -> None:
    needs.root()
    with Collector() as collector, pytest.raises(ManifestError, match=r"nothing\.\w+\.bpf\.o"):
        collector.attach(attrs.evolve(generator.MODULE, object_name="nothing"))
