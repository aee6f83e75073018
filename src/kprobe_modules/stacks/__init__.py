# SPDX-License-Identifier: Apache-2.0
"""
Addresses of stacks to names: of the kernel's functions, and of programs' own.

Knows /proc and ELF files, and nothing of BPF.
"""

from __future__ import annotations

from kprobe_modules.stacks.frame import Frame
from kprobe_modules.stacks.observed import ObservedResolver
from kprobe_modules.stacks.resolver import Resolver

__all__ = ["Frame", "ObservedResolver", "Resolver"]
