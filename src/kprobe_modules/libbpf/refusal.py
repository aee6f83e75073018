# SPDX-License-Identifier: Apache-2.0
"""
Why libbpf or the kernel refused: error numbers turned into exceptions.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from kprobe_modules import capabilities
from kprobe_modules.errors import AttachError, LoadError, PrivilegeError, VerifierError
from kprobe_modules.libbpf.descriptor import ENOTSUPP, name_of, symbol_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["of_attach", "of_load", "of_object"]

#: libbpf's own error numbers (enum libbpf_errno).
_LIBBPF = {
    4000: "not a valid ELF file",
    4001: "invalid ELF format",
    4002: "the kernel version section is wrong",
    4003: "byte order differs from this machine's",
    4004: "internal error of libbpf",
    4005: "a relocation failed",
    4006: "verifier refusal",
    4007: "program too large",
    4008: "wrong kernel version",
    4009: "program type unknown to the kernel",
}

#: How many of libbpf's lines an error repeats.
_LINES = 4

#: From this release on the memory of maps is charged to the cgroup, before it
#: to RLIMIT_MEMLOCK, which libbpf raises where it may.
_CHARGED_TO_CGROUP = (5, 11)

_FAILED_PROGRAM = re.compile(r"prog '([^']+)': BPF program load failed")


def of_object(name: str, what: str, code: int, lines: Sequence[str] = ()) -> LoadError:
    """
    Explain why libbpf would not do something with an object or its map.
    """
    sentence = _LIBBPF.get(code) or name_of(code)
    said = f"; libbpf says: {' | '.join(lines[-_LINES:])}" if lines else ""
    error = LoadError(f"object {name}: {what}: {sentence}{said}")
    error.errno = code
    return error


def of_load(name: str, code: int, lines: Sequence[str], log: str) -> LoadError | PrivilegeError:
    """
    Explain why an object did not load.

    Args:
        name: the object.
        code: the error number.
        lines: what libbpf printed meanwhile; it names the refused program.
        log: what the verifier wrote about it.
    """
    failed = next(
        (found[1] for line in reversed(lines) if (found := _FAILED_PROGRAM.search(line))), None
    )
    if failed and log.strip():
        return VerifierError(failed, log, code)
    if code == errno.EPERM:
        missing = _missing_to_load()
        if missing:
            return PrivilegeError(missing, f"to load BPF programs (object {name})")
    what = f"load of program {failed}" if failed else "load"
    if not _charged_to_rlimit():
        # libbpf suspects RLIMIT_MEMLOCK of every EPERM.
        lines = [line for line in lines if "ulimit -l" not in line]
    return of_object(name, what, code, lines)


def _missing_to_load() -> str | None:
    held = capabilities.effective()
    for capability in ("CAP_BPF", "CAP_PERFMON"):
        if not capabilities.has(capability, held):
            return capability
    if _charged_to_rlimit() and "CAP_SYS_RESOURCE" not in held:
        return "CAP_SYS_RESOURCE (or an unlimited RLIMIT_MEMLOCK, on kernels before 5.11)"
    return None


def _charged_to_rlimit() -> bool:
    # The one question asked by version: nothing visible tells the two apart.
    release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    return release < _CHARGED_TO_CGROUP


def of_attach(program: str, how: str, code: int, lines: Sequence[str] = ()) -> AttachError:
    """
    Explain why a program did not attach.

    Args:
        program: its name.
        how: what was tried, e.g. ``kprobe cgroup_exit``.
        code: the error number.
        lines: what libbpf printed meanwhile.
    """
    reason = _reason(how.partition(" ")[0], code)
    if reason is None:
        said = f" ({lines[-1]})" if lines else ""
        reason = f"{_LIBBPF.get(code) or name_of(code)}{said}"
    return AttachError(f"program {program}", [(how, reason)], code)


def _reason(kind: str, code: int) -> str | None:
    """
    Return the usual cause of an error number, where there is one.
    """
    probe = kind in {"kprobe", "kretprobe", "tracepoint"}
    if code in {errno.EPERM, errno.EACCES} and probe:
        return _perf_refusal(kind, code)
    if code in {errno.EPERM, errno.EACCES}:
        return f"{name_of(code)}: CAP_BPF and CAP_PERFMON are needed"
    if code == errno.ENOENT and kind == "tracepoint":
        return f"{name_of(code)}: no such tracepoint, or tracefs is not mounted"
    reasons = {
        errno.ENOENT: "the kernel has no such function or hook",
        errno.ESRCH: "the kernel's BTF has no such function",
        errno.EADDRNOTAVAIL: "the kernel has the function, but no address to probe",
        errno.EBUSY: "the place is taken, by live patching or a conflicting attachment",
        errno.EOPNOTSUPP: f"this kernel has no {kind}s",
        ENOTSUPP: "no trampolines in this kernel, or the function is not traceable",
        errno.EINVAL: "the function cannot be probed, or the program is of another type",
        errno.E2BIG: "too many programs are attached there",
        errno.ENOMEM: "out of memory",
    }
    reason = reasons.get(code)
    return f"{reason} ({symbol_of(code)})" if reason else None


#: From this level on perf_event_open asks for CAP_SYS_ADMIN on the kernels of
#: Debian and Ubuntu, which have a patch for it; elsewhere the levels end at 2.
_PARANOID = 3


def _perf_refusal(kind: str, code: int) -> str:
    symbol = symbol_of(code)
    try:
        text = Path("/proc/sys/kernel/perf_event_paranoid").read_text(encoding="ascii")
        level = int(text)
    except (OSError, ValueError):
        level = 0
    held = capabilities.effective()
    if level >= _PARANOID and "CAP_SYS_ADMIN" not in held:
        return (
            f"kernel.perf_event_paranoid is {level}, which refuses this to CAP_PERFMON ({symbol}): "
            "add CAP_SYS_ADMIN, or run sysctl kernel.perf_event_paranoid=2"
        )
    if not capabilities.has("CAP_PERFMON", held):
        return f"CAP_PERFMON is missing ({symbol})"
    if kind == "tracepoint" and "CAP_DAC_READ_SEARCH" not in held:
        return (
            f"CAP_DAC_READ_SEARCH is missing ({symbol}): "
            "the number of the event is read from /sys/kernel/tracing, which only root may enter"
        )
    return f"{name_of(code)}: lockdown or a security module may forbid it"
