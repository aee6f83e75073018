# SPDX-License-Identifier: Apache-2.0
"""
Writing down what a collector's handlers are given, and giving it to them again.

::

    with Capture("host.kmc") as capture, Collector(["NAME"], journal=capture) as collector:
        for record in collector.records(timeout=10):
            ...

    for record in Replay("host.kmc").records():  # the same records, anywhere
        ...
"""

from __future__ import annotations

from kprobe_modules.capture.recorder import Capture
from kprobe_modules.capture.replay import Replay

__all__ = ["Capture", "Replay"]
