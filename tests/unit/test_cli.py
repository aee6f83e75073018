# SPDX-License-Identifier: Apache-2.0
"""
The command line: arguments, exit statuses, and what a run prints and where.

Runs are real: a distribution made for the test registers a module whose program
writes to the kernel's rings when its handler tells it to.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kprobe_modules
from kprobe_modules import cli
from kprobe_modules.commands import matching
from kprobe_modules.errors import ConfigError
from kprobe_modules.records import Record, Steady
from tests.support.requirements import needs

DOORS = '''
import attrs
from kprobe_modules.api import Handler, Manifest, Record
from kprobe_modules.libbpf import test_run


@attrs.define
class DoorOpened(Record, module="doors"):
    pid: int
    uid: int
    comm: str
    odd: bool


class DoorsHandler(Handler):
    """Six messages of the generator make one record; a hundred at once, then one a second."""

    def emit(self, count):
        test_run(self.context.program_fd("generate"), packet=bytes(64), repeat=6 * count)

    def steady(self, *, resync):
        self.emit(100)
        return ()

    def tick(self, now):
        self.emit(1)
        return ()

    def on_size_96(self, time, pid, uid, comm, odd):
        return DoorOpened(time, pid, uid, comm.rstrip(b"\\0").decode(), bool(odd))


class BrokenHandler(DoorsHandler):
    def __init__(self, context):
        raise ValueError("hinges are missing")


def manifest(name, handler):
    return Manifest(
        name=name,
        package="tests.bpf.objects",
        object_name="generator",
        handler=handler,
        hooks=(),
        common_maps=("events", "data_channel"),
        own_programs=(
            "generate", "generate_none", "generate_ragged", "emit_one", "exhaust_scratch",
        ),
        records=(DoorOpened,),
        summary="opens doors",
        version="1.5",
    )


MODULE = manifest("doors", DoorsHandler)
BROKEN = manifest("broken", BrokenHandler)
'''

ENTRY_POINTS = """\
[kprobe_modules.modules]
doors = kmtest_doors:MODULE
broken = kmtest_doors:BROKEN
unimportable = kmtest_missing:MODULE
"""


class Shell:
    """
    Runs the command in a process of its own, with the test's distribution installed.
    """

    def __init__(self, folder: Path) -> None:
        info = folder / "kmtest_doors-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kmtest-doors\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(ENTRY_POINTS)
        (folder / "kmtest_doors.py").write_text(DOORS)
        package = Path(kprobe_modules.__file__).parent.parent
        checkout = Path(__file__).resolve().parents[2]
        paths = [folder, checkout, package, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        kept = {key: value for key, value in os.environ.items() if "KPROBE_MODULES" not in key}
        self.environ = kept | {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "KPROBE_MODULES_CONFIG": str(folder / "empty.toml"),
        }
        (folder / "empty.toml").write_text("")
        for path in (folder, *folder.parents):
            if path.stat().st_uid == os.geteuid() and path != Path("/tmp"):  # noqa: S108
                path.chmod(path.stat().st_mode | 0o055)

    def start(self, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*prefix, sys.executable, "-m", "kprobe_modules", *arguments],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(
        self, *arguments: str, prefix: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, prefix=prefix)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def nobody(shell: Shell) -> tuple[str, ...]:
    """
    What to put before a command to take its privileges away.
    """
    needs.root()
    needs.command("setpriv")
    prefix = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    tried = shell("config", "check", prefix=prefix)
    if tried.returncode == 0:
        return prefix
    # Interpreter or checkout lie where only root may go: root without capabilities, then.
    return ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


def wait_until_asleep(pid: int) -> None:
    """
    Return when a process has slept, at the same place, for some looks in a row.
    """
    deadline = time.monotonic() + 20
    seen: list[str] = []
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
        # state, and the time spent in user and kernel mode
        seen.append(" ".join((stat[0], stat[11], stat[12])))
        if len(seen) >= 5 and seen[-1].startswith("S") and len(set(seen[-5:])) == 1:
            return
        time.sleep(0.02)
    pytest.fail(f"process {pid} never rests: {seen[-5:]}")


def records(text: str, name: str = "door_opened") -> list[dict[str, object]]:
    return [item for item in map(json.loads, text.splitlines()) if item["record"] == name]


# -- arguments --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--max-records", "0"], "invalid count value: '0'"),
        (["run", "--timeout", "soon"], "invalid seconds value: 'soon'"),
        (["run", "--timeout", "nan"], "invalid seconds value: 'nan'"),
        (["run", "-t", "-T"], "not allowed with"),
        (["run", "--transport", "smoke"], "invalid choice: 'smoke'"),
        (["run", "--time-out", "5"], "unrecognized arguments"),
        (["sing"], "invalid choice: 'sing'"),
        (["describe"], "the following arguments are required: MODULE"),
        (["config"], "the following arguments are required"),
    ],
)
def test_wrong_usage_exits_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)

    assert caught.value.code == cli.USAGE
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pages", "3"], "--pages: expected a power of two from 1 to 65536, found '3'"),
        (["--set", "doors"], "--set: expected MODULE.NAME=VALUE, found 'doors'"),
        (["--set", "a.b=c"], "--set: expected an integer, true or false, found 'a.b=c'"),
        (["--hook", "start=x"], "--hook: expected MODULE.NAME=VALUE, found 'start=x'"),
        (["-m", "dors"], "command line: no module is named 'dors' (did you mean 'doors'?)"),
        (["--filter", "pid"], "--filter: expected FIELD OP VALUE with"),
        (["--filter", "pidd==1"], "--filter: no record has a field 'pidd'; there are comm, count"),
        (["--fields", "pid,colour"], "--fields: no record has a field 'colour'"),
        (["-p", "self"], "-p/--pid: expected numbers with commas, found 'self'"),
        (["-n", "("], "comm: expected a regular expression, found '('"),
        (["-j", "-o", "columns"], "-j: expected no -o, or -o json, found -o columns"),
        (["--config", "/nonexistent.toml"], "/nonexistent.toml: no such configuration file"),
        (["--disable", "doors,broken,unimportable,processes"], "no module to attach"),
    ],
)
def test_a_wrong_value_exits_2_with_one_line(shell: Shell, arguments: list[str], said: str) -> None:
    done = shell("run", *arguments)

    assert (done.returncode, done.stdout) == (cli.USAGE, "")
    assert done.stderr.startswith(f"kprobe-modules: {said}")
    assert done.stderr.count("\n") == 1


def test_no_command_prints_help_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == cli.USAGE
    err = capsys.readouterr().err
    assert "exit status:" in err
    assert "a privilege or a feature of the kernel is missing" in err


def test_version_names_libbpf_and_where_it_is_from(shell: Shell) -> None:
    done = shell("-V")

    assert done.returncode == 0
    assert re.match(r"kprobe-modules \S.*, libbpf v?\d.* \(\w+ /.+\), Python 3", done.stdout)


def test_parsing_arguments_imports_no_framework(shell: Shell) -> None:
    program = (
        "import sys, kprobe_modules.cli as cli; cli.build_parser();"
        "print([n for n in sys.modules if n.startswith(('kprobe_modules.', 'attr', 'ctypes'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=shell.environ,
        text=True,
        capture_output=True,
        check=True,
    )

    assert done.stdout.strip() == "['kprobe_modules.cli']"


def test_config_check_says_where_each_value_is_from(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('enable = ["doors"]\npages = 8\n[modules.doors]\nkind = 3\n')
    shell.environ["KPROBE_MODULES_INTERVAL"] = "0.5"

    done = shell("config", "check", "--config", str(path), "--pages", "16")

    assert done.returncode == 0
    lines = [line.rstrip(")").split(" (") for line in done.stdout.splitlines()]
    assert [[*re.split(r"\s{2,}", text.strip()), origin] for text, origin in lines] == [
        ["modules", "doors", str(path)],
        ["transport", "perf", "default"],
        ["pages", "16", "command line"],
        ["data_pages", "the collector's choice", "default"],
        ["watermark", "the collector's choice", "default"],
        ["interval", "0.5", "environment"],
        ["modules.doors.kind 3", str(path)],
    ]


def test_config_check_refuses_a_bad_file(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("pages = 8\npages = 9\n")

    done = shell("config", "check", "--config", str(path))

    assert done.returncode == cli.USAGE
    assert done.stderr == (
        f"kprobe-modules: {path}: not valid TOML: Cannot overwrite a value (at line 2, column 10)\n"
    )


def test_list_names_the_distribution_of_a_broken_module(shell: Shell) -> None:
    done = shell("list", "-m", "doors,unimportable", "-j")

    assert done.returncode == 0
    doors, broken = map(json.loads, done.stdout.splitlines())
    assert (doors["distribution"], doors["version"], doors["hooks"]) == ("kmtest-doors", "1.5", [])
    assert "kmtest-doors" in broken["error"]
    assert "kmtest_missing" in broken["error"]


def test_fields_shows_types(shell: Shell) -> None:
    done = shell("fields", "doors", "-j")

    first = json.loads(done.stdout.splitlines()[0])
    assert first == {
        "record": "door_opened",
        "fields": {
            "time": "int",
            "module": "str",
            "record": "str",
            "pid": "int",
            "uid": "int",
            "comm": "str",
            "odd": "bool",
        },
    }
    assert "door_opened\n  time    int\n" in shell("fields", "doors").stdout


def test_describe_needs_no_privileges(shell: Shell, nobody: tuple[str, ...]) -> None:
    text = shell("describe", "doors", prefix=nobody)
    data = shell("describe", "doors", "-o", "json", prefix=nobody)

    assert (text.returncode, data.returncode) == (0, 0)
    assert "size_96" in text.stdout
    assert "size_96" in {message["name"] for message in json.loads(data.stdout)["messages"]}


def test_an_unknown_module_is_a_failure(shell: Shell) -> None:
    done = shell("fields", "dors")

    assert done.returncode == cli.FAILURE
    assert done.stderr.startswith("kprobe-modules: no module is registered as 'dors'")


# -- conditions -------------------------------------------------------------------------


class Thing(Record):
    pid = 7
    comm = "cat"
    argv = ("cat", "a b")
    existing = True
    ratio = 1.5
    nothing = None


THING = Thing(0)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("pid==7", True),
        (" pid == 0x7 ", True),
        ("pid!=7", False),
        ("pid>=8", False),
        ("pid<8", True),
        ("pid==seven", False),
        ("pid!=seven", True),
        ("pid>seven", False),
        ("comm==cat", True),
        ("comm!=cat", False),
        ("comm>b", True),
        ("comm~^c.t$", True),
        ("comm!~^c", False),
        ("argv~a b", True),
        ("existing==true", True),
        ("existing==False", False),
        ("ratio>1", True),
        ("ratio<=1.5", True),
        ("nothing==none", True),
        ("nothing>5", False),
        ("nothing!=5", True),
        ("existing>=false", False),
        ("absent==1", False),
        ("absent!=1", False),
        ("absent!~x", False),
    ],
)
def test_filter_expressions(expression: str, expected: bool) -> None:  # noqa: FBT001
    assert matching.parse(expression)(THING) is expected


@pytest.mark.parametrize("expression", ["", "pid", "=1", "pid=1", "1==1", "a.b==1"])
def test_other_expressions_are_refused(expression: str) -> None:
    with pytest.raises(ConfigError):
        matching.parse(expression)


def test_one_of_ignores_records_without_the_field() -> None:
    assert matching.one_of("pid", [7])(THING)
    assert not matching.one_of("pid", [8])(THING)
    assert not matching.one_of("pid", [8])(Steady(0, "doors", 1))


# -- runs -------------------------------------------------------------------------------


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


def test_without_privileges_one_line_names_the_capability(
    shell: Shell, nobody: tuple[str, ...]
) -> None:
    done = shell("run", "doors", prefix=nobody)

    assert (done.returncode, done.stdout) == (cli.UNPRIVILEGED, "")
    assert done.stderr.count("\n") == 1
    assert re.match(r"kprobe-modules: .*CAP_(BPF|PERFMON|SYS_ADMIN).* is needed to ", done.stderr)


# -- the doctor, on this host -----------------------------------------------------------


def test_doctor_finds_this_host_fit_and_attaches(shell: Shell) -> None:
    needs.root()
    done = shell("doctor", "-j", "-m", "doors", "--attach")

    found = {item["id"]: item for item in map(json.loads, done.stdout.splitlines())}
    failed = [item for item in found.values() if item["status"] == "fail"]
    assert (done.returncode, failed) == (0, [])
    assert found["module.doors"]["found"] == "1.5 of kmtest-doors"
    assert found["attach.doors"]["status"] == "ok"


def test_doctor_works_unprivileged_and_ends_failures_with_a_remedy(
    shell: Shell, nobody: tuple[str, ...]
) -> None:
    done = shell("doctor", "-m", "doors,unimportable", "--attach", prefix=nobody)

    lines = done.stdout.splitlines()
    failed = [line for line in lines if line.startswith("fail")]
    assert (done.returncode, done.stderr) == (cli.FAILURE, "")
    assert [line.split()[1] for line in failed if "capability" in line] == ["capability.load"]
    assert all("; remedy: " in line for line in failed)
    assert any("module.unimportable" in line and "kmtest-doors" in line for line in failed)
    assert any(line.split()[1] == "attach.doors" for line in failed)


def test_doctor_quiet_prints_failures_only(shell: Shell) -> None:
    done = shell("doctor", "--quiet", "-m", "unimportable")

    assert done.returncode == cli.FAILURE
    assert done.stdout
    assert all(line.startswith("fail ") for line in done.stdout.splitlines())
