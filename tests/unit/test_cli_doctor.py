# SPDX-License-Identifier: Apache-2.0
"""
The doctor on this host, with and without privileges.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from kprobe_modules import cli
from tests.support.requirements import needs
from tests.support.shell import Shell

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_doctor_finds_this_host_fit_and_attaches(shell: Shell) -> None:
    needs.root()
    done = shell("doctor", "-j", "-m", "doors", "--attach")

    found = {item["id"]: item for item in map(json.loads, done.stdout.splitlines())}
    failed = [item for item in found.values() if item["status"] == "fail"]
    assert (done.returncode, failed) == (0, [])
    assert found["module.doors"]["found"] == "1.5 of kmtest-doors"
    assert found["attach.doors"]["status"] == "ok"


def test_doctor_works_unprivileged_and_ends_failures_with_a_remedy(shell: Shell) -> None:
    done = shell("doctor", "-m", "doors,unimportable", "--attach", prefix=shell.unprivileged())

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
