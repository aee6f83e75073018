# SPDX-License-Identifier: Apache-2.0
r"""
Domain names in a message, and their presentation format.

A name is told without the dot at its end, and the root as ``.``; otherwise as RFC 1035 has it and
dnspython writes it: what is special in a zone file is escaped with ``\``, what is not printable is
``\DDD``, and the case is left alone.

Any byte of a message may lie.  What a name is follows from the offset where it begins and from
nothing else, so every offset is looked at once in a message, however many names lead there, and
the work is bounded by the message's size.
"""

from __future__ import annotations

import string

from kprobe_modules.api import KprobeModulesError

__all__ = ["ROOT", "Known", "MessageError", "label_text", "name_at", "name_end", "plain_name"]

ROOT = "."

LONGEST = 255
"""Bytes of a name on the wire, its lengths and the root's included."""

Known = dict[int, tuple[str, int]]
"""What begins at an offset: the name, and its bytes on the wire if nothing were compressed.
More than `LONGEST` of them: it is too long to be one.  `_NO_NAME`: there is none."""

_NO_NAME = ("", 0)
_ROOT = (ROOT, 1)

_PLAIN = (string.ascii_letters + string.digits + "!#%&'*+,-/:<=>?[]^_`{|}~").encode()
"""What stands for itself in a label."""

_SPECIAL = frozenset(b'"().;\\@$')

_TEXTS = tuple(
    chr(byte) if byte in _PLAIN else f"\\{chr(byte)}" if byte in _SPECIAL else f"\\{byte:03}"
    for byte in range(256)
)


class MessageError(KprobeModulesError, ValueError):
    """
    Bytes are no DNS message.
    """


def label_text(label: bytes) -> str:
    """
    Return a label as a zone file has it.
    """
    if not label.translate(None, _PLAIN):
        return label.decode("ascii")
    return "".join(map(_TEXTS.__getitem__, label))


def plain_name(wire: bytes) -> str | None:
    """
    Return a name if it is one that is neither compressed nor has anything special, as most are.

    Args:
        wire: from its first byte to the first that is zero.
    """
    labels = []
    at, root = 0, len(wire) - 1
    if root >= LONGEST:
        return None
    while at < root:
        length = wire[at]
        if length > 63:  # noqa: PLR2004 - two bits say that it is no length
            return None
        following = at + 1 + length
        labels.append(wire[at + 1 : following])
        at = following
    text = b".".join(labels)
    # Without the plain characters the dots between labels are left, and no others.
    if at != root or not labels or text.translate(None, _PLAIN) != b"." * (len(labels) - 1):
        return None
    return text.decode("ascii")


def name_at(data: bytes, start: int, known: Known) -> str:
    """
    Return the name that begins at an offset.

    Args:
        data: the message.
        start: offset of the name.
        known: what is known of this message's offsets; all that is found out goes in.

    Raises:
        MessageError: there is no name: it runs out of the message, in circles, forward, is too
            long or has a label of a kind that does not exist.
    """
    found = known.get(start)
    if found is None:
        found = _find(data, start, known)
    name, size = found
    if not 0 < size <= LONGEST:
        msg = "a name that is too long" if size else "no name"
        raise MessageError(msg)
    return name


def _find(data: bytes, start: int, known: Known) -> tuple[str, int]:
    """
    Follow labels and pointers until the root, or what is known, and go back with the text.
    """
    path: list[tuple[int, bytes | None]] = []
    size = len(data)
    at = start
    while (found := known.get(at)) is None:
        # Taken back below; until then whoever comes here again goes in a circle.
        known[at] = _NO_NAME
        if at >= size:
            return _NO_NAME
        length = data[at]
        following = at + 1 + length
        if not length:
            found = known[at] = _ROOT
            break
        if length < 64 and following <= size:  # noqa: PLR2004 - two bits are zero
            path.append((at, data[at + 1 : following]))
            at = following
        elif length >= 192 and at + 1 < size:  # noqa: PLR2004 - two bits are one
            target = (length & 63) << 8 | data[at + 1]
            if target >= at:
                return _NO_NAME
            path.append((at, None))
            at = target
        else:
            return _NO_NAME
    if not found[1]:
        return _NO_NAME
    for offset, label in reversed(path):
        if label is not None:
            found = _longer(label, *found)
        known[offset] = found
    return found


def _longer(label: bytes, name: str, size: int) -> tuple[str, int]:
    """
    Put a label before a name.
    """
    size += len(label) + 1
    if size > LONGEST:
        return "", LONGEST + 1
    return (label_text(label) if name == ROOT else f"{label_text(label)}.{name}"), size


def name_end(data: bytes, at: int) -> int:
    """
    Return the offset behind a name.

    Raises:
        IndexError: it runs out of the message.
        MessageError: it has a label of a kind that does not exist.
    """
    while length := data[at]:
        if length < 64:  # noqa: PLR2004 - two bits are zero
            at += length + 1
        elif length >= 192:  # noqa: PLR2004 - two bits are one
            return at + 2
        else:
            msg = "a label of a kind that does not exist"
            raise MessageError(msg)
    return at + 1
