# SPDX-License-Identifier: Apache-2.0
"""
The example plug-in on kernels with kprobes, where it calls its own slot.
"""

from __future__ import annotations

import os
import socket
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from kprobe_modules import Collector
from tests.support.datagram_sizes import LARGER, SIZES, send
from tests.support.generator import assert_closed
from tests.support.requirements import needs

if TYPE_CHECKING:
    import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "datagram_sizes"


def test_it_serves_the_slot_that_it_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    needs.root()
    needs.kprobes()
    monkeypatch.syspath_prepend(EXAMPLE)
    manifest = import_module("datagram_sizes").MODULE
    with Collector() as collector:
        status = collector.attach(manifest)
        assert status.live == {
            "end": "kprobe/security_sk_free",
            "sent": "kprobe/udp_sendmsg",
            "larger": "slot/datagram_sent",
        }
        assert {each.caller for each in status.choices} == {"", "datagram_sizes"}
        collector.flush()
        for _ in range(3):
            for family in (socket.AF_INET, socket.AF_INET6):
                send(family)
        told = [
            (each.size, each.sent, each.socket_id)
            for each in collector.flush()
            if each.record == "larger_datagram" and each.pid == os.getpid()
        ]
        # Each socket afresh, though the kernel uses its memory again.
        assert told == [(size, sent, None) for size, sent in LARGER] * 6
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as mapped:
            # Comes by both functions, and counts once.
            for size in SIZES:
                mapped.sendto(bytes(size), ("::ffff:127.0.0.1", 9))
            told = [
                (each.size, each.sent)
                for each in collector.flush()
                if each.record == "larger_datagram" and each.pid == os.getpid()
            ]
        assert told == LARGER
        assert_closed(collector, "datagram_sizes")
