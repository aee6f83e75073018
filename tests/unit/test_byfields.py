# SPDX-License-Identifier: Apache-2.0
"""
Values that compare by fields behave as attrs' own do.
"""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st

from kprobe_modules.byfields import ByFields
from kprobe_modules.records import Lost, Record, Steady


@attrs.frozen
class Plain:
    one: int
    two: tuple[int, ...] = ()
    aside: int = attrs.field(default=0, eq=False)
    quiet: int = attrs.field(default=0, repr=False, hash=False)


@attrs.frozen(eq=False, repr=False)
class Ours(ByFields):
    one: int
    two: tuple[int, ...] = ()
    aside: int = attrs.field(default=0, eq=False)
    quiet: int = attrs.field(default=0, repr=False, hash=False)


small = st.integers(0, 1)
values = st.tuples(small, st.tuples(small), small, small)


@given(values, values)
def test_they_compare_as_attrs_has_it(one, other):
    assert (Ours(*one) == Ours(*other)) == (Plain(*one) == Plain(*other))
    assert (Ours(*one) != Ours(*other)) == (Plain(*one) != Plain(*other))
    assert repr(Ours(*one)) == repr(Plain(*one)).replace("Plain", "Ours")
    if Ours(*one) == Ours(*other):
        assert hash(Ours(*one)) == hash(Ours(*other))


def test_values_of_two_classes_differ():
    assert Ours(1) != Plain(1)
    assert Steady(1, "a", 2) != Lost(1, "a", "b", 0, 2)
    assert attrs.evolve(Ours(1), aside=3) == Ours(1)
    assert len({Ours(1), Ours(1, aside=3), Ours(2)}) == 2


def test_records_of_others_compare_by_all_their_fields():
    @attrs.define
    class DoorOpened(Record, module="doors"):
        pid: int

    assert DoorOpened(1, 2) == DoorOpened(1, 2) != DoorOpened(2, 2)
    assert repr(DoorOpened(1, 2)) == "DoorOpened(time=1, pid=2)"
    assert repr(Steady(1, "doors", 2)) == "Steady(time=1, module='doors', found=2, resync=False)"
