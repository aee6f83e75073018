# SPDX-License-Identifier: Apache-2.0
"""
The host as the doctor sees it: files, and what they mean.

Nothing here asks the kernel to do anything; all roots can be replaced.
"""

from __future__ import annotations

import gzip
import os
import platform
import re
import resource
import zlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from kprobe_modules import capabilities

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Host"]

#: A kernel's configuration is some 300 KiB; more than this is not one.
MAX_CONFIG_BYTES: Final = 4 << 20


def _root(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or default)


@attrs.frozen(slots=False)
class Host:
    """
    Where to look.  ``HOST_PROC`` and ``HOST_SYS`` move the roots, for a guest of the host.
    """

    proc: Path = attrs.field(factory=lambda: _root("HOST_PROC", "/proc"), converter=Path)
    sys: Path = attrs.field(factory=lambda: _root("HOST_SYS", "/sys"), converter=Path)
    root: Path = attrs.field(default=Path("/"), converter=Path)

    def read(self, path: Path) -> str | None:
        """
        Return a small file's text without trailing space; None if it cannot be read.
        """
        try:
            with path.open("rb") as stream:
                return stream.read(65536).decode("utf-8", "replace").strip()
        except OSError:
            return None

    def sysctl(self, name: str) -> int | None:
        """
        Return a sysctl that is a number; None if it is none or cannot be read.
        """
        text = self.read(self.proc / "sys" / name.replace(".", "/"))
        return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else None

    @cached_property
    def release(self) -> str:
        """
        The kernel's release, such as ``6.1.0-50-amd64``.
        """
        return self.read(self.proc / "sys/kernel/osrelease") or platform.release()

    @cached_property
    def version(self) -> tuple[int, int]:
        """
        Major and minor version of the kernel; (0, 0) if the release has none.
        """
        found = re.match(r"(\d+)\.(\d+)", self.release)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    @cached_property
    def effective(self) -> frozenset[str]:
        """
        Names of the effective capabilities of this process.
        """
        try:
            return capabilities.effective(self.proc / "self/status")
        except (OSError, ValueError, IndexError):
            return frozenset()

    def has(self, name: str) -> bool:
        """
        Tell whether a capability, or one that implies it, is effective.
        """
        return capabilities.has(name, self.effective)

    def lacking(self, *names: str) -> list[str]:
        """
        Return those of the capabilities that are not effective.
        """
        return [name for name in names if not self.has(name)]

    @cached_property
    def config(self) -> Mapping[str, str] | None:
        """
        The kernel's configuration without ``CONFIG_``; None if it is not shown.
        """
        for path in (
            self.proc / "config.gz",
            self.root / f"boot/config-{self.release}",
            self.root / f"lib/modules/{self.release}/config",
        ):
            try:
                opener = gzip.open if path.suffix == ".gz" else open
                with opener(path, "rb") as stream:
                    text = stream.read(MAX_CONFIG_BYTES).decode("ascii", "replace")
            except (OSError, EOFError, zlib.error):
                continue
            return dict(re.findall(r"^CONFIG_(\w+)=(.*)$", text, re.MULTILINE))
        return None

    @cached_property
    def functions(self) -> frozenset[str]:
        """
        Names of the kernel's functions, from kallsyms; empty if it cannot be read.

        Addresses are hidden from the unprivileged, names are not.
        """
        try:
            with (self.proc / "kallsyms").open(encoding="ascii", errors="replace") as stream:
                return frozenset(
                    parts[2] for line in stream if (parts := line.split(None, 3))[1] in "tTwW"
                )
        except (OSError, IndexError):
            return frozenset()

    def variants(self, function: str) -> list[str]:
        """
        Return compiler-made variants of a function, such as ``name.isra.0``.
        """
        return sorted(name for name in self.functions if name.startswith(f"{function}."))

    def has_kernel_module(self, name: str) -> bool:
        """
        Tell whether a kernel module is loaded or built in.
        """
        return (self.sys / "module" / name).exists()

    def locked_bytes_allowed(self) -> int | None:
        """
        Return the limit on locked memory of this process; None if there is none.
        """
        soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        return None if soft == resource.RLIM_INFINITY else soft
