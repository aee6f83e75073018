# SPDX-License-Identifier: Apache-2.0
"""
Both drainers, for tests that both have to pass.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from kprobe_modules.rings import _drain_py

from tests.support.requirements import needs

__all__ = ["TWINS", "Native"]


class Native:
    """
    The native drainer, imported when a test first asks for it.
    """

    @property
    def _module(self) -> Any:
        try:
            return importlib.import_module("kprobe_modules.rings._drain")
        except ImportError as error:
            needs.unmet(f"needs the compiled kprobe_modules.rings._drain ({error})")

    @property
    def Drainer(self) -> Any:  # noqa: N802 - the name of the class it stands for
        """
        The class itself.
        """
        return self._module.Drainer


TWINS = [pytest.param(Native(), id="native"), pytest.param(_drain_py, id="pure")]
