# SPDX-License-Identifier: Apache-2.0
"""
Nomad's variables, out of the environment of a task's processes.

A task without a container daemon has nobody else to ask.  Formats: proc(5),
"/proc/pid/environ"; cgroups(7), "cgroup.procs".
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from kprobe_modules.modules.containers.runtimes import orchestrators
from kprobe_modules.modules.containers.runtimes.metadata import Metadata

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["NoProcessError", "read_task"]

PROCESSES: Final = 32
"""How many of a cgroup's processes are looked at: the first ones are Nomad's executor."""
PROCS_SIZE: Final = 4096
ENVIRON_SIZE: Final = 1 << 18


class NoProcessError(LookupError):
    """
    No process there has Nomad's variables: not yet, or not any more.
    """


def read_task(container_id: str, procs: str, proc_root: Path) -> Metadata:
    """
    Return what Nomad told the processes of a cgroup.

    Args:
        container_id: ``<allocation>.<task>``, which the variables have to agree with.
        procs: path of the cgroup's ``cgroup.procs``.
        proc_root: where procfs is mounted.

    Raises:
        NoProcessError: when there is no such process, or no permission to see it.
    """
    for pid in _read(procs, PROCS_SIZE).split()[:PROCESSES]:
        environ = _read(f"{proc_root}/{pid.decode('ascii', 'replace')}/environ", ENVIRON_SIZE)
        task = orchestrators.nomad(environ.decode("utf-8", "replace").split("\0"))
        if task is not None and task.allocation and container_id.startswith(task.allocation):
            return Metadata(container_id=container_id, name=task.task_name, nomad=task)
    msg = f"no process of {procs} has the variables of allocation {container_id[:36]}"
    raise NoProcessError(msg)


def _read(path: str, size: int) -> bytes:
    """
    Return what a file has, up to a size; nothing when it is gone or not for us.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    found = bytearray()
    try:
        # environ comes a page at a time.
        while len(found) < size and (chunk := os.read(fd, size - len(found))):
            found += chunk
    except OSError:
        return bytes(found)
    finally:
        os.close(fd)
    return bytes(found)
