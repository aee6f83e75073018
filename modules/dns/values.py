# SPDX-License-Identifier: Apache-2.0
r"""
What a resource record says, as a zone file has it.

Names stand as in ``names.py``.  A type that is not listed here, and a value that is not as its type
wants it, is told as RFC 3597 has it: ``\# 3 010203``.
"""

from __future__ import annotations

from base64 import b64encode
from socket import AF_INET6, inet_ntoa, inet_ntop
from struct import Struct
from struct import error as StructError  # noqa: N812 - a class
from typing import TYPE_CHECKING

from kprobe_modules.modules.dns.names import MessageError, name_at, name_end

if TYPE_CHECKING:
    from collections.abc import Callable

    from kprobe_modules.modules.dns.names import Known

    Reader = Callable[[bytes, int, int, Known], str]
    """``(message, start, end, known)`` to text."""

__all__ = ["generic_text", "value_text"]

_U16 = Struct("!H")
_TWO_U16 = Struct("!HH")
_THREE_U16 = Struct("!HHH")
_FIVE_U32 = Struct("!IIIII")

_IPV4, _IPV6 = 4, 16
_IN = 1
_ASKING = (254, 255)
"""NONE and ANY."""

_QUOTED = tuple(
    f"\\{chr(byte)}"
    if byte in b'"\\'
    else chr(byte)
    if 0x20 <= byte < 0x7F  # noqa: PLR2004 - what ASCII can print
    else f"\\{byte:03}"
    for byte in range(256)
)

_MANDATORY, _ALPN, _NO_DEFAULT_ALPN, _PORT, _IPV4HINT, _ECH, _IPV6HINT = range(7)
_KEYS = (
    "mandatory", "alpn", "no-default-alpn", "port", "ipv4hint", "ech", "ipv6hint", "dohpath",
    "ohttp",
)  # fmt: skip
"""Service parameter keys: RFC 9460, 9461, 9540."""


def generic_text(data: bytes) -> str:
    r"""
    Return bytes as ``\# <length> <hexadecimal>``.
    """
    return f"\\# {len(data)} {data.hex()}" if data else "\\# 0"


def _wrong() -> MessageError:
    return MessageError("a value that is not as its type wants it")


def _quoted(data: bytes) -> str:
    return f'"{"".join(map(_QUOTED.__getitem__, data))}"'


def _strings(data: bytes, start: int, end: int) -> list[bytes]:
    """
    Return character strings, each with its length before it.
    """
    found = []
    while start < end:
        following = start + 1 + data[start]
        found.append(data[start + 1 : following])
        start = following
    if start != end or not found:
        raise _wrong()
    return found


def _a(data: bytes, start: int, end: int, known: Known) -> str:
    del known
    if end - start != _IPV4:
        raise _wrong()
    return inet_ntoa(data[start:end])


def _aaaa(data: bytes, start: int, end: int, known: Known) -> str:
    del known
    if end - start != _IPV6:
        raise _wrong()
    return inet_ntop(AF_INET6, data[start:end])


def _name(data: bytes, start: int, end: int, known: Known) -> str:
    if name_end(data, start) != end:
        raise _wrong()
    return name_at(data, start, known)


def _mx(data: bytes, start: int, end: int, known: Known) -> str:
    (preference,) = _U16.unpack_from(data, start)
    return f"{preference} {_name(data, start + 2, end, known)}"


def _srv(data: bytes, start: int, end: int, known: Known) -> str:
    priority, weight, port = _THREE_U16.unpack_from(data, start)
    return f"{priority} {weight} {port} {_name(data, start + 6, end, known)}"


def _soa(data: bytes, start: int, end: int, known: Known) -> str:
    rname = name_end(data, start)
    numbers = name_end(data, rname)
    if end - numbers != _FIVE_U32.size:
        raise _wrong()
    names = f"{name_at(data, start, known)} {name_at(data, rname, known)}"
    return f"{names} {' '.join(map(str, _FIVE_U32.unpack_from(data, numbers)))}"


def _txt(data: bytes, start: int, end: int, known: Known) -> str:
    del known
    return " ".join(map(_quoted, _strings(data, start, end)))


def _svcb(data: bytes, start: int, end: int, known: Known) -> str:
    (priority,) = _U16.unpack_from(data, start)
    at = name_end(data, start + 2)
    words = [str(priority), name_at(data, start + 2, known)]
    before = -1
    while at < end:
        key, length = _TWO_U16.unpack_from(data, at)
        at += 4 + length
        if key <= before or at > end:
            raise _wrong()
        before = key
        words.append(_parameter(key, data[at - length : at]))
    if at != end:
        raise _wrong()
    return " ".join(words)


def _key(number: int) -> str:
    return _KEYS[number] if number < len(_KEYS) else f"key{number}"


def _parameter(key: int, value: bytes) -> str:
    """
    Return a service parameter as ``key="value"``, or ``key`` if it has no value.
    """
    if not value:
        return _key(key)
    if key == _MANDATORY and not len(value) % 2:
        keys = [int.from_bytes(value[at : at + 2], "big") for at in range(0, len(value), 2)]
        text = f'"{",".join(map(_key, keys))}"'
    elif key == _ALPN:
        names = _strings(value, 0, len(value))
        text = _quoted(b",".join(_escaped_item(name) for name in names))
    elif key == _PORT and len(value) == _U16.size:
        text = f'"{int.from_bytes(value, "big")}"'
    elif key == _IPV4HINT and not len(value) % _IPV4:
        found = [inet_ntoa(value[at : at + _IPV4]) for at in range(0, len(value), _IPV4)]
        text = f'"{",".join(found)}"'
    elif key == _IPV6HINT and not len(value) % _IPV6:
        found = [inet_ntop(AF_INET6, value[at : at + _IPV6]) for at in range(0, len(value), _IPV6)]
        text = f'"{",".join(found)}"'
    elif key == _ECH:
        text = f'"{b64encode(value).decode("ascii")}"'
    elif key <= _IPV6HINT:
        raise _wrong()
    else:
        text = _quoted(value)
    return f"{_key(key)}={text}"


def _escaped_item(item: bytes) -> bytes:
    r"""
    Return a part of a comma-separated list, ``\`` before each comma and ``\`` (RFC 9460, A.1).
    """
    return item.replace(b"\\", b"\\\\").replace(b",", b"\\,")


_ANY_CLASS: dict[int, Reader] = {
    2: _name,  # NS
    5: _name,  # CNAME
    6: _soa,
    12: _name,  # PTR
    15: _mx,
    16: _txt,
    39: _name,  # DNAME
}
"""By type; what they look like does not depend on the class."""

_INTERNET: dict[int, Reader] = {
    1: _a,
    28: _aaaa,
    33: _srv,
    64: _svcb,
    65: _svcb,  # HTTPS
}
"""The same for those that only the class IN has."""


def value_text(
    rdtype: int, rdclass: int, data: bytes, start: int, end: int, known: Known
) -> tuple[str, bool]:
    """
    Return what a record says, and whether it is as its type wants it.

    Args:
        rdtype: the record's type.
        rdclass: the record's class.
        data: the message.
        start: offset of the record's data.
        end: offset behind them, which is in the message.
        known: what is known of names in this message.
    """
    reader = _ANY_CLASS.get(rdtype) or (_INTERNET.get(rdtype) if rdclass == _IN else None)
    # An update asks with a class and without data (RFC 2136, 2.4).
    if reader is None or (start == end and rdclass in _ASKING):
        return generic_text(data[start:end]), True
    try:
        return reader(data, start, end, known), True
    except (MessageError, IndexError, StructError):
        return generic_text(data[start:end]), False
