# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from kprobe_modules import objectfile
from kprobe_modules.losses import Count, LossCounters
from tests.support.generator import MODULE

SPEC = objectfile.read(MODULE.object_bytes("x86_64"), "generator")


def test_only_what_is_new_is_told() -> None:
    losses = LossCounters(SPEC, None, None)  # type: ignore[arg-type]
    assert losses.read() == []
    counts = [Count("opened", 0, 101, 7), Count("opened", 1, 53, 0), Count("closed", 0, 5, 5)]
    assert losses.new_losses(counts) == [Count("opened", 0, 101, 7), Count("closed", 0, 5, 5)]
    assert losses.new_losses(counts) == []
    later = [Count("opened", 0, 211, 18), Count("opened", 1, 54, 1), Count("closed", 0, 9, 5)]
    assert losses.new_losses(later) == [Count("opened", 0, 211, 11), Count("opened", 1, 54, 1)]
