# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import attrs
import pytest

from kprobe_modules import Failure, Late, Lost, Record, Stats, Steady, as_dict
from kprobe_modules.records import field_names


@attrs.define
class DoorOpened(Record, module="doors"):
    pid: int
    comm: str = "someone"


def test_a_class_names_its_records_and_their_module() -> None:
    record = DoorOpened(7, 42)
    assert (record.record, record.module) == ("door_opened", "doors")
    assert (DoorOpened.record, DoorOpened.module) == ("door_opened", "doors")


@pytest.mark.parametrize(
    ("record_class", "name"),
    [(Steady, "steady"), (Lost, "lost"), (Late, "late"), (Failure, "failure"), (Stats, "stats")],
)
def test_names_of_the_frameworks_records(record_class: type[Record], name: str) -> None:
    assert record_class.record == name
    assert "module" in field_names(record_class)


def test_a_subclass_without_a_module_keeps_its_parents() -> None:
    @attrs.define
    class BackDoorOpened(DoorOpened):
        street: str = ""

    assert BackDoorOpened(1, 2).module == "doors"
    assert BackDoorOpened.record == "back_door_opened"
    assert DoorOpened.record == "door_opened"


def test_records_are_slotted_and_positional() -> None:
    record = DoorOpened(7, 42, "door")
    with pytest.raises(AttributeError):
        record.colour = "red"  # type: ignore[attr-defined]
    assert record == DoorOpened(time=7, pid=42, comm="door")
    assert field_names(DoorOpened) == ("time", "pid", "comm")


def test_as_dict_begins_with_what_every_line_has() -> None:
    assert list(as_dict(DoorOpened(7, 42)).items()) == [
        ("time", 7),
        ("module", "doors"),
        ("record", "door_opened"),
        ("pid", 42),
        ("comm", "someone"),
    ]
    assert list(as_dict(Lost(7, "doors", "opened", 1, 13))) == [
        "time",
        "module",
        "record",
        "message",
        "cpu",
        "count",
    ]
