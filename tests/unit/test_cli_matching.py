# SPDX-License-Identifier: Apache-2.0
"""
Choosing records by their fields.
"""

from __future__ import annotations

import pytest

from kprobe_modules.commands import matching
from kprobe_modules.errors import ConfigError
from kprobe_modules.records import Record, Steady


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
