# SPDX-License-Identifier: Apache-2.0
"""
What a handler asks runtimes, so that a capture of it can be replayed.

Asking and taking answers are observed as a look at the world is: both happen in the handler's
thread, and what the threads that wait for runtimes do meanwhile shows in nothing but what is
taken.  In a replay nobody is asked, no thread starts, and the answers are those of then.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from kprobe_modules.modules.containers.runtimes import Enquiries, pack, unpack

if TYPE_CHECKING:
    from kprobe_modules.modules.containers.hierarchy import Cgroupfs
    from kprobe_modules.modules.containers.runtimes import Answer
    from kprobe_modules.modules.containers.table import Cgroup

    from kprobe_modules.api import Context

__all__ = ["Questions"]

ANSWERS: Final = 16
"""How many answers are packed at a time; each has at most what a daemon may say, about 1 MiB."""
ANSWERS_SIZE: Final = 1 << 20
"""Bytes of answers at which the rest is left for the next time: an observation has to fit in."""


class Questions:
    """
    Asks about containers, once `ask_runtimes` says so.

    Args:
        context: the handler's.
        cgroupfs: where a container's processes are listed.
    """

    def __init__(self, context: Context, cgroupfs: Cgroupfs) -> None:
        self._observe = context.observe
        self._cgroupfs = cgroupfs
        self._asks = bool(context.tunables.get("ask_runtimes", 1))
        self._enquiries = Enquiries(log=context.log, proc_root=context.proc_root)

    def ask(self, cgroup: Cgroup) -> None:
        """
        Ask about a container as soon as it is there: it may not last.
        """
        container_id = cgroup.identity.container_id
        if not self._asks or container_id is None:
            return
        procs = self._procs(cgroup)

        def look() -> bytes:
            identity = cgroup.identity
            taken = self._enquiries.ask(
                container_id, identity.runtime, cgroup.cgroup_id, uid=identity.uid, procs=procs
            )
            return b"yes" if taken else b"no"

        with suppress(OSError):  # only in a replay, of what was not asked then
            self._observe(f"ask {cgroup.cgroup_id}", look)

    def _procs(self, cgroup: Cgroup) -> str | None:
        """
        Return where a container's processes are listed, if they are to be asked.
        """
        if cgroup.identity.runtime != "nomad":
            return None
        where = self._cgroupfs.find().mount_point
        return f"{where}{cgroup.path}/cgroup.procs" if where else None

    def take(self) -> list[Answer]:
        """
        Return answers that came, oldest first.
        """
        if not self._asks:
            return []
        try:
            return unpack(self._observe("answers", self._packed))
        except OSError:  # as above
            return []

    def _packed(self) -> bytes:
        raw = b""
        while len(raw) < ANSWERS_SIZE and (answers := self._enquiries.take(ANSWERS)):
            raw += pack(answers)
        return raw

    def close(self) -> None:
        """
        Stop asking.
        """
        self._enquiries.close()
