# SPDX-License-Identifier: Apache-2.0
"""
The parser of DNS messages against dnspython, and against bytes that mean harm.

What dnspython accepts ours reads alike; what it refuses ours refuses, or reads as far as it goes.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.update
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kprobe_modules.modules.dns import codes
from kprobe_modules.modules.dns.message import Answer, parse

from tests.support.dnspython import (
    AAAA,
    CNAME,
    DNAME,
    HTTPS,
    IN,
    MX,
    NS,
    OPT,
    PTR,
    SOA,
    SRV,
    SVCB,
    TXT,
    A,
    agree,
    ours,
    same_type,
    theirs,
)

QR = 0x8000


def header(questions=1, answers=0, authority=0, additional=0, *, number=7, flags=QR):
    return struct.pack("!6H", number, flags, questions, answers, authority, additional)


def name(*labels: bytes) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def question(wire=b"\3www\7example\0", rdtype=A, rdclass=IN):
    return wire + struct.pack("!HH", rdtype, rdclass)


def record(data, rdtype=A, rdclass=IN, *, owner=b"\xc0\x0c", ttl=60, length=None):
    size = len(data) if length is None else length
    return owner + struct.pack("!HHIH", rdtype, rdclass, ttl, size) + data


def pointer(offset):
    return struct.pack("!H", 0xC000 | offset)


# -- a corpus ----------------------------------------------------------------


def response(*answers, edns=False, rcode=0, asked=("www.example.org.", "A")):
    query = dns.message.make_query(*asked, use_edns=edns)
    query.id = 4711
    made = dns.message.make_response(query)
    made.set_rcode(rcode)
    for each in answers:
        made.answer.append(dns.rrset.from_text(*each))
    return made


def update():
    made = dns.update.UpdateMessage("example.org")
    made.present("a.example.org.")
    made.absent("b.example.org.", "A")
    made.add("c", 300, "A", "192.0.2.1")
    return made


def with_authority():
    made = response(rcode=3, edns=True)
    made.authority.append(
        dns.rrset.from_text(
            "example.org.", 60, "IN", "SOA", "ns.example.org. h.example.org. 1 2 3 4 5"
        )
    )
    return made


WWW = ("www.example.org.", 300, "IN")
CORPUS = {
    "query": dns.message.make_query("www.example.org.", "AAAA"),
    "query with edns": dns.message.make_query(
        "example.org.",
        "TXT",
        use_edns=0,
        payload=1232,
        options=[dns.edns.GenericOption(10, b"8bytes..")],
    ),
    "root": dns.message.make_query(".", "NS"),
    "type of its own": dns.message.make_query("x.", 65280),
    "class": dns.message.make_query("version.bind.", "TXT", "CH"),
    "notify": dns.message.Message(1),
    "update": update(),
    "a": response((*WWW, "A", "192.0.2.1", "192.0.2.2", "255.255.255.255"), edns=True),
    "aaaa": response((*WWW, "AAAA", "2001:db8::1", "::", "::1", "::ffff:192.0.2.1", "::192.0.2.1")),
    "chain": response(
        (*WWW, "CNAME", "web.cdn.example.net."),
        ("web.cdn.example.net.", 5, "IN", "CNAME", "edge.cdn.example.net."),
        ("edge.cdn.example.net.", 5, "IN", "A", "192.0.2.9"),
    ),
    "ptr": response(("1.2.0.192.in-addr.arpa.", 5, "IN", "PTR", "www.example.org.", ".")),
    "mx": response((*WWW, "MX", "10 mail.example.org.", "0 .", "65535 a.b.")),
    "ns": response((*WWW, "NS", "ns1.example.org.", "ns2.example.org.")),
    "soa": response((*WWW, "SOA", "ns1.example.org. hostmaster.example.org. 2024010101 2 3 4 5")),
    "txt": response(
        (*WWW, "TXT", '"v=spf1 -all" "second \\"one\\" \\\\ \\255"', '""', f'"{"x" * 255}"')
    ),
    "srv": response((*WWW, "SRV", "10 20 5060 sip.example.org.", "0 0 0 .")),
    "https": response(
        (*WWW, "HTTPS", '1 . alpn="h2,h3" port=8443 ipv4hint=192.0.2.1,192.0.2.2 ech="AAQAAQID"'),
        (*WWW, "HTTPS", "0 svc.example.net."),
        (
            *WWW,
            "HTTPS",
            '2 foo. mandatory=alpn,key99 alpn="f\\\\\\\\oo\\\\,bar,h2" no-default-alpn key99="a b"',
        ),
        (*WWW, "HTTPS", '3 . alpn=h2 ipv6hint=2001:db8::1,::1 dohpath="/dns-query{?dns}" ohttp'),
    ),
    "dname": response((*WWW, "DNAME", "example.net.")),
    "generic": response(
        (*WWW, "TYPE65280", "\\# 4 00ff1020"),
        (*WWW, "TYPE65281", "\\# 0"),
        (*WWW, "CAA", '0 issue "x"'),
    ),
    "long generic": response((*WWW, "TYPE65280", f"\\# 300 {'5a' * 300}")),
    "other class": response(("www.example.org.", 1, "CH", "TXT", '"9.18"')),
    "odd names": response(("a\\.b.\\000\\032\\255.\\@\\$\\(\\).x-_.", 1, "IN", "A", "192.0.2.1")),
    "nxdomain": with_authority(),
    "refused": response(rcode=5),
    "badvers": response(edns=True, rcode=16),
    "badcookie": response(edns=True, rcode=23),
    "high rcode": response(edns=True, rcode=0xABC),
}
CORPUS["notify"].set_opcode(dns.opcode.NOTIFY)
CORPUS["notify"].question.append(dns.rrset.RRset(dns.name.from_text("example.org."), 1, SOA))


@pytest.mark.parametrize("case", CORPUS)
def test_the_corpus_is_read_as_dnspython_reads_it(case):
    assert agree(CORPUS[case].to_wire(max_size=65535))


@pytest.mark.parametrize("case", CORPUS)
def test_what_is_cut_off_gives_what_is_there(case):
    wire = CORPUS[case].to_wire(max_size=65535)
    whole = parse(wire)
    for size in range(12, len(wire)):
        part = parse(wire[:size], len(wire))
        assert part.cut
        assert not part.malformed
        assert part.id == whole.id
        assert part.question_name in {None, whole.question_name}
        assert part.answers == whole.answers[: len(part.answers)]
    for size in range(12):
        assert ours(wire[:size], len(wire)) is None


def test_texts_that_dnspython_does_not_give():
    https = parse(CORPUS["https"].to_wire()).answers
    assert https[0] == Answer(
        "www.example.org", "HTTPS", "IN", 300,
        '1 . alpn="h2,h3" port="8443" ipv4hint="192.0.2.1,192.0.2.2" ech="AAQAAQID"',
    )  # fmt: skip
    odd = parse(CORPUS["odd names"].to_wire()).answers[0]
    assert odd.name == "a\\.b.\\000\\032\\255.\\@\\$\\(\\).x-_"
    assert parse(CORPUS["root"].to_wire()).question_name == "."
    assert {each.value for each in parse(CORPUS["ptr"].to_wire()).answers} == {
        "www.example.org", "."
    }  # fmt: skip
    assert parse(CORPUS["generic"].to_wire()).answers[0].value == "\\# 4 00ff1020"
    assert parse(CORPUS["other class"].to_wire()).answers[0].rdclass == "CH"


def test_flags():
    found = parse(header(0, flags=0x8000 | 5 << 11 | 0x0400 | 0x0200 | 0x0100 | 0x0080 | 3))

    assert all((found.qr, found.aa, found.tc, found.rd))
    assert (found.opcode, found.rcode) == (5, 3)
    none = parse(header(0, flags=0))
    assert not any((none.qr, none.aa, none.tc, none.rd))


def test_every_number_has_a_name():
    for number in range(1 << 16):
        assert same_type(number, codes.type_text(number))
    for number in range(1 << 16):
        assert codes.class_text(number) == {0: "CLASS0"}.get(number, dns.rdataclass.to_text(number))
    for number in range(1 << 12):
        text = dns.rcode.to_text(number)
        assert codes.rcode_text(number) == (f"RCODE{text}" if text.isdigit() else text)
    for number in range(16):
        text = "DSO" if number == 6 else dns.opcode.to_text(number)
        assert codes.opcode_text(number) == (f"OPCODE{text}" if text.isdigit() else text)


# -- bytes that mean harm ------------------------------------------------------


def test_hostile_questions():
    refused = {
        "none": b"",
        "a pointer to itself": b"\xc0\x0c\0\1\0\1",
        "a circle": b"\1a\xc0\x0c\0\1\0\1",
        "forward": b"\xc0\x20" + bytes(40),
        "a label of another kind": b"\x40a\0\0\1\0\1",
        "another label of another kind": b"\x80a\0\0\1\0\1",
        "a label that does not end": b"\x3fa\0\0\1\0\1",
        "half a pointer": b"\1a\xc0",
        "half a class": name(b"a") + b"\0\1\0",
        "a label of 80 bytes": question(b"P" + b"x" * 80 + b"\0"),
        "256 bytes": question(name(*[b"x" * 63] * 3, b"x" * 62)),
    }
    for what, data in refused.items():
        assert ours(header() + data) is None, what
        assert theirs(header() + data) is None, what


def test_questions_that_look_worse_than_they_are():
    longest = parse(header() + question(name(*[b"x" * 63] * 3, b"x" * 61)))
    assert longest.question_name == ".".join(["x" * 63] * 3 + ["x" * 61])
    zero = header() + question(name(b"a\0b", b"c"))
    for _ in range(2):
        assert parse(zero).question_name == "a\\000b.c"
        # The same bytes up to the zero as the beginning of another name.
        assert ours(header() + name(b"a\0b", b"c")[:3] + b"\0\1\0\1") is None
    assert parse(header(0)).question_name is None
    many = parse(header(3) + question() + question(name(b"b")) + question(name(b"c")))
    assert (many.questions, many.question_name, many.malformed) == (3, "www.example", False)
    assert ours(header(65535) + question()) is None
    assert ours(b"T / HTTP/1.1\r\nHost: " + b"GET / HTTP/1.1\r\n" * 99, 18245) is None
    assert parse(header(1, flags=0) + question() + b"rest").question_name == "www.example"


def test_damage_behind_the_question_leaves_what_is_before_it():
    good = record(b"\xc0\0\2\1")
    for damaged in (
        b"",
        b"\xff",
        record(b"\xc0\0\2\2", length=5),
        record(b"\xc0\0\2\2", owner=pointer(0x3FFF)),
        record(b"\xc0\0\2\2", owner=b"\x7f"),
        record(b"\xc0\0\2\2")[:-9],
    ):
        found = parse(header(1, 65535) + question() + good + damaged)
        assert found.malformed
        assert [each.value for each in found.answers] == ["192.0.2.1"]


@pytest.mark.parametrize(
    ("rdtype", "data"),
    [
        (A, b"\1\2\3"),
        (A, b""),
        (AAAA, b"\1\2\3\4"),
        (CNAME, b"\xc0"),
        (CNAME, b"\1a\0\0"),
        (CNAME, b"\xc0\x0c\0"),
        (CNAME, b"\xff\xff"),
        (MX, b"\1"),
        (MX, b""),
        (TXT, b""),
        (TXT, b"\5abc"),
        (SOA, b"\0\0" + bytes(19)),
        (SRV, b"\0\0\0\0\0"),
        (HTTPS, b"\0\1\0\0\1\0\5ab"),
        (HTTPS, b"\0\1\0\0\3\0\1a"),
        (HTTPS, b"\0\1\0\0\4\0\3abc"),
        (HTTPS, b"\0\1\0\0\4\0\4abcd\0\3\0\2ab"),
        (SVCB, b"\0\1\0\0\1\0\3\5ab"),
        (SVCB, b"\0\1"),
    ],
)
def test_a_value_that_is_not_as_its_type_wants_it_is_given_as_bytes(rdtype, data):
    good = record(b"\xc0\0\2\1")
    found = parse(header(1, 2) + question() + record(data, rdtype) + good)

    assert found.malformed
    expected = f"\\# {len(data)} {data.hex()}".rstrip()
    assert [each.value for each in found.answers] == [expected, "192.0.2.1"]
    assert theirs(header(1, 1) + question() + record(data, rdtype)) is None


def test_the_response_code_has_its_upper_bits_from_the_additional_section():
    opt = record(b"", OPT, 1232, owner=b"\0", ttl=0x12000000)
    start = header(1, 0, 1, 2, flags=QR | 3) + question()
    between = record(b"\xc0\x0c", NS)

    assert parse(start + between + between + opt).rcode == 0x123
    assert parse(start + between + opt + between).rcode == 0x123
    assert parse(header(1, 0, 1, 0) + question() + opt).rcode == 0
    assert parse(header(1, 0, 1, 1) + question() + opt + between).rcode == 0
    lacking = parse(start + between)
    assert (lacking.rcode, lacking.malformed) == (3, True)


def test_a_ttl_with_the_highest_bit_is_none():
    sent = header(1, 2) + question()
    sent += record(b"\xc0\0\2\1", ttl=0x80000000) + record(b"\xc0\0\2\1", ttl=0x7FFFFFFF)

    assert [each.ttl for each in parse(sent).answers] == [0, 0x7FFFFFFF]


def test_what_an_update_asks_has_no_value():
    sent = header(1, 2, flags=5 << 11) + question(rdtype=SOA)
    sent += record(b"", A, 255) + record(b"", TXT, 254)
    found = parse(sent)

    assert [each.value for each in found.answers] == ["\\# 0", "\\# 0"]
    assert [each.rdclass for each in found.answers] == ["ANY", "NONE"]
    assert not found.malformed


def lines_of(sent):
    """
    Return how many lines of ours reading a message takes.
    """
    folder = str(Path(codes.__file__).parent)
    lines = 0

    def count(frame, event, _argument):
        nonlocal lines
        if not frame.f_code.co_filename.startswith(folder):
            return None
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        ours(sent)
    finally:
        sys.settrace(before)
    return lines


def ladder(size):
    """
    Many short labels, and names that each begin at another of them.
    """
    rungs = size // 4
    start = header(1, 65535) + question()
    labels = b"\1a" * rungs + b"\0"
    at = len(start) + 12
    sent = start + record(labels, 65280)
    offsets = range(at, at + 2 * rungs, 2)
    answers = (record(pointer(o), CNAME) for o in reversed(offsets))
    return fill(sent, answers, size)


def chain(size, *, end):
    """
    Pointers to pointers, the first to *end*, and names that each begin at another of them.
    """
    start = header(1, 65535) + question()
    at = len(start) + 12
    offsets = [at, *range(at + len(end), at + size // 4, 2)]
    sent = start + record(end + b"".join(map(pointer, offsets[:-1])), 65280)
    answers = (record(pointer(o), CNAME) for o in reversed(offsets))
    return fill(sent, answers, size)


def fill(sent, answers, size):
    for each in answers:
        if len(sent) + len(each) > size:
            break
        sent += each
    return sent


@pytest.mark.parametrize(
    "make",
    [
        ladder,
        lambda size: chain(size, end=b"\x7f"),
        lambda size: chain(size, end=b"\1a\0"),
        lambda size: chain(size, end=b"\x3f" + b"a" * 63 + b"\x3f" + b"b" * 63 + b"\0"),
        lambda size: header(65535) + question(b"\0") * (size // 5),
        lambda size: header(1, 0, 65535, 65535) + question() + record(b"", 65280) * (size // 12),
        lambda size: header(1, 65535) + question() + record(b"", TXT) * (size // 12),
        lambda size: header(1, 1) + question() + record(b"\0" * size, TXT),
    ],
)
def test_the_work_is_bounded_by_the_size(make):
    for size in (1000, 4000, 16000):
        sent = make(size)
        assert len(sent) > size / 2
        assert lines_of(sent) < 12 * len(sent)


# -- any bytes -------------------------------------------------------------------


LABELS = st.one_of(
    st.sampled_from([b"www", b"example", b"org", b"Ex-ample", b"_tcp", b"x" * 63]),
    st.binary(min_size=1, max_size=6),
)
NAMES = (
    st.lists(LABELS, max_size=4).map(lambda labels: name(*labels)).filter(lambda n: len(n) < 256)
)


def packed(letters):
    bits = {"H": 1 << 16, "I": 1 << 32}
    numbers = st.tuples(*(st.integers(0, bits[letter] - 1) for letter in letters))
    return numbers.map(lambda values: struct.pack(f"!{letters}", *values))


def joined(*parts):
    return st.tuples(*parts).map(b"".join)


STRINGS = st.binary(max_size=20).map(lambda text: bytes([len(text)]) + text)


@st.composite
def parameters(draw):
    made = b""
    keys = draw(st.sets(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 11, 65444])))
    for key in sorted(keys | ({1} if 2 in keys else set())):
        value = {
            1: st.lists(STRINGS.filter(lambda s: len(s) > 1), min_size=1, max_size=3).map(b"".join),
            2: st.just(b""),
            3: packed("H"),
            4: st.binary(min_size=4, max_size=4).map(lambda a: a * 2),
            5: st.binary(min_size=4, max_size=20).map(lambda c: struct.pack("!H", len(c)) + c),
            6: st.binary(min_size=16, max_size=16),
            8: st.just(b""),
        }.get(key, st.binary(min_size=1, max_size=20))
        data = draw(value)
        made += struct.pack("!HH", key, len(data)) + data
    return made


VALUES = {
    A: st.binary(min_size=4, max_size=4),
    AAAA: st.one_of(
        st.binary(min_size=16, max_size=16),
        st.lists(st.sampled_from([b"\0\0", b"\0\1", b"\xff\xff"]), min_size=8, max_size=8).map(
            b"".join
        ),
    ),
    NS: NAMES,
    CNAME: NAMES,
    PTR: NAMES,
    DNAME: NAMES,
    MX: joined(packed("H"), NAMES),
    SRV: joined(packed("HHH"), NAMES),
    SOA: joined(NAMES, NAMES, packed("IIIII")),
    TXT: st.lists(STRINGS, min_size=1, max_size=4).map(b"".join),
    SVCB: joined(packed("H").filter(any), NAMES, parameters()),
    HTTPS: joined(packed("H").filter(any), NAMES, parameters()),
    65280: st.binary(max_size=40),
    999: st.binary(max_size=40),
}


@st.composite
def rrsets(draw, in_class=IN):
    rdtype = draw(st.sampled_from(sorted(VALUES)))
    data = draw(VALUES[rdtype])
    rd = dns.rdata.from_wire(in_class, rdtype, data, 0, len(data))
    owner, _ = dns.name.from_wire(draw(NAMES), 0)
    return dns.rrset.from_rdata(owner, draw(st.integers(0, (1 << 31) - 1)), rd)


@st.composite
def messages(draw):
    made = dns.message.Message(draw(st.integers(0, 65535)))
    made.flags = draw(st.integers(0, 65535)) & ~0x7800 & ~15
    made.set_opcode(draw(st.sampled_from([0, 0, 0, 1, 2, 4, 6, 15])))
    if draw(st.booleans()):
        made.use_edns(0, payload=draw(st.sampled_from([512, 1232, 4096])))
        made.set_rcode(draw(st.integers(0, 4095)))
    else:
        made.set_rcode(draw(st.integers(0, 15)))
    for _ in range(draw(st.sampled_from([1, 1, 1, 0, 2]))):
        asked, _ = dns.name.from_wire(draw(NAMES), 0)
        rdtype = draw(st.integers(1, 65535).filter(lambda t: t not in {OPT, 250}))
        made.question.append(dns.rrset.RRset(asked, draw(st.sampled_from([1, 1, 3])), rdtype))
    for section in (made.answer, made.authority, made.additional):
        section.extend(draw(st.lists(rrsets(), max_size=3)))
    return made.to_wire(max_size=65535)


@given(messages())
def test_any_message_is_read_as_dnspython_reads_it(wire):
    assert agree(wire)


@st.composite
def damaged(draw):
    wire = bytearray(draw(messages()))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(wire) - 1))
        kind = draw(st.integers(0, 5))
        if kind <= 2:
            wire[at] = draw(st.sampled_from([0, 1, 3, 12, 63, 64, 192, 193, 255, wire[at] ^ 1]))
        elif kind == 3 and len(wire) > 1:
            del wire[at : at + draw(st.integers(1, 4))]
        elif kind == 4:
            wire[at:at] = draw(st.binary(max_size=4))
        else:
            wire += wire[at:]
        if not wire:
            break
    return bytes(wire)


@given(damaged())
def test_damaged_messages_raise_nothing_but_our_own(wire):
    agree(wire)
    ours(wire, len(wire) + 1)


@given(st.binary(max_size=400), st.booleans())
@example(data=b"", with_header=True)
def test_noise_raises_nothing_but_our_own(data, with_header):
    agree(header(1, 3, 1, 1) + data if with_header else data)
