# SPDX-License-Identifier: Apache-2.0
"""
IP addresses as messages have them, and as people write them.
"""

from __future__ import annotations

from functools import lru_cache

__all__ = ["format_address"]


@lru_cache(4096)
def format_address(family: int, raw: bytes) -> str:
    """
    Return an address as text.

    Args:
        family: 4 or 6.
        raw: 16 bytes in network order, of which IPv4 fills the first four.

    Raises:
        ValueError: fewer bytes than the family has.
    """
    # The page that all modules import is read by whatever starts; this is for who runs.
    from socket import AF_INET, AF_INET6, inet_ntop

    return inet_ntop(AF_INET, raw[:4]) if family == 4 else inet_ntop(AF_INET6, raw)  # noqa: PLR2004
