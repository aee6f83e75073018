# SPDX-License-Identifier: Apache-2.0
"""
What the framework offers to handlers that follow sockets.
"""

import logging
import socket
from types import SimpleNamespace

import attrs
import pytest

from kprobe_modules.api import OpenSockets, Suspects, format_address
from kprobe_modules.opensockets import ENDED_COUNT, OPEN_COUNT
from kprobe_modules.suspects import CONFIRM_NS

SECOND = 1_000_000_000


@attrs.frozen
class One:
    socket_id: int


class Map:
    """
    A map of the kernel's side, by its values.
    """

    def __init__(self, *found):
        self.found = found

    def values(self, size=None):
        return (value[:size] for value in self.found)


def test_both_parts_are_bounded(caplog):
    table = OpenSockets()
    ones = [One(number) for number in range(OPEN_COUNT + 3)]
    for each in ones:
        table.add(each)

    assert (len(table), table.forgotten) == (OPEN_COUNT, 3)
    assert table.get(2) is None
    assert table.get(3) is ones[3]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            table.warn_of_forgotten(SimpleNamespace(log=logging.getLogger("module")))
    (warning,) = caplog.records
    assert warning.message.startswith("3 sockets were forgotten")
    for each in ones:
        table.end(each)
    assert len(table) == 0
    assert table.ended(OPEN_COUNT + 2 - ENDED_COUNT) is None
    assert table.ended(OPEN_COUNT + 3 - ENDED_COUNT) is ones[OPEN_COUNT + 3 - ENDED_COUNT]


def test_others_follow_who_comes_and_goes():
    table = OpenSockets()
    ones = [One(number) for number in range(4)]
    for each in ones[:2]:
        table.add(each)
    changes = table.follow()
    other = table.follow()
    table.add(ones[2])
    table.end(ones[0])
    table.remove(ones[2])
    table.end(ones[0])  # it is not in there any more
    table.unfollow(changes)
    table.add(ones[3])

    there = [(ones[0], True), (ones[1], True)]
    since = [(ones[2], True), (ones[0], False), (ones[2], False)]
    assert list(changes) == there + since
    assert list(other) == [*there, *since, (ones[3], True)]


def test_who_the_kernel_has_no_more_is_gone_after_a_while():
    table = OpenSockets()
    ones = [One(number) for number in range(3)]
    for each in ones:
        table.add(each)

    table.compare(Map((1).to_bytes(8, "little") + b"what follows"))
    table.compare(Map((1).to_bytes(8, "little")))
    assert table.gone(SECOND) == []
    assert table.gone(SECOND + CONFIRM_NS - 1) == []
    table.end(ones[2])  # its end was under way
    assert table.gone(SECOND + CONFIRM_NS) == [ones[0]]
    assert table.gone(SECOND + 2 * CONFIRM_NS) == []
    assert set(table) == {ones[0], ones[1]}


def test_who_is_suspected_again_begins_anew():
    suspects = Suspects()
    suspects.add("old")
    assert suspects.due(SECOND) == []
    suspects.add("old")
    suspects.add("new")
    assert suspects.due(SECOND + CONFIRM_NS) == ["old"]
    assert suspects.due(SECOND + 2 * CONFIRM_NS) == ["new"]
    suspects.add("old")
    assert suspects.due(SECOND + 3 * CONFIRM_NS) == []
    suspects.clear()
    assert suspects.due(SECOND + 5 * CONFIRM_NS) == []
    assert len(suspects) == 0


@pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "::"])
def test_addresses_are_text(text):
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    raw = socket.inet_pton(family, text).ljust(16, b"\0")

    assert format_address(6 if ":" in text else 4, raw) == text


def test_an_address_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="invalid length"):
        format_address(6, bytes(4))
