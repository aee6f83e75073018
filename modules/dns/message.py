# SPDX-License-Identifier: Apache-2.0
"""
A DNS message: what it asks, and what it answers.

Made for messages that anybody may have sent: whatever the bytes are, `parse` returns or raises
`MessageError`, and its work is bounded by their number.  What follows the answers is only skipped,
but for the upper bits of the response code, which EDNS keeps there.
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError  # noqa: N812 - a class
from typing import TYPE_CHECKING

import attrs
from kprobe_modules.modules.dns.codes import class_text, type_text
from kprobe_modules.modules.dns.names import MessageError, name_at, name_end, plain_name
from kprobe_modules.modules.dns.values import value_text

if TYPE_CHECKING:
    from kprobe_modules.modules.dns.names import Known

__all__ = ["HEADER_SIZE", "Answer", "Message", "MessageError", "parse"]

_HEADER = Struct("!HHHHHH")
_QUESTION = Struct("!HH")
_RECORD = Struct("!HHIH")

HEADER_SIZE = _HEADER.size

_OPT = 41

_QR, _AA, _TC, _RD = 0x8000, 0x0400, 0x0200, 0x0100

_POINTER_TO_QUESTION = b"\xc0\x0c"

_TTL_SIGN = 0x8000_0000

_DAMAGE = (MessageError, IndexError, StructError)
"""What comes of reading bytes that are not as they should be."""


@attrs.define
class Answer:
    """
    A resource record of the answer section.
    """

    name: str
    """Whose it is, in presentation format, without the dot at its end; the root is ``.``."""
    rdtype: str
    """Such as ``AAAA``, or ``TYPE65280``."""
    rdclass: str
    """Such as ``IN``, or ``CLASS32``."""
    ttl: int
    """Seconds; 0 if the highest bit is set, as RFC 2181 has it."""
    value: str
    r"""As a zone file has it, such as ``10 mail.example.org``; if the type is not known, or the
    value not as the type wants it, such as ``\# 3 010203`` (RFC 3597)."""


@attrs.define(eq=False)
class Message:
    """
    What is told of a message.
    """

    id: int
    flags: int
    """The third and fourth byte: QR, opcode, AA, TC, RD, RA, AD, CD and rcode."""
    rcode: int
    """With the upper eight bits, if there is an OPT record."""
    questions: int
    """How many there ought to be."""
    question_name: str | None
    """Of the first question; None, as are ``question_type`` and ``question_class``, if there is
    none, or if it was cut off."""
    question_type: int | None
    question_class: int | None
    answers: tuple[Answer, ...]
    """All, or those before the first that cannot be read."""
    cut: bool
    """More bytes were sent than are here, and something that is told may be missing."""
    malformed: bool
    """Something behind the question is not as it should be, and may be missing."""

    @property
    def qr(self) -> bool:
        """Whether it is a response."""
        return bool(self.flags & _QR)

    @property
    def opcode(self) -> int:
        """0 for an ordinary query."""
        return self.flags >> 11 & 15

    @property
    def aa(self) -> bool:
        """Whether the answer is authoritative."""
        return bool(self.flags & _AA)

    @property
    def tc(self) -> bool:
        """Whether it was truncated by its sender."""
        return bool(self.flags & _TC)

    @property
    def rd(self) -> bool:
        """Whether recursion is desired."""
        return bool(self.flags & _RD)


class _Names(dict[bytes, str]):
    """
    Names of questions by their bytes: a query's comes again in its response.

    Only short ones are kept, and all are forgotten when there are many, so that memory stays
    under two megabytes.
    """

    def keep(self, wire: bytes, name: str) -> None:
        if len(wire) <= 80:  # noqa: PLR2004 - longer ones are rare
            if len(self) >= 4096:  # noqa: PLR2004 - entries of some 400 bytes at most
                self.clear()
            self[wire] = name


_names = _Names()


def parse(data: bytes, length: int | None = None) -> Message:
    """
    Read a message, without what TCP has before it.

    Args:
        data: the message, or its beginning.
        length: bytes of the whole message, if there are more than those of *data*.

    Raises:
        MessageError: this is no DNS message: the header is not there as a whole, the question
            is not as it should be, or there are several and anything is not as it should be.
    """
    cut = length is not None and length > len(data)
    if len(data) < HEADER_SIZE:
        msg = "shorter than a header"
        raise MessageError(msg)
    number, flags, questions, answers, authorities, additional = _HEADER.unpack_from(data)
    rcode = flags & 15
    name = rdtype = rdclass = None
    known: Known = {}
    found: list[Answer] = []
    malformed = False
    at = HEADER_SIZE
    try:
        if questions:
            name, rdtype, rdclass, at = _question(data, known)
            for _ in range(questions - 1):
                at = name_end(data, at) + _QUESTION.size
        if answers:
            at, sound = _read_answers(data, at, answers, known, found)
            malformed = not sound
        if additional:
            rcode |= _upper_rcode(data, at, authorities, additional)
    except _DAMAGE as error:
        # Nobody asks several things at once (RFC 9619), but text looks as if it did.
        if questions > 1 or (questions and name is None and not cut):
            msg = "the question is not as it should be"
            raise MessageError(msg) from error
        malformed = not cut
    return Message(
        number, flags, rcode, questions, name, rdtype, rdclass, tuple(found), cut, malformed
    )


def _question(data: bytes, known: Known) -> tuple[str, int, int, int]:
    """
    Return name, type and class of the first question, and the offset behind it.
    """
    # Up to the root's length, or to a zero that is within a label: then it is no plain name.
    end = data.find(0, HEADER_SIZE) + 1
    wire = data[HEADER_SIZE:end]
    name = _names.get(wire)
    if name is None:
        name = plain_name(wire)
        if name is not None:
            _names.keep(wire, name)
    if name is not None:
        known[HEADER_SIZE] = name, len(wire)
    else:
        name = name_at(data, HEADER_SIZE, known)
        end = name_end(data, HEADER_SIZE)
    rdtype, rdclass = _QUESTION.unpack_from(data, end)
    return name, rdtype, rdclass, end + _QUESTION.size


def _read_answers(
    data: bytes, at: int, count: int, known: Known, found: list[Answer]
) -> tuple[int, bool]:
    """
    Append what can be read; return the offset behind it, and whether it was as it should be.
    """
    size = len(data)
    sound = True
    for _ in range(count):
        if data.startswith(_POINTER_TO_QUESTION, at):
            name = name_at(data, HEADER_SIZE, known)
            at += 2
        else:
            name = name_at(data, at, known)
            at = name_end(data, at)
        rdtype, rdclass, ttl, length = _RECORD.unpack_from(data, at)
        start = at + _RECORD.size
        at = start + length
        if at > size:
            msg = "a record that is longer than the message"
            raise MessageError(msg)
        if ttl >= _TTL_SIGN:
            ttl = 0
        value, well = value_text(rdtype, rdclass, data, start, at, known)
        sound = sound and well
        found.append(Answer(name, type_text(rdtype), class_text(rdclass), ttl, value))
    return at, sound


def _upper_rcode(data: bytes, at: int, authorities: int, additional: int) -> int:
    """
    Return the upper bits of the response code, from an OPT record; 0 without one.
    """
    for index in range(authorities + additional):
        at = name_end(data, at)
        rdtype, _, ttl, length = _RECORD.unpack_from(data, at)
        if rdtype == _OPT and index >= authorities:
            return int(ttl) >> 24 << 4
        at += _RECORD.size + length
    return 0
