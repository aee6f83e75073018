# SPDX-License-Identifier: Apache-2.0
"""
What a guest's run amounts to: results from JUnit XML, the kernel's complaints from dmesg.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import attrs

if TYPE_CHECKING:
    from pathlib import Path

SPLAT = re.compile(
    r"WARNING: (?:CPU|possible|suspicious|at )|BUG: |Oops[: ]|general protection fault|"
    r"Kernel panic|rcu.*(?:self-detected stall|detected stalls)|soft lockup|hard LOCKUP|"
    r"blocked for more than \d+ seconds|UBSAN: |KASAN: |KFENCE: |refcount_t: |"
    r"unregister_netdevice: waiting|list_(?:add|del) corruption"
)
#: Complaints of an emulated machine about its emulation, said at every boot.
HARMLESS = re.compile(r"unchecked MSR access|clocksource|TSC|i6300esb|Speculative|Spectre|RETBleed")


@attrs.frozen
class Failure:
    """
    A test that did not pass, and what pytest said of it.
    """

    test: str
    kind: str
    text: str

    def __str__(self) -> str:
        return f"--- {self.kind} in the guest: {self.test}\n{self.text.rstrip()}"


@attrs.frozen
class Verdict:
    """
    Counts of one run of pytest, and each test that failed or was skipped.
    """

    passed: int
    failures: tuple[Failure, ...]
    skipped: tuple[Failure, ...]

    def __str__(self) -> str:
        return f"{self.passed} passed, {len(self.failures)} failed, {len(self.skipped)} skipped"


def read(report: Path) -> Verdict:
    """
    Read pytest's JUnit XML.

    Raises :exc:`ValueError` when the file is missing or cut short, as after a crash.
    """
    try:
        root = ET.parse(report).getroot()  # noqa: S314  (our own pytest wrote it)
    except (OSError, ET.ParseError) as error:
        msg = f"pytest in the guest left no readable report: {error}"
        raise ValueError(msg) from error
    passed = 0
    failures, skipped = [], []
    for case in root.iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        bad = [child for child in case if child.tag in {"failure", "error"}]
        failures += [_failure(name, child) for child in bad]
        left_out = [child for child in case if child.tag == "skipped"]
        skipped += [_failure(name, child) for child in left_out]
        passed += not bad and not left_out
    return Verdict(passed, tuple(failures), tuple(skipped))


def splats(dmesg: str) -> list[str]:
    """
    Return the lines in which a kernel complains of itself.
    """
    return [line for line in dmesg.splitlines() if SPLAT.search(line) and not HARMLESS.search(line)]


def _failure(name: str, child: ET.Element) -> Failure:
    text = child.text or child.get("message") or ""
    return Failure(name, child.tag, text)
