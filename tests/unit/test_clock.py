# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time

import pytest

from kprobe_modules import clock
from kprobe_modules.clock import STEP, Clock


def test_it_tells_the_time() -> None:
    measured = Clock()
    assert abs(measured.now() - time.time_ns()) < STEP
    assert abs(time.monotonic_ns() + measured.offset - time.time_ns()) < STEP


def test_small_differences_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Clock()
    before = measured.offset
    monkeypatch.setattr(clock, "time_ns", lambda: time.time_ns() + STEP // 3)
    measured.refresh()
    assert measured.offset == before


@pytest.mark.parametrize("step", [-3_600_000_000_000, 2 * STEP, 3_600_000_000_000])
def test_a_step_is_followed(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    measured = Clock()
    before = measured.offset
    monkeypatch.setattr(clock, "time_ns", lambda: time.time_ns() + step)
    measured.refresh()
    assert abs(measured.offset - before - step) < STEP


def test_the_tightest_of_several_readings_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # Four readings take a second each and are wrong by half of it; one is exact.
    monotonic = iter([0, 1000, 2000, 3000, 4000, 4002, 5000, 6000, 7000, 8000])
    real = iter([999, 2999, 5001, 5999, 7999])
    monkeypatch.setattr(clock, "monotonic_ns", lambda: next(monotonic))
    monkeypatch.setattr(clock, "time_ns", lambda: next(real))
    assert clock._measure() == 5001 - 4001


def test_a_reading_that_was_interrupted_is_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Clock()
    before = measured.offset
    late = iter([3 * STEP])
    monkeypatch.setattr(clock, "time_ns", lambda: time.time_ns() + next(late, 0))
    measured.refresh()
    assert measured.offset == before
