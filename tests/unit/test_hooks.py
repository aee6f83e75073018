# SPDX-License-Identifier: Apache-2.0
"""
Choosing among alternatives, with a kernel that is a table of answers.
"""

from __future__ import annotations

import attrs
import pytest

from kprobe_modules import objectfile
from kprobe_modules.errors import AttachError, ConfigError, ManifestError
from kprobe_modules.features import Answer, Support
from kprobe_modules.hooks import check_hooks, choose, require
from kprobe_modules.manifest import Alternative, Hook
from tests.support import hooked

SPEC = objectfile.read(hooked.MODULE.object_bytes("x86_64"), "hooked")


@attrs.frozen
class Kernel:
    """
    Has everything but what is listed.
    """

    lacks: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def program(self, kind: str, target: str) -> Answer:
        if f"{kind}/{target}" in self.lacks or kind in self.lacks:
            return Answer(Support.NO, f"it has no {kind}")
        if kind in self.unknown:
            return Answer(Support.UNKNOWN, "nobody may look")
        return Answer(Support.YES)


def chosen(kernel: Kernel, **options: object) -> dict[str, str | None]:
    choices = choose(hooked.MODULE, SPEC, kernel, **options)  # type: ignore[arg-type]
    return {each.hook.name: each.alternative and each.alternative.name for each in choices}


def test_the_first_that_the_kernel_has() -> None:
    assert chosen(Kernel()) == {
        "start": "start_refused",
        "end": "end_raw",
        "late": "late_raw",
        "existing": "existing_iter",
    }
    assert chosen(Kernel(), refused={"start_refused": "no"})["start"] == "start_kprobe"
    assert chosen(Kernel(lacks=("raw_tp",)))["start"] == "start_kprobe"
    assert chosen(Kernel(lacks=("raw_tp", "kprobe")))["start"] is None


def test_unknown_is_worth_a_try() -> None:
    assert chosen(Kernel(unknown=("raw_tp", "iter")))["existing"] == "existing_iter"


def test_rejected_ones_are_told_with_reasons_in_order() -> None:
    kernel = Kernel(lacks=("kprobe",))
    start, *_ = choose(hooked.MODULE, SPEC, kernel, refused={"start_refused": "the verifier"})  # type: ignore[arg-type]
    assert start.rejected == (
        ("start_refused", "the verifier"),
        ("start_kprobe", "it has no kprobe"),
    )
    assert start.attach_point == "raw_tp/sched_process_fork"
    assert start.fields_missing == ("seen.number",)
    assert not start.waiting


def test_companions_count() -> None:
    with_companion = Alternative("start_raw", companions=("start_kprobe",))
    hook = Hook("start", "START", (with_companion, "start_refused"))
    manifest = attrs.evolve(hooked.MODULE, hooks=(hook,))
    [choice] = choose(manifest, SPEC, Kernel(lacks=("kprobe",)))  # type: ignore[arg-type]
    assert choice.alternative == Alternative("start_refused")
    [choice] = choose(manifest, SPEC, Kernel(), refused={"start_kprobe": "no"})  # type: ignore[arg-type]
    assert choice.alternative == Alternative("start_refused")


def test_a_hook_waits_only_while_its_kernel_module_is_missing() -> None:
    kernel = Kernel(lacks=("raw_tp/sched_process_exec",))
    for loaded in (True, False):
        late = choose(
            hooked.MODULE,
            SPEC,
            kernel,  # type: ignore[arg-type]
            kernel_module_loaded=lambda name, loaded=loaded: loaded and name == "km_test_module",  # type: ignore[misc]
        )[2]
        assert late.alternative is None
        assert late.waiting is not loaded
        assert late.fields_missing == ("seen.existing",)
        if loaded:
            with pytest.raises(AttachError, match="module hooked, hook late"):
                require("hooked", (late,))
        else:
            require("hooked", (late,))


def test_a_source_has_nothing_to_read_while_the_kernel_module_is_missing() -> None:
    hook = Hook("late", "TELEMETRY", (Alternative(source="netlink"),), awaits="km_test_module")
    manifest = attrs.evolve(hooked.MODULE, hooks=(hook,))
    for loaded in (True, False):
        [choice] = choose(
            manifest,
            SPEC,
            Kernel(),  # type: ignore[arg-type]
            kernel_module_loaded=lambda _name, loaded=loaded: loaded,  # type: ignore[misc]
        )
        assert (choice.alternative is not None, choice.waiting) == (loaded, not loaded)
    assert choice.rejected == (("netlink", "the kernel module km_test_module is not loaded"),)


@pytest.mark.parametrize(
    ("choice", "alternative"),
    [
        ("start_raw", "start_raw"),
        ("kprobe", "start_kprobe"),
        ("kprobe/wake_up_new_task", "start_kprobe"),
        ("raw_tp", "start_refused"),
    ],
)
def test_the_users_choice(choice: str, alternative: str) -> None:
    assert chosen(Kernel(), chosen={"start": choice})["start"] == alternative


def test_a_choice_is_not_replaced_by_another() -> None:
    choices = choose(
        hooked.MODULE,
        SPEC,
        Kernel(lacks=("kprobe",)),  # type: ignore[arg-type]
        chosen={"start": "start_kprobe"},
    )
    assert choices[0].alternative is None
    with pytest.raises(AttachError) as refused:
        require("hooked", choices)
    assert refused.value.tried == (("start_kprobe", "it has no kprobe"),)


def test_choices_of_what_is_not() -> None:
    with pytest.raises(ConfigError, match="no alternative is called 'netlink'; there are"):
        chosen(Kernel(), chosen={"start": "netlink"})
    with pytest.raises(ConfigError, match=r"hook hooked\.stop: there is no such hook"):
        chosen(Kernel(), chosen={"stop": "netlink"})


def test_a_source_is_an_alternative() -> None:
    hook = Hook("end", "END", ("end_raw", Alternative(source="netlink")))
    manifest = attrs.evolve(hooked.MODULE, hooks=(hook,))
    kernel = Kernel(lacks=("raw_tp",))
    [choice] = choose(manifest, SPEC, kernel)  # type: ignore[arg-type]
    assert choice.alternative == Alternative(source="netlink")
    assert choice.attach_point == "source/netlink"
    [choice] = choose(manifest, SPEC, kernel, refused={"netlink": "no socket"})  # type: ignore[arg-type]
    assert choice.alternative is None
    [choice] = choose(manifest, SPEC, Kernel(), chosen={"end": "netlink"})  # type: ignore[arg-type]
    assert choice.attach_point == "source/netlink"


def test_manifest_and_object_agree() -> None:
    check_hooks(hooked.MODULE, SPEC)


def test_every_disagreement_is_told() -> None:
    start, end, late, existing = hooked.MODULE.hooks
    manifest = attrs.evolve(
        hooked.MODULE,
        hooks=(
            attrs.evolve(start, alternatives=("start_raw", "start_twice")),
            attrs.evolve(end, tag="TELEMETRY"),
            attrs.evolve(late, name="later"),
            existing,
        ),
        own_programs=("sole",),
    )
    with pytest.raises(ManifestError) as refused:
        check_hooks(manifest, SPEC)
    assert str(refused.value).removeprefix("hooked: ").split("; ") == [
        "hook start: the object has no program start_twice",
        "hook end: program end_raw is tagged end/END in the object, expected end/TELEMETRY",
        (
            "hook later: program late_raw is tagged late/TELEMETRY in the object, "
            "expected later/TELEMETRY"
        ),
        "program sole: the manifest names it, the object has none",
        "program start_kprobe: no hook of the manifest lists it",
        "program start_refused: no hook of the manifest lists it",
    ]
