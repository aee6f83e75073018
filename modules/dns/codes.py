# SPDX-License-Identifier: Apache-2.0
"""
What the numbers in a DNS message are called, as IANA's "DNS Parameters" has it.
"""

from __future__ import annotations

__all__ = ["class_text", "opcode_text", "rcode_text", "type_text"]

_TYPES = {
    number: name
    for first, names in (
        (1, "A NS MD MF CNAME SOA MB MG MR NULL WKS PTR HINFO MINFO MX TXT RP AFSDB X25 ISDN RT"),
        (22, "NSAP NSAP-PTR SIG KEY PX GPOS AAAA LOC NXT EID NIMLOC SRV ATMA NAPTR KX CERT A6"),
        (39, "DNAME SINK OPT APL DS SSHFP IPSECKEY RRSIG NSEC DNSKEY DHCID NSEC3 NSEC3PARAM"),
        (52, "TLSA SMIMEA"),
        (55, "HIP NINFO RKEY TALINK CDS CDNSKEY OPENPGPKEY CSYNC ZONEMD SVCB HTTPS DSYNC HHIT"),
        (68, "BRID"),
        (99, "SPF UINFO UID GID UNSPEC NID L32 L64 LP EUI48 EUI64"),
        (128, "NXNAME"),
        (249, "TKEY TSIG IXFR AXFR MAILB MAILA ANY URI CAA AVC DOA AMTRELAY RESINFO WALLET"),
        (32768, "TA DLV"),
    )
    for number, name in enumerate(names.split(), first)
}

_CLASSES = {1: "IN", 3: "CH", 4: "HS", 254: "NONE", 255: "ANY"}

_OPCODES = {0: "QUERY", 1: "IQUERY", 2: "STATUS", 4: "NOTIFY", 5: "UPDATE", 6: "DSO"}

_RCODES = {
    number: name
    for first, names in (
        (0, "NOERROR FORMERR SERVFAIL NXDOMAIN NOTIMP REFUSED YXDOMAIN YXRRSET NXRRSET NOTAUTH"),
        (10, "NOTZONE DSOTYPENI"),
        (16, "BADVERS BADKEY BADTIME BADMODE BADNAME BADALG BADTRUNC BADCOOKIE"),
    )
    for number, name in enumerate(names.split(), first)
}


def type_text(number: int) -> str:
    """
    Return the name of a type, ``AAAA``; without one ``TYPE65280``, as RFC 3597 has it.
    """
    return _TYPES.get(number) or f"TYPE{number}"


def class_text(number: int) -> str:
    """
    Return the name of a class, ``IN``; without one ``CLASS32``, as RFC 3597 has it.
    """
    return _CLASSES.get(number) or f"CLASS{number}"


def opcode_text(number: int) -> str:
    """
    Return the name of an opcode, ``QUERY``; without one ``OPCODE7``.
    """
    return _OPCODES.get(number) or f"OPCODE{number}"


def rcode_text(number: int) -> str:
    """
    Return the name of a response code, ``NXDOMAIN``; without one ``RCODE12``.

    16 is BADVERS here; in a TSIG record, which nobody reads, it would be BADSIG.
    """
    return _RCODES.get(number) or f"RCODE{number}"
