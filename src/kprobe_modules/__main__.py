# SPDX-License-Identifier: Apache-2.0
"""
``python -m kprobe_modules`` is ``kprobe-modules``.
"""

from __future__ import annotations

import sys

from kprobe_modules.cli import main

sys.exit(main())
