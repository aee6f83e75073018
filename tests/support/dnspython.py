# SPDX-License-Identifier: Apache-2.0
"""
What dnspython makes of a DNS message, and whether our parser makes the same of it.
"""

from __future__ import annotations

import dns.message
import dns.opcode
import dns.rdata
import dns.rdatatype
from kprobe_modules.modules.dns.message import MessageError, parse

IN = 1
A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, DNAME, OPT = 1, 2, 5, 6, 12, 15, 16, 28, 33, 39, 41
SVCB, HTTPS, CAA, DS, TLSA = 64, 65, 257, 43, 52


UNKNOWN = {
    31: "EID", 32: "NIMLOC", 34: "ATMA", 40: "SINK", 57: "RKEY", 58: "TALINK", 100: "UINFO",
    101: "UID", 102: "GID", 259: "DOA",
}  # fmt: skip
"""Types that are IANA's and not among dnspython's."""


def same_type(number, text):
    return text == UNKNOWN.get(number, dns.rdatatype.to_text(number))


def plain(of):
    return of.to_text(omit_final_dot=True)


def same_value(rd, text):  # noqa: PLR0911 - type by type
    """
    Tell whether our text is what dnspython makes of a record's data.
    """
    kind = rd.rdtype
    if kind in {NS, CNAME, PTR, DNAME}:
        return text == plain(rd.target)
    if kind == MX:
        return text == f"{rd.preference} {plain(rd.exchange)}"
    if kind == SRV and rd.rdclass == IN:
        return text == f"{rd.priority} {rd.weight} {rd.port} {plain(rd.target)}"
    if kind == SOA:
        rest = f"{rd.serial} {rd.refresh} {rd.retry} {rd.expire} {rd.minimum}"
        return text == f"{plain(rd.mname)} {plain(rd.rname)} {rest}"
    if kind == TXT or (kind in {A, AAAA} and rd.rdclass == IN):
        return text == rd.to_text()
    if kind in {SVCB, HTTPS} and rd.rdclass == IN:
        if 10 in rd.params:  # it has a name that is too young
            return text.startswith(f"{rd.priority} {plain(rd.target)} ")
        parameters = rd.to_text().split(" ", 2)[2:]
        return text == " ".join([str(rd.priority), plain(rd.target), *parameters]).rstrip()
    exact = type(rd) is dns.rdata.GenericRdata or kind in {CAA, DS, TLSA}
    data = rd.to_wire()
    words = ["\\#", str(len(data)), *([data.hex()] if data else [])]
    return text == " ".join(words) if exact else text.startswith("\\# ")


def theirs(wire):
    try:
        return dns.message.from_wire(
            wire, one_rr_per_rrset=True, ignore_trailing=True, keyring=False
        )
    except Exception:  # noqa: BLE001 - it raises what its parts raise
        return None


def ours(wire, length=None):
    try:
        return parse(wire, length)
    except MessageError:
        return None


def agree(wire):
    """
    Compare both; return whether dnspython accepts the message.
    """
    expected, found = theirs(wire), ours(wire)
    if expected is None:
        return False
    assert found is not None
    assert not found.cut
    assert (found.id, found.flags) == (expected.id, expected.flags)
    assert found.opcode == expected.opcode()
    assert found.rcode == expected.rcode()
    asked = expected.sections[0]
    assert found.questions == len(asked)
    if asked:
        assert found.question_name == plain(asked[0].name)
        assert found.question_type == asked[0].rdtype
        if expected.opcode() != dns.opcode.UPDATE:
            assert found.question_class == asked[0].rdclass
    else:
        assert found.question_name is found.question_type is found.question_class is None
    if expected.opcode() == dns.opcode.UPDATE:
        return True  # its classes are instructions, and dnspython makes others of them
    assert not found.malformed
    answers = [(rrset, rd) for rrset in expected.sections[1] for rd in rrset]
    assert len(found.answers) == len(answers)
    for answer, (rrset, rd) in zip(found.answers, answers, strict=True):
        assert answer.name == plain(rrset.name)
        assert answer.ttl == rrset.ttl
        assert same_type(rd.rdtype, answer.rdtype)
        assert same_value(rd, answer.value), (rd.to_text(), answer.value)
    return True
