# SPDX-License-Identifier: Apache-2.0
"""
The example plug-in, installed as anybody's package would be.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kprobe_modules.features import Features
from tests.support.datagram_sizes import LARGER
from tests.support.requirements import needs

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "datagram_sizes"

WATCH = """
import json, os, socket
from kprobe_modules import Collector
from tests.support.datagram_sizes import send

with Collector(["datagram_sizes"]) as collector:
    collector.flush()
    for family in (socket.AF_INET, socket.AF_INET6) * 3:
        send(family)
    told = [
        (each.size, each.sent, each.socket_id)
        for each in collector.flush()
        if each.record == "larger_datagram" and each.pid == os.getpid()
    ]
    print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    Return a folder into which the package has been built and installed.
    """
    folder = tmp_path_factory.mktemp("example")
    source = folder / "source"
    shutil.copytree(EXAMPLE, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    run([*command, "--target", str(folder / "target"), str(source)], folder)
    return folder / "target"


def run(command: list[str], cwd: Path, *path: Path) -> str:
    environment = {
        **os.environ,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONPATH": os.pathsep.join(map(str, path)),
    }
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_it_is_small_and_edits_nothing() -> None:
    python = list(EXAMPLE.rglob("*.py"))
    assert sum(len(path.read_text().splitlines()) for path in python) <= 60
    assert len(list(EXAMPLE.rglob("*.bpf.c"))) == 1
    named = [
        path
        for folder in ("src", "modules", "rings")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".c", ".h"} and "datagram_sizes" in path.read_text()
    ]
    assert named == []


@pytest.mark.slow
def test_it_is_found_and_says_what_it_shares(installed: Path) -> None:
    command = [sys.executable, "-m", "kprobe_modules"]
    arguments = ["-m", "datagram_sizes", "-j"]
    entry = json.loads(run([*command, "list", *arguments], installed, installed))
    assert (entry["distribution"], entry["distribution_version"]) == ("datagram_sizes", "1")
    assert entry["exports"] == ["datagram_sizes"]
    assert entry["imports"] == {"udp_open_sockets": "udp"}
    hooks = {each["hook"]: each for each in entry["hooks"]}
    if Features().kprobe("udp_sendmsg"):
        assert hooks["larger"]["live"] == "larger_slot"
        assert hooks["larger"]["caller"] == "datagram_sizes"
    told = run([*command, "describe", "datagram_sizes"], installed, installed)
    assert "calling slot/datagram_sent" in told
    assert "module, exported" in told


@pytest.mark.slow
def test_it_tells_of_datagrams(installed: Path) -> None:
    needs.root()
    features = Features()
    possible = features.kprobe("udp_sendmsg") or features.tracepoint_btf("sock_send_length")
    needs.that(possible, possible.reason)
    told = json.loads(run([sys.executable, "-c", WATCH], installed, installed, ROOT))
    assert [(size, sent) for size, sent, _ in told] == LARGER * 6
