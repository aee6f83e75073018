# SPDX-License-Identifier: Apache-2.0
"""
Which of the two drainers serves: the native one, or its pure twin.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

__all__ = ["NATIVE", "Batch", "Drainer"]

#: Set to anything but 0 to have the pure twin although the native one is there.
PURE = "KPROBE_MODULES_PURE"

NATIVE: bool

if TYPE_CHECKING:
    from kprobe_modules.rings._drain import Batch, Drainer

    NATIVE = True
elif os.environ.get(PURE, "") not in {"", "0"}:
    from kprobe_modules.rings._drain_py import Batch, Drainer

    NATIVE = False
else:
    try:
        from kprobe_modules.rings._drain import Batch, Drainer

        NATIVE = True
    except ImportError:
        from kprobe_modules.rings._drain_py import Batch, Drainer

        NATIVE = False
