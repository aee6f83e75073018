# SPDX-License-Identifier: Apache-2.0
"""
A module that is not ours: how large the datagrams are that each UDP socket sends.

It exports a map, `datagram_sizes`, calls a slot, `datagram_sent`, which it serves itself,
and imports the map `udp_open_sockets` of the module udp, to name sockets as that does.
"""

from __future__ import annotations

import attrs

from kprobe_modules.api import Alternative, Handler, Hook, Manifest, Record

__all__ = ["MODULE", "LargerDatagram"]


@attrs.define
class LargerDatagram(Record, module="datagram_sizes"):
    """
    A socket has sent a datagram of a class of sizes larger than any before.
    """

    socket_id: int | None
    """As in the records of udp; None if that is not attached, or has not met the socket."""
    pid: int
    size: int
    """Bytes of the payload."""
    sent: int
    """How many datagrams there were until then, this one too."""


class SizesHandler(Handler):
    """What makes records of messages; the field names are those of the C struct."""

    def on_larger(self, time: int, socket_id: int, pid: int, size: int, sent: int) -> Record:
        """Return the record of one."""
        return LargerDatagram(time, socket_id or None, pid, size, sent)


_SLOT = Alternative("larger_slot", slot="datagram_sent")
_KPROBES = Alternative("sent_ipv4", companions=("sent_ipv6",), calls=("datagram_sent",))

MODULE = Manifest(
    name="datagram_sizes",
    package="datagram_sizes",
    handler=SizesHandler,
    summary="sizes of the datagrams that UDP sockets send",
    version="1",
    common_maps=("events", "tail_calls"),
    exports=("datagram_sizes",),
    imports={"udp_open_sockets": "udp"},
    records=(LargerDatagram,),
    hooks=(
        Hook("end", "END", ("end_free",), required=False),
        Hook("sent", "TELEMETRY", (_KPROBES, "sent_btf")),
        Hook("larger", "TELEMETRY", (_SLOT, "larger_btf")),
    ),
)
