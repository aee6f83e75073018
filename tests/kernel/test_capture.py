# SPDX-License-Identifier: Apache-2.0
"""
Captures of real runs: a replay prints, byte for byte, what the run printed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.churn import churn_command
from tests.support.requirements import needs

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = [sys.executable, "-m", "kprobe_modules"]
SECONDS = 240.0


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    needs.root()


def wait_for_size(path: Path, run: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS
    while not path.exists() or not path.stat().st_size:
        assert run.poll() is None, f"the run ended with {run.returncode}"
        assert time.monotonic() < deadline, f"{path} stayed empty for {SECONDS} s"
        time.sleep(0.05)


def captured(tmp_path: Path, *arguments: str, count: int = 101) -> tuple[Path, bytes]:
    """
    Run with a capture while a workload runs; return the capture and what was printed.
    """
    path, printed = tmp_path / "c.kmc", tmp_path / "printed"
    churn = churn_command(count)
    command = [*COMMAND, *arguments, "-m", "processes", "-o", "json"]
    with printed.open("wb") as output, subprocess.Popen(command, stdout=output) as run:
        try:
            # What it prints first is what was there before, the workload comes after.
            wait_for_size(printed, run)
            subprocess.run(churn, check=True, stdout=subprocess.DEVNULL)
        finally:
            run.send_signal(signal.SIGINT)
        assert run.wait(SECONDS) == 0
    return path, printed.read_bytes()


def replayed(path: Path, *arguments: str) -> bytes:
    # Nothing of the machine may matter: neither its time nor what runs on it now.
    done = subprocess.run(
        [*COMMAND, "replay", str(path), *arguments],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "KPROBE_MODULES_LIBBPF": "/nonexistent"},
    )
    return done.stdout


def test_a_replay_prints_what_the_run_printed(tmp_path: Path) -> None:
    path = tmp_path / "c.kmc"
    _, printed = captured(tmp_path, "run", "--capture", str(path), "--stats")
    kinds = [json.loads(line)["record"] for line in printed.splitlines()]
    # Somebody was there, with a command line from /proc, and the workload came and went.
    existing = [line for line in map(json.loads, printed.splitlines()) if line.get("existing")]
    assert any(line["argv"] and line["executable"] for line in existing)
    assert kinds.count("process_exited") >= 101
    assert kinds[-1] == "stats"
    assert replayed(path, "-o", "json", "--stats") == printed


def test_a_capture_prints_what_passes_the_filter_and_keeps_everything(tmp_path: Path) -> None:
    path = tmp_path / "c.kmc"
    _, printed = captured(tmp_path, "capture", str(path), "-n", "^churn")
    assert replayed(path, "-o", "json", "-n", "^churn") == printed
    everything = replayed(path, "-o", "json")
    assert len(everything) > len(printed)
    assert set(printed.splitlines()) <= set(everything.splitlines())


def test_a_capture_that_was_killed_is_good_to_the_last_second(tmp_path: Path) -> None:
    path, printed = tmp_path / "c.kmc", tmp_path / "printed"
    churn = churn_command(31)
    command = [*COMMAND, "capture", str(path), "-m", "processes", "-o", "json"]
    with printed.open("wb") as output, subprocess.Popen(command, stdout=output) as run:
        try:
            wait_for_size(printed, run)
            subprocess.run(churn, check=True, stdout=subprocess.DEVNULL)
            size = path.stat().st_size
            deadline = time.monotonic() + SECONDS
            # What is waiting goes along with the tick that comes each second.
            while path.stat().st_size == size:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        finally:
            run.kill()
            run.wait()
    again = replayed(path, "-o", "json")
    assert b"process_exited" in again
    whole = printed.read_bytes()
    assert whole.startswith(again) or again.startswith(whole)
