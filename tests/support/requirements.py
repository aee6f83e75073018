# SPDX-License-Identifier: Apache-2.0
"""
What a test needs from the machine, said in one place.

A test begins with ``needs.root()`` or ``needs.kprobes()``.  Where the need is
not met the test is skipped and the reason says what is missing; with
``KPROBE_MODULES_TEST_STRICT=1``, as in continuous integration, the same
condition fails the test, so that a silent skip never passes for a pass.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

__all__ = ["Needs", "has_kprobes", "needs"]

STRICT = "KPROBE_MODULES_TEST_STRICT"

#: Bit numbers of linux/capability.h that tests ask for by name.
_CAPABILITIES = {
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_NET_ADMIN": 12,
    "CAP_IPC_LOCK": 14,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_RESOURCE": 24,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}


def has_kprobes() -> bool:
    """
    Tell whether kprobes can be attached on this kernel.
    """
    return Path("/sys/bus/event_source/devices/kprobe/type").exists()


class Needs:
    """
    One method per kind of requirement; each returns what it found.
    """

    def unmet(self, reason: str) -> NoReturn:
        """
        Skip the running test, or fail it if tests are strict.
        """
        if os.environ.get(STRICT, "") not in ("", "0"):
            pytest.fail(f"{reason} (and {STRICT} is set)", pytrace=False)
        pytest.skip(reason)

    def that(self, condition: object, reason: str) -> None:
        """
        Ask for anything; *reason* says what is missing if it is false.
        """
        if not condition:
            self.unmet(reason)

    def root(self) -> None:
        """
        Ask for uid 0 with the right to load BPF programs.
        """
        self.that(os.geteuid() == 0, "needs root")
        self.capability("CAP_SYS_ADMIN")

    def capability(self, name: str) -> None:
        """
        Ask for one effective capability, e.g. ``CAP_NET_ADMIN``.
        """
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        found = next(line for line in text.splitlines() if line.startswith("CapEff:"))
        effective = int(found.split()[1], 16)
        self.that(effective >> _CAPABILITIES[name] & 1, f"needs {name}")

    def kprobes(self) -> None:
        """
        Ask for a kernel on which kprobes can be attached.
        """
        self.that(
            has_kprobes(),
            "needs a kernel with kprobes (CONFIG_KPROBES, CONFIG_KPROBE_EVENTS)",
        )

    def kernel_btf(self) -> Path:
        """
        Ask for the BTF of the running kernel.
        """
        return self.file("/sys/kernel/btf/vmlinux")

    def file(self, path: str | os.PathLike[str]) -> Path:
        """
        Ask for a file or folder.
        """
        found = Path(path)
        self.that(found.exists(), f"needs {found}")
        return found

    def command(self, *names: str) -> str:
        """
        Ask for one of several commands; return the path of the first found.
        """
        path = next(filter(None, map(shutil.which, names)), None)
        if path is None:
            self.unmet(f"needs the command {' or '.join(names)}")
        return path

    def package(self, name: str) -> None:
        """
        Ask for an importable Python package, without importing it.
        """
        self.that(importlib.util.find_spec(name), f"needs the Python package {name}")

    def python(self, *version: int) -> None:
        """
        Ask for a minimum version of Python.
        """
        wanted = ".".join(map(str, version))
        self.that(sys.version_info[: len(version)] >= version, f"needs Python {wanted}")

    def cpus(self, count: int) -> None:
        """
        Ask for a number of CPUs that this process may run on.
        """
        found = len(os.sched_getaffinity(0))
        self.that(found >= count, f"needs {count} CPUs, this process may use {found}")


needs = Needs()
