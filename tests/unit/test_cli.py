# SPDX-License-Identifier: Apache-2.0
"""
The command line: arguments, exit statuses, and the commands that only read.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kprobe_modules import Registry, cli
from tests.support.shell import Shell

COMMANDS = ["run", "top", "capture", "replay", "list", "describe", "fields", "doctor", "config"]

if TYPE_CHECKING:
    from pathlib import Path


REGISTERED = ("doors", "broken", "unimportable", *Registry().names())


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


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
        (["--disable", "dors"], "command line: no module is named 'dors' (did you mean 'doors'?)"),
        (["--set", "dors.a=1"], "command line: modules.dors.a: no module is named 'dors' (did you"),
        (["--hook", "dors.a=x"], "command line: hooks.dors.a: no module is named 'dors' (did you"),
        (["--filter", "pid"], "--filter: expected FIELD OP VALUE with"),
        (["--filter", "pidd==1"], "--filter: no record has a field 'pidd'; there are "),
        (["--fields", "pid,colour"], "--fields: no record has a field 'colour'"),
        (["-p", "self"], "-p/--pid: expected numbers with commas, found 'self'"),
        (["-n", "("], "comm: expected a regular expression, found '('"),
        (["-j", "-o", "columns"], "-j: expected no -o, or -o json, found -o columns"),
        (["--config", "/nonexistent.toml"], "/nonexistent.toml: no such configuration file"),
        (["--disable", ",".join(REGISTERED)], "no module to attach"),
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


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_the_options_it_has_among_all(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for parser in (cli.build_parser(), cli.build_parser(name)):
        with pytest.raises(SystemExit):
            parser.parse_args([name, "--help"])
        said.append(capsys.readouterr().out)

    assert "--verbose" in said[0]
    assert said[0] == said[1]


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


def test_a_run_without_a_capture_does_not_import_it() -> None:
    code = (
        "import sys, kprobe_modules.commands.run, kprobe_modules.collector;"
        "assert 'kprobe_modules.capture' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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


def test_modules_that_are_named_in_several_flags_add_up(shell: Shell) -> None:
    done = shell("config", "check", "-m", "doors", "-m", "udp,tcp", "--disable", "tcp")
    none = shell("config", "check", "--disable", "doors", "--disable", ",".join(REGISTERED[1:]))

    assert done.stdout.splitlines()[0].split("(")[0].split() == ["modules", "doors,", "udp"]
    assert none.stdout.splitlines()[0].split()[:2] == ["modules", "none"]


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


def test_describe_needs_no_privileges(shell: Shell) -> None:
    text = shell("describe", "doors", prefix=shell.unprivileged())
    data = shell("describe", "doors", "-o", "json", prefix=shell.unprivileged())

    assert (text.returncode, data.returncode) == (0, 0)
    assert "size_96" in text.stdout
    assert "size_96" in {message["name"] for message in json.loads(data.stdout)["messages"]}


def test_an_unknown_module_is_a_failure(shell: Shell) -> None:
    done = shell("fields", "dors")

    assert done.returncode == cli.FAILURE
    assert done.stderr.startswith("kprobe-modules: no module is registered as 'dors'")
