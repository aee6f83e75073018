# SPDX-License-Identifier: Apache-2.0
"""
What today's handlers make of captures from each kernel.

A difference here is a change of what users get: look at it, then ``make captures``, or
for one that is meant ``python -m tests.support.captures expect``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kprobe_modules import cli
from kprobe_modules.capture import Replay
from tests.support.captures import golden, replayed_json
from tests.vm.kernels import KERNELS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("path", golden(), ids=lambda path: path.stem)
def test_a_capture_gives_the_records_it_gave(path: Path) -> None:
    assert replayed_json(path) == path.with_suffix(".json").read_bytes()


@pytest.mark.parametrize("path", golden(), ids=lambda path: path.stem)
def test_a_capture_is_small_and_has_no_foreign_process_in_it(path: Path) -> None:
    assert path.stat().st_size < 8 << 10
    records = [json.loads(line) for line in path.with_suffix(".json").read_bytes().splitlines()]
    assert records
    commands = {record["comm"] for record in records if "comm" in record}
    # The second is what the workload's first process was before it executed anything.
    assert {name.partition("-")[0].rstrip("3.1") for name in commands} <= {
        "sleep",
        "churn",
        "churned",
        "python",
    }
    assert set(Replay(path).heading) == {"kernel", "arch", "kprobe_modules", "series", "part"}


def test_there_is_a_capture_from_each_kernel_for_each_module() -> None:
    found = {path.stem for path in golden()}
    modules = {stem.partition("-")[0] for stem in found}
    assert modules
    assert found == {f"{module}-{kernel.name}" for module in modules for kernel in KERNELS}


@pytest.mark.parametrize("path", golden(), ids=lambda path: path.stem)
def test_the_command_prints_it(path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert cli.main(["replay", str(path), "-o", "json"]) == 0
    printed = capfdbinary.readouterr()
    assert printed.out == path.with_suffix(".json").read_bytes()
    assert b"captured on Linux" in printed.err
    assert b"records written" in printed.err


LONELY = """
import os, sys
from kprobe_modules.cli import main
def watch(event, arguments):
    looks = event in {"open", "os.listdir", "os.scandir"}
    elsewhere = looks and str(arguments[0]).startswith(("/proc", "/sys", "/run"))
    if elsewhere or event in {"socket.__new__", "_thread.start_new_thread", "subprocess.Popen"}:
        os.write(2, f"{event} {arguments}".encode())
        os._exit(99)  # whatever is raised, a handler's isolation would catch
sys.addaudithook(watch)
sys.exit(main(["replay", sys.argv[1], "-o", "none"]))
"""


@pytest.mark.parametrize("path", golden(), ids=lambda path: path.stem)
def test_a_replay_looks_at_nothing_and_asks_nobody(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LONELY, str(path)], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


#: Those of processes are older than their handler's question whether it is privileged.
RECENT = [path for path in golden() if not path.stem.startswith("processes")]


@pytest.mark.parametrize("path", RECENT, ids=lambda path: path.stem)
def test_handlers_ask_for_nothing_that_was_not_seen(path: Path) -> None:
    replay = Replay(path)
    for _ in replay.records():
        pass
    assert (replay.unanswered, replay.faults.errors) == (0, {})
