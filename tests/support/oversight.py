# SPDX-License-Identifier: Apache-2.0
"""
Doing a test again where the kernel gives nothing that sees all.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ParamSpec

from tests.support.requirements import has_kprobes

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["may_oversee"]

ATTEMPTS = 4

_P = ParamSpec("_P")


def may_oversee(test: Callable[_P, None]) -> Callable[_P, None]:
    """
    Do a test up to four times where there are no kprobes: a few sockets' ends are missed there.

    A guest has kprobes, and each test has to pass there at once.
    """

    @functools.wraps(test)
    def repeated(*arguments: _P.args, **named: _P.kwargs) -> None:
        attempts = 1 if has_kprobes() else ATTEMPTS
        for attempt in range(1, attempts + 1):
            try:
                return test(*arguments, **named)
            except AssertionError:
                if attempt == attempts:
                    raise
        return None

    return repeated
