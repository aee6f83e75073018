# SPDX-License-Identifier: Apache-2.0
"""
Perf events that receive what ``bpf_perf_event_output`` writes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
from pathlib import Path

from kprobe_modules.errors import PrivilegeError, RingError
from kprobe_modules.libbpf import structs
from kprobe_modules.libbpf.descriptor import name_of

__all__ = ["open_bpf_output"]

_SYSCALL = {"x86_64": 298, "aarch64": 241}  # __NR_perf_event_open


def open_bpf_output(cpu: int, *, wakeup_watermark: int) -> int:
    """
    Open the perf event of one CPU that takes BPF output, enabled.

    Args:
        cpu: an online CPU.
        wakeup_watermark: wake the reader each time this many more bytes are
            waiting; 0 lets the kernel choose (half of the ring).

    Returns:
        a close-on-exec descriptor to be mapped, owned by the caller.  The
        kernel takes the event out of every perf-event array that it was put in
        when the file that inserted it closes.

    Raises:
        PrivilegeError: CAP_PERFMON is missing.
        RingError: e.g. the CPU is offline (ENODEV) or no descriptor is left.
    """
    attributes = structs.PerfEventAttributes(
        type=structs.PERF_TYPE_SOFTWARE,
        size=ctypes.sizeof(structs.PerfEventAttributes),
        config=structs.PERF_COUNT_SW_BPF_OUTPUT,
        sample_period=1,
        sample_type=structs.PERF_SAMPLE_RAW,
        flags=structs.PERF_ATTR_WATERMARK,
        wakeup_watermark=wakeup_watermark,
    )
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    fd: int = syscall(
        ctypes.c_long(_SYSCALL[platform.machine()]),
        ctypes.byref(attributes),
        ctypes.c_int(-1),
        ctypes.c_int(cpu),
        ctypes.c_int(-1),
        ctypes.c_ulong(structs.PERF_FLAG_FD_CLOEXEC),
    )
    if fd < 0:
        raise _refusal(ctypes.get_errno(), cpu)
    try:
        fcntl.ioctl(fd, structs.PERF_IOC_ENABLE, 0)
    except OSError as error:
        os.close(fd)
        raise _refusal(error.errno or errno.EIO, cpu) from None
    return fd


def _refusal(code: int, cpu: int) -> PrivilegeError | RingError:
    what = f"perf event for BPF output on CPU {cpu}"
    if code in {errno.EPERM, errno.EACCES}:
        return PrivilegeError("CAP_PERFMON", f"to open a {what}{_paranoia()}")
    reason = "; the CPU is offline" if code == errno.ENODEV else ""
    error = RingError(f"{what}: {name_of(code)}{reason}")
    error.errno = code
    return error


def _paranoia() -> str:
    try:
        level = Path("/proc/sys/kernel/perf_event_paranoid").read_text(encoding="ascii").strip()
    except OSError:
        return ""
    return f" (kernel.perf_event_paranoid is {level})"
