# SPDX-License-Identifier: Apache-2.0
"""
The capabilities of this process, by name.

Source of numbers and names: linux/capability.h.  Python programs cannot
usefully be given file capabilities (the interpreter would get them), so a
missing one is granted by a service manager, a container runtime, or root.
"""

from __future__ import annotations

from pathlib import Path

from kprobe_modules.errors import PrivilegeError

__all__ = ["NAMES", "effective", "has", "require"]

#: All capabilities, in the order of their bits.
NAMES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)

#: The kernel accepts CAP_SYS_ADMIN in place of these two, for programs that
#: were written before Linux 5.8 split them off.
_IMPLIED = frozenset({"CAP_BPF", "CAP_PERFMON"})


def effective(status: Path = Path("/proc/self/status")) -> frozenset[str]:
    """
    Return the names of the effective capabilities of this process.

    Args:
        status: the file to read, of the form of ``/proc/PID/status``.

    Raises:
        OSError: there is no such file: ``/proc`` is not mounted.
    """
    for line in status.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("CapEff:"):
            bits = int(line.split()[1], 16)
            return frozenset(name for bit, name in enumerate(NAMES) if bits >> bit & 1)
    return frozenset()


def has(capability: str, held: frozenset[str] | None = None) -> bool:
    """
    Say whether this process may do what needs a capability.

    Args:
        capability: its name.
        held: the capabilities to look in; those of this process by default.
    """
    if held is None:
        held = effective()
    return capability in held or (capability in _IMPLIED and "CAP_SYS_ADMIN" in held)


def require(capability: str, purpose: str) -> None:
    """
    Raise if a capability is missing.

    Args:
        capability: its name, e.g. ``CAP_BPF``.
        purpose: what for, as the end of a sentence: ``to load BPF programs``.

    Raises:
        PrivilegeError: it is not effective.
    """
    if not has(capability):
        raise PrivilegeError(capability, purpose)
