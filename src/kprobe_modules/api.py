# SPDX-License-Identifier: Apache-2.0
"""
Everything that a module may import from the framework.

Third parties write modules against this page; the rest may be rearranged.
"""

from __future__ import annotations

from pathlib import Path

from kprobe_modules.addresses import format_address
from kprobe_modules.decode import text
from kprobe_modules.errors import KprobeModulesError
from kprobe_modules.handler import Context, DataChunk, Handler, MapAccess, Source
from kprobe_modules.libbpf import count_attached, network_namespace
from kprobe_modules.libbpf.program import test_run as run_program
from kprobe_modules.libbpf.rcu import wait_for_programs
from kprobe_modules.manifest import Alternative, Hook, Manifest
from kprobe_modules.namespaces import network_namespaces
from kprobe_modules.opensockets import OpenSockets
from kprobe_modules.records import Record
from kprobe_modules.socketscan import show_sockets
from kprobe_modules.suspects import Suspects

__all__ = [
    "Alternative",
    "Context",
    "DataChunk",
    "Handler",
    "Hook",
    "KprobeModulesError",
    "Manifest",
    "MapAccess",
    "OpenSockets",
    "Record",
    "Source",
    "Suspects",
    "count_attached",
    "format_address",
    "include_directory",
    "network_namespace",
    "network_namespaces",
    "run_program",
    "show_sockets",
    "text",
    "wait_for_programs",
]


def include_directory() -> Path:
    """
    Return the folder of the shared BPF headers, for ``clang -I``.

    A module includes them as ``<km/emit.h>``.
    """
    return Path(__file__).parent / "bpf"
