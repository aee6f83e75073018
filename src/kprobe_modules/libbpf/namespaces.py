# SPDX-License-Identifier: Apache-2.0
"""
Working in another network namespace for a while.

Python has ``os.setns`` since 3.12 only.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kprobe_modules.libbpf.descriptor import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["network_namespace"]

_CLONE_NEWNET = 0x40000000
"""From <linux/sched.h>: setns(2) refuses a descriptor of any other kind."""


def _setns(fd: int, what: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(ctypes.c_int(fd), ctypes.c_int(_CLONE_NEWNET)) != 0:
        raise KernelError(ctypes.get_errno(), f"{what}: enter the network namespace")


@contextmanager
def network_namespace(path: str | Path) -> Iterator[None]:
    """
    Run the body in the network namespace behind *path*, in this thread only.

    Args:
        path: such as ``/proc/PID/ns/net`` or ``/run/netns/NAME``.

    Raises:
        KernelError: without CAP_SYS_ADMIN, or when *path* is something else.
        FileNotFoundError: when it is gone.
    """
    wanted = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(wanted, str(path))
            try:
                yield
            finally:
                _setns(home, "the thread's own namespace")
        finally:
            os.close(home)
    finally:
        os.close(wanted)
