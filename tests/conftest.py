# SPDX-License-Identifier: Apache-2.0
"""
What holds for every test: no descriptor is left behind, and strict runs skip nothing.
"""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

STRICT = "KPROBE_MODULES_TEST_STRICT"


def _descriptors() -> dict[int, str]:
    """
    Return this process's open descriptors and what each of them is.
    """
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  (no objects in between)
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
        except FileNotFoundError:
            continue  # the one that listed
    return found


@pytest.fixture(autouse=True)
def _no_descriptor_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """
    Fail a test that leaves a descriptor open, and say which.

    Not one that waits for a guest: the next guests are started meanwhile, by threads.
    """
    before = _descriptors()
    yield
    if request.node.get_closest_marker("vm") is not None:
        return
    left = _left(before)
    if left:
        # What only the cycle collector closes had an owner; give it the chance.
        gc.collect()
        left = _left(before)
    if left:
        named = ", ".join(f"{number} ({what})" for number, what in sorted(left.items()))
        pytest.fail(f"left open: {named}; close it or hand it to an owner", pytrace=False)


def _left(before: dict[int, str]) -> dict[int, str]:
    return {number: what for number, what in _descriptors().items() if before.get(number) != what}


def _strict() -> bool:
    return os.environ.get(STRICT, "") not in {"", "0"}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """
    Turn a skip into a failure in a strict run; an expected failure is no skip.
    """
    report = yield
    if _strict() and report.skipped and not hasattr(report, "wasxfail"):
        _fail(report, item.nodeid)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """
    The same for a file that skips itself.
    """
    report = yield
    if _strict() and report.skipped:
        _fail(report, collector.nodeid)
    return report


def _fail(report: pytest.TestReport | pytest.CollectReport, name: str) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{name}: {reason} ({STRICT} is set: a skip is a failure)"
