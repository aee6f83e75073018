# SPDX-License-Identifier: Apache-2.0
"""
libbpf, the bpf system call and perf events: the one room that uses ctypes.

Importing this package does nothing: its names are resolved on first use, and
only then is ctypes imported and, on the first call, a libbpf opened.  Which
libbpf is decided by :func:`find`; see :mod:`kprobe_modules.libbpf.provider`.

Two rules hold everywhere in here.  Pointers that one libbpf returned are only
ever handed back to that libbpf; descriptors may travel.  And a function that
returns a bare ``int`` descriptor gives its ownership to the caller, who closes
it with :func:`os.close`; all descriptors are close-on-exec.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kprobe_modules.libbpf.descriptor import Descriptor, KernelError
    from kprobe_modules.libbpf.ids import count_attached, link_ids, map_ids, program_ids
    from kprobe_modules.libbpf.link import Link
    from kprobe_modules.libbpf.map import MapInfo, possible_cpus
    from kprobe_modules.libbpf.namespaces import network_namespace
    from kprobe_modules.libbpf.object import BpfMap, BpfObject, BpfProgram
    from kprobe_modules.libbpf.perf import open_bpf_output
    from kprobe_modules.libbpf.program import ProgramInfo, enable_stats, prog_info, test_run
    from kprobe_modules.libbpf.provider import Candidate, Library, candidates, find

__all__ = [
    "BpfMap",
    "BpfObject",
    "BpfProgram",
    "Candidate",
    "Descriptor",
    "KernelError",
    "Library",
    "Link",
    "MapInfo",
    "ProgramInfo",
    "candidates",
    "count_attached",
    "enable_stats",
    "find",
    "link_ids",
    "map_ids",
    "network_namespace",
    "open_bpf_output",
    "possible_cpus",
    "prog_info",
    "program_ids",
    "test_run",
]

_HOMES = {
    "BpfMap": "object",
    "BpfObject": "object",
    "BpfProgram": "object",
    "Candidate": "provider",
    "Descriptor": "descriptor",
    "KernelError": "descriptor",
    "Library": "provider",
    "Link": "link",
    "MapInfo": "map",
    "ProgramInfo": "program",
    "candidates": "provider",
    "count_attached": "ids",
    "enable_stats": "program",
    "find": "provider",
    "link_ids": "ids",
    "map_ids": "ids",
    "network_namespace": "namespaces",
    "open_bpf_output": "perf",
    "possible_cpus": "map",
    "prog_info": "program",
    "program_ids": "ids",
    "test_run": "program",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    value: object = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
