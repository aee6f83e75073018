# SPDX-License-Identifier: Apache-2.0
"""
The files of captures: framing, damage, rotation, versions, and layouts of other days.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kprobe_modules.modules.processes import MODULE
from kprobe_modules.modules.processes.handler import ProcessesHandler

from kprobe_modules import Registry, cli
from kprobe_modules.capture import Replay, blocks, drains, steps
from kprobe_modules.capture.blocks import PREAMBLE, STEPS, Block, Part
from kprobe_modules.capture.series import Series
from kprobe_modules.capture.steps import Observation, Step
from kprobe_modules.errors import CaptureError
from kprobe_modules.objectfile import read
from kprobe_modules.records import Failure, Lost, Stats
from kprobe_modules.specjson import from_plain, messages_to_plain
from tests.support.captures import gathered, golden, messages_of, replayed_json
from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kprobe_modules.records import Record

GOLDEN = next(path for path in golden() if path.stem.startswith("processes"))

HEAD = 200
"""Bytes that the preface and the heading fit in."""


def split(step: Step) -> Iterator[Step]:
    """
    Yield a step for each message of a drain; any other step as it is.
    """
    if step.kind != "drained":
        yield step
        return
    for message in messages_of(drains.from_plain(step.facts, step.body)):
        facts, body = drains.to_plain(gathered([message]))
        yield attrs.evolve(step, facts=facts, body=body)


def copied(
    target: Path,
    change: Callable[[Step], Step] = lambda step: step,
    *,
    max_size: int = 1 << 30,
    rotate: int = 0,
) -> Path:
    """
    Write a capture again, each message in a block of its own.
    """
    replay = Replay(GOLDEN)
    copy = Series(target, replay.heading, max_size=max_size, rotate=rotate)
    for whole in replay.steps():
        for step in split(whole):
            raw = steps.encode(change(step))
            copy.write(raw, 0)
            copy.flush()
            if step.kind in {"module", "attached", "admitted"}:
                copy.remember(step.module, raw)
    copy.close()
    return target


# -- damage --------------------------------------------------------------------------


def test_everything_before_a_cut_is_usable(tmp_path: Path) -> None:
    whole = copied(tmp_path / "whole.kmc")
    raw, expected = whole.read_bytes(), replayed_json(whole)
    assert expected == replayed_json(GOLDEN)
    seen = set()
    cut = tmp_path / "cut.kmc"
    for size in range(len(raw) - 1, 400, -97):
        cut.write_bytes(raw[:size])
        try:
            printed = replayed_json(cut)
        except CaptureError:
            assert size < len(raw) // 2
            continue
        assert expected.startswith(printed)
        assert printed.count(b"\n") == len(printed.splitlines())
        seen.add(len(printed))
    assert len(seen) > 10, "each block is worth something by itself"


def test_a_cut_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    raw = copied(tmp_path / "whole.kmc").read_bytes()
    cut = tmp_path / "cut.kmc"
    cut.write_bytes(raw[:-5])
    assert cli.main(["replay", str(cut), "-j"]) == 0
    said = capfd.readouterr().err
    assert f"of {len(raw) - 5}: a block of " in said
    assert "bytes is incomplete; what stands before it was replayed" in said


@given(at=st.integers(0, GOLDEN.stat().st_size - 1), flip=st.integers(1, 255))
def test_damage_is_found_and_what_is_before_it_is_used(at: int, flip: int) -> None:
    raw = bytearray(GOLDEN.read_bytes())
    raw[at] ^= flip
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"damaged-{os.getpid()}.kmc"  # noqa: S108
    path.write_bytes(raw)
    try:
        printed = replayed_json(path)
    except CaptureError:
        # The preface or the heading, without which nothing is known.
        assert at < HEAD
    else:
        assert GOLDEN.with_suffix(".json").read_bytes().startswith(printed)
    finally:
        path.unlink()


def test_what_a_checksum_vouches_for_is_read_with_care(tmp_path: Path) -> None:
    for step in (
        Step("drained", facts={"batches": [[1, 5, 64, None]], "newest": 1}, body=b"short"),
        Step("drained", facts={"batches": [[1, 1, 16, 4]], "newest": 1}, body=bytes(28)),
        Step("drained", facts={"batches": [[1, 1, 16, None]], "newest": 1}, body=bytes(20)),
        Step("module", "processes", facts={"id": 1}),
        Step("module", "processes", facts={"id": 1, "version": "1", "live": {}, "object": {}}),
    ):
        path = tmp_path / "odd.kmc"
        copy = Series(path, {"series": "1"}, max_size=1 << 20, rotate=0)
        copy.write(steps.encode(step), 0)
        copy.close()
        with pytest.raises(CaptureError, match="damaged"):
            replayed_json(path)


@pytest.mark.parametrize("raw", [b"", b"\0" * 4, b"{}", b"\x7fELF" * 100, blocks.MAGIC])
def test_what_is_no_capture_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(raw)
    with pytest.raises(CaptureError, match="other: not a capture: expected it to begin with"):
        Replay(path)


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    raw = bytearray(GOLDEN.read_bytes())
    raw[8] = blocks.VERSION + 1
    path = tmp_path / "newer.kmc"
    path.write_bytes(raw)
    with pytest.raises(CaptureError, match=r"newer.kmc: capture format 2, expected 1: read it"):
        Replay(path)


def test_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    stored = zlib.compress(bytes(1 << 20))
    head = blocks._CHECKED.pack(len(stored), 4096, STEPS, 1, 0)
    crc = zlib.crc32(stored, zlib.crc32(head)).to_bytes(4, "little")
    path = tmp_path / "bomb.kmc"
    path.write_bytes(
        blocks.preface() + blocks.encode(Block(blocks.HEADING, b"{}")) + head + crc + stored
    )
    part = Part(path)
    assert list(part.blocks()) == []
    assert part.cut is not None
    assert "a block is not as long as it says" in part.cut


# -- steps ---------------------------------------------------------------------------

_told = st.one_of(
    st.builds(Failure, st.integers(0, 1 << 63), st.text(), st.text(), st.text()),
    st.builds(Lost, st.integers(0, 1 << 63), st.text(), st.text(), st.integers(), st.integers()),
    st.builds(Stats, st.integers(0, 1 << 63), st.text(), st.just({"m": {"emitted": 3}})),
)
_steps = st.builds(
    Step,
    kind=st.text(min_size=1),
    module=st.text(),
    now=st.integers(0, 1 << 63),
    facts=st.dictionaries(st.sampled_from(["on", "hook", "live"]), st.text()),
    body=st.binary(),
    observed=st.lists(
        st.builds(Observation, st.text(), st.text(), st.binary() | st.integers(1, 200))
    ),
    told=st.lists(st.tuples(st.integers(0, 9), _told)),
    errors=st.integers(0, 9),
)


@settings(max_examples=50)
@given(st.lists(_steps, max_size=3))
def test_steps_come_back(given_: list[Step]) -> None:
    assert list(steps.decode(b"".join(map(steps.encode, given_)))) == given_


# -- rotation ------------------------------------------------------------------------


def sizes(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.iterdir()]


def test_rotation_bounds_the_size_and_keeps_the_newest(tmp_path: Path) -> None:
    lines = replayed_json(GOLDEN).splitlines()
    path = copied(tmp_path / "c.kmc", max_size=3600, rotate=2)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["c.kmc", "c.kmc.1", "c.kmc.2"]
    assert all(size <= 3600 for size in sizes(tmp_path))
    replay = Replay(path)
    assert replay.missing > 0
    taken = list(replay.records())
    assert len(taken) > 3, "they come as they are read"
    records = [record for each in taken for record in each]
    assert replay.faults.errors == {}
    assert replay.cuts == []
    last = json.loads(lines[-1])
    assert (records[-1].time, records[-1].record) == (last["time"], last["record"])
    # What is heard of a process whose start is in a file that is gone starts it.
    exited = {record.pid for record in records if record.record == "process_exited"}
    assert exited <= {record.pid for record in records if record.record == "process_started"}


def test_a_series_that_is_whole_gives_everything(tmp_path: Path) -> None:
    path = copied(tmp_path / "c.kmc", max_size=3600, rotate=100)
    assert len(list(tmp_path.iterdir())) > 3
    assert replayed_json(path) == replayed_json(GOLDEN)


def test_each_file_says_first_what_modules_there_are(tmp_path: Path) -> None:
    path = copied(tmp_path / "c.kmc", max_size=3600, rotate=2)
    kinds = [block.kind for block in Part(path).blocks()]
    assert kinds[0] == PREAMBLE
    assert set(kinds[1:]) == {STEPS}


def test_files_of_another_capture_are_left_out(tmp_path: Path) -> None:
    path = copied(tmp_path / "c.kmc", max_size=3600, rotate=100)
    stale = path.with_name("c.kmc.1").read_bytes()
    copied(path)
    path.with_name("c.kmc.1").write_bytes(stale.replace(b"series", b"siries"))
    assert replayed_json(path) == replayed_json(GOLDEN)
    path.with_name("c.kmc.1").write_bytes(b"something else")
    assert replayed_json(path) == replayed_json(GOLDEN)


def test_nobody_else_may_read_a_capture(tmp_path: Path) -> None:
    open_to_all = tmp_path / "c.kmc"
    open_to_all.touch(0o666)
    assert copied(open_to_all).stat().st_mode & 0o777 == 0o600


# -- layouts -------------------------------------------------------------------------


def test_layouts_come_back() -> None:
    for arch in ("x86_64", "arm64"):
        spec = read(MODULE.object_bytes(arch), "processes")
        again = from_plain(json.loads(json.dumps(messages_to_plain(spec))))
        assert again.messages == spec.messages
        assert (again.name, again.arch) == (spec.name, spec.arch)


def _messages(step: Step) -> Iterator[dict]:
    yield from step.facts["object"]["messages"]


def test_an_older_layout_is_read_as_it_was(tmp_path: Path) -> None:
    """
    As if two fields had changed places since, and another been added in between.
    """
    wider: dict[int, tuple[int, int]] = {}

    def older(step: Step) -> Step:
        if step.kind == "module":
            for message in _messages(step):
                old = next(field for field in message["fields"] if field["name"] == "start_time")
                for field in message["fields"]:
                    if field["offset"] > old["offset"]:
                        field["offset"] += 8
                wider[step.facts["id"] | message["id"] << 16] = (old["offset"], message["size"])
                old["offset"] += 8
                message["size"] += 8
        elif step.kind == "drained":
            rows = b""
            position = 0
            for entry in step.facts["batches"]:
                key, count, stride, tail = entry
                at, size = wider[key]
                for _ in range(count):
                    row = step.body[position : position + size]
                    rows += row[:at] + b"\xee" * 8 + row[at:]
                    position += stride
                if tail is not None:
                    rows += step.body[position : position + 4 * (count + 1) + tail]
                    position += 4 * (count + 1) + tail
                entry[2] += 8
            step.body = rows + step.body[position:]
        return step

    assert replayed_json(copied(tmp_path / "old.kmc", older)) == replayed_json(GOLDEN)


def test_a_field_that_an_older_layout_lacks_is_named(tmp_path: Path) -> None:
    def older(step: Step) -> Step:
        if step.kind == "module":
            step.facts["version"] = "0.3"
            for message in _messages(step):
                message["fields"] = [
                    field for field in message["fields"] if field["name"] != "duration"
                ]
        return step

    path = copied(tmp_path / "old.kmc", older)
    with pytest.raises(CaptureError) as refused:
        replayed_json(path)
    said = str(refused.value)
    assert f"{path}: made with processes 0.3" in said
    assert "on_pid_close: km_processes_pid_close has no field duration" in said


def test_a_message_that_an_older_object_lacks_never_comes(tmp_path: Path) -> None:
    def older(step: Step) -> Step:
        if step.kind == "module":
            step.facts["object"]["messages"] = [
                message for message in _messages(step) if message["name"] != "pid_exit"
            ]
        return step

    kept = b"".join(
        line
        for line in replayed_json(GOLDEN).splitlines(keepends=True)
        if b'"thread_exited"' not in line
    )
    assert replayed_json(copied(tmp_path / "old.kmc", older)) == kept


# -- replay --------------------------------------------------------------------------


def replayed(path: Path, handler: type[ProcessesHandler]) -> tuple[Replay, list[Record]]:
    registry = Registry({"processes": attrs.evolve(MODULE, handler=handler)})
    replay = Replay(path, registry=registry)
    return replay, [record for records in replay.records() for record in records]


def test_a_handler_that_has_come_to_raise_is_told() -> None:
    class Raising(ProcessesHandler):
        def on_pid_exec(self, pid: int) -> None:  # type: ignore[override]
            raise LookupError(pid)

    replay, records = replayed(GOLDEN, Raising)
    failures = [record for record in records if isinstance(record, Failure)]
    executed = GOLDEN.with_suffix(".json").read_bytes().count(b'"process_executed"')
    assert replay.faults.errors == {"processes": executed}
    assert failures[0].error.startswith("LookupError")
    assert "process_exited" in {record.record for record in records}


def test_a_handler_that_asks_for_more_is_answered_that_nothing_is_known() -> None:
    class Curious(ProcessesHandler):
        def on_pid_exec(self, pid: int) -> None:  # type: ignore[override]
            with pytest.raises(OSError, match="the capture does not say"):
                self.context.observe(f"{pid}/limits", b"never".upper)

    replay, _ = replayed(GOLDEN, Curious)
    executed = GOLDEN.with_suffix(".json").read_bytes().count(b'"process_executed"')
    assert replay.unanswered >= executed > 0
    assert replay.faults.errors == {}


def test_other_modules_can_be_left_out() -> None:
    assert [*Replay(GOLDEN, modules=["other"]).records()] == []


def test_a_module_that_is_not_installed_is_named() -> None:
    from kprobe_modules.errors import RegistryError

    registry = Registry()
    registry.__dict__["_points"] = {}
    with pytest.raises(RegistryError, match="processes"):
        list(Replay(GOLDEN, registry=registry).records())


UNPRIVILEGED = """
import ctypes, re, sys
status = open("/proc/self/status").read()
assert "CapEff:\\t0000000000000000" in status, status
def refuse(*arguments, **keywords):
    raise AssertionError("a library is loaded")
ctypes.CDLL.__init__ = refuse
from kprobe_modules.cli import main
status = main(["replay", sys.argv[1], "-o", "json"])
assert not re.search(r"libbpf[^/]*\\.so", open("/proc/self/maps").read())
sys.exit(status)
"""


def test_neither_privileges_nor_libbpf_are_needed() -> None:
    drop: list[str] = []
    if os.geteuid() == 0:
        needs.that(shutil.which("setpriv"), "needs setpriv, of util-linux")
        drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    done = subprocess.run(
        [*drop, sys.executable, "-c", UNPRIVILEGED, str(GOLDEN)],
        capture_output=True,
        check=False,
        env={**os.environ, "KPROBE_MODULES_LIBBPF": "/nonexistent/libbpf.so"},
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == GOLDEN.with_suffix(".json").read_bytes()


# -- the commands --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["replay", "/nonexistent"], 1, "No such file or directory: '/nonexistent'"),
        (["replay", __file__], 1, "not a capture: expected it to begin with b'\\x89KMC"),
        (
            ["replay", str(GOLDEN), "-m", "doors"],
            2,
            "-m: expected modules out of containers, dns, nat, processes, tcp, udp",
        ),
        (["replay", str(GOLDEN), "--filter", "colour==1"], 2, "no record has a field 'colour'"),
        (["run", "--capture", "/nonexistent/c.kmc"], 1, "No such file or directory"),
        (["capture", "/nonexistent/c.kmc"], 1, "No such file or directory"),
        (["capture", "/dev/full"], 1, "No space left on device"),
    ],
)
def test_what_goes_wrong_is_said(
    arguments: list[str], status: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == status
    printed = capfd.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize("size", ["", "K", "100", "-1M", "1T", "1.5M"])
def test_a_size_that_is_none_is_refused(size: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["capture", "c.kmc", f"--max-size={size}"])
    assert ended.value.code == 2
    assert f"invalid size (from 4K) value: '{size}'" in capfd.readouterr().err
