# SPDX-License-Identifier: Apache-2.0
"""
Runs: what is printed where, and what ends them.
"""

from __future__ import annotations

import json
import re
import signal
import time
from typing import TYPE_CHECKING

import pytest

from kprobe_modules import cli
from tests.support.requirements import needs
from tests.support.shell import Shell, wait_until_asleep

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def records(text: str, name: str = "door_opened") -> list[dict[str, object]]:
    return [item for item in map(json.loads, text.splitlines()) if item["record"] == name]


def test_a_run_writes_json_lines_and_keeps_status_off_stdout(shell: Shell) -> None:
    needs.root()
    done = shell("run", "doors", "-o", "json", "--timeout", "0.5", "--stats")

    assert done.returncode == 0, done.stderr
    opened = records(done.stdout)
    assert len(opened) >= 100
    assert list(opened[0]) == ["time", "module", "record", "pid", "uid", "comm", "odd"]
    assert opened[0]["comm"] == "kmevent"
    assert abs(int(str(opened[0]["time"])) - time.time_ns()) < 60 * 10**9
    assert [item["pid"] for item in opened[:3]] == [5, 11, 17]
    last = json.loads(done.stdout.splitlines()[-1])
    counts = last["modules"]["doors"]
    assert last["record"] == "stats"
    assert counts["emitted"] == counts["received"] + counts["lost"]
    assert counts["received"] == 6 * len(opened)
    assert (counts["lost"], counts["errors"]) == (0, 0)
    assert "doors 1.5: live: no hook" in done.stderr
    assert "doors: steady, 0 found" in done.stderr
    assert f"{counts['emitted']} emitted" in done.stderr


def test_the_ring_buffer_gives_the_same_records(shell: Shell) -> None:
    needs.root()
    pids = {}
    for transport in ("perf", "ringbuf"):
        done = shell(
            "run",
            "doors",
            "-j",
            "--transport",
            transport,
            "--filter",
            "pid<600",
            "--timeout",
            "0.5",
            # The generator counts on each CPU for itself.
            prefix=("taskset", "--cpu-list", "0"),
        )
        assert done.returncode == 0, done.stderr
        pids[transport] = sorted(int(str(item["pid"])) for item in records(done.stdout))[:50]

    assert pids["perf"] == pids["ringbuf"] != []


@pytest.mark.parametrize("limit", [1, 7, 99])
def test_max_records_is_exact(shell: Shell, limit: int) -> None:
    needs.root()
    done = shell("run", "doors", "-o", "json", "--max-records", str(limit), "--timeout", "20")

    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == limit
    assert f"\n{limit} records written\n" in done.stderr


def test_max_records_counts_only_what_was_chosen(shell: Shell) -> None:
    needs.root()
    done = shell(
        "run", "doors", "--fields", "pid", "-p", "5,17,23", "--max-records", "3", "--timeout", "20"
    )

    assert done.stdout.split() == ["PID", "5", "17", "23"]


def test_columns_are_for_a_person(shell: Shell) -> None:
    needs.root()
    done = shell(
        "run",
        "doors",
        "-U",
        "-n",
        "^km",
        "--filter",
        "odd==true",
        "--max-records",
        "2",
        "--timeout",
        "20",
    )

    header, first, _second = done.stdout.splitlines()
    assert header.split() == ["TIME", "MODULE", "RECORD", "PID", "UID", "COMM", "DETAILS"]
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d{3} doors  door_opened       5   1000 kmevent          odd", first
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_prints_totals_and_exits_0(shell: Shell, number: int) -> None:
    needs.root()
    with shell.start("run", "doors", "-j", "--interval", "3600", "--stats") as process:
        assert process.stdout is not None
        assert process.stdout.readline()  # it runs, and from now on it waits
        wait_until_asleep(process.pid)
        asked = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        took = time.monotonic() - asked

    assert process.returncode == 0, err
    assert took < 10, "the signal must end the wait, not the interval"
    counts = json.loads(out.splitlines()[-1])["modules"]["doors"]
    assert counts["emitted"] == counts["received"] + counts["lost"]
    assert "records written" in err


def test_a_closed_pipe_is_quiet(shell: Shell) -> None:
    needs.root()
    with shell.start("run", "doors", "-j") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=30) == 0

    assert "Traceback" not in err
    assert "Broken" not in err


def test_a_reader_that_leaves_is_noticed_without_a_record(shell: Shell) -> None:
    needs.root()
    with shell.start("run", "doors", "-j", "-p", "999999", "--interval", "3600") as process:
        assert process.stdout is not None
        assert process.stdout.readline()  # the steady record
        process.stdout.close()
        assert process.wait(timeout=30) == 0


def test_a_module_that_fails_is_reported_and_the_others_go_on(shell: Shell) -> None:
    needs.root()
    done = shell(
        "run", "-m", "unimportable,broken,doors", "-j", "--max-records", "1", "--timeout", "20"
    )

    assert done.returncode == 0, done.stderr
    assert "unimportable is not attached: module unimportable of distribution kmtest" in done.stderr
    assert "broken is not attached: ValueError: hinges are missing" in done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_no_module_attached_is_a_failure(shell: Shell) -> None:
    needs.root()
    done = shell("run", "-m", "unimportable,broken")

    assert (done.returncode, done.stdout) == (cli.FAILURE, "")


def test_a_tunable_is_set_and_an_unknown_one_refused(shell: Shell) -> None:
    needs.root()
    assert shell("run", "doors", "--set", "doors.kind=2", "--timeout", "0").returncode == 0
    done = shell("run", "doors", "--set", "doors.colour=2", "--timeout", "0")

    assert done.returncode == cli.USAGE
    assert "no tunable named colour" in done.stderr


def test_without_privileges_one_line_names_the_capability(shell: Shell) -> None:
    done = shell("run", "doors", prefix=shell.unprivileged())

    assert (done.returncode, done.stdout) == (cli.UNPRIVILEGED, "")
    assert done.stderr.count("\n") == 1
    assert re.match(r"kprobe-modules: .*CAP_(BPF|PERFMON|SYS_ADMIN).* is needed to ", done.stderr)


def test_loss_is_a_record_and_a_line_of_status(shell: Shell) -> None:
    needs.root()
    # 600 messages at once, into a ring of one page.
    done = shell("run", "doors", "-j", "--pages", "1", "--timeout", "1.5", "--stats")

    assert done.returncode == 0, done.stderr
    lost = records(done.stdout, "lost")
    counts = json.loads(done.stdout.splitlines()[-1])["modules"]["doors"]
    assert list(lost[0]) == ["time", "module", "record", "message", "cpu", "count"]
    assert sum(int(str(item["count"])) for item in lost) == counts["lost"] > 0
    assert counts["emitted"] == counts["received"] + counts["lost"]
    first = lost[0]
    assert f"doors: lost {first['count']} {first['message']} on CPU {first['cpu']}" in done.stderr


def test_metrics_come_by_interval(shell: Shell) -> None:
    needs.root()
    done = shell("run", "doors", "-j", "--metrics", "1", "--timeout", "3.5")

    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    metrics = [each for each in records if each["record"] == "metrics"]
    assert {each["module"] for each in metrics} == {"doors", "collector"}
    (program,) = [each for each in metrics[0]["programs"] if each["name"] == "generate"]
    assert program.keys() >= {"run_count", "run_time", "missed", "instructions", "memory"}


def test_too_short_an_interval_of_metrics_is_wrong_usage(shell: Shell) -> None:
    done = shell("run", "doors", "--metrics", "0.5")

    assert done.returncode == 2
    assert "seconds, 1 or more, value: '0.5'" in done.stderr
