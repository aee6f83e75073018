# SPDX-License-Identifier: Apache-2.0
"""
No example has a deadline: the machine may be busy with guests.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
