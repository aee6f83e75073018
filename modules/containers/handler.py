# SPDX-License-Identifier: Apache-2.0
"""
From messages about cgroups to records, with the table that remembers between them.

What the messages promise is written in ``tree.h``: every cgroup is announced at least
once and its end comes at least once.  The table turns "at least once" into once, builds
paths of names, and when a ring was full and something is missing, it makes the sequence
whole again: whatever is heard first of a cgroup starts it.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import nullcontext
from struct import Struct
from typing import TYPE_CHECKING, Any

import attrs
from kprobe_modules.modules.containers.hierarchy import Cgroupfs
from kprobe_modules.modules.containers.questions import Questions
from kprobe_modules.modules.containers.records import (
    CgroupCreated,
    CgroupDestroyed,
    CgroupRenamed,
    ContainerMetadata,
    ContainerStarted,
    ContainerStopped,
    ProcessMoved,
)
from kprobe_modules.modules.containers.table import ALIVE_COUNT, Cgroup, CgroupTable

from kprobe_modules.api import Handler, Suspects, count_attached, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    from kprobe_modules.modules.containers.runtimes import Answer

    from kprobe_modules.api import Context, Record

    _Said = tuple[
        int, int | None, str | None, str, int,
        str | None, str | None, str | None, str | None, str | None,
    ]  # fmt: skip

__all__ = ["ContainersHandler"]

WAIT_NS = 10_000_000_000
"""How long a cgroup waits for the one above, which a scan after a loss may still bring."""

WAITING_COUNT = 8192
"""How many wait at most."""

MOVES_COUNT = 8192
"""Of how many processes it is remembered where they were moved to last."""

BPF_CGROUP_INET_INGRESS = 0
"""``enum bpf_attach_type`` of <linux/bpf.h>: what every version 2 cgroup can be asked for."""

_PASS = Struct("<QQ")
"""``struct km_containers_pass``."""
_FIRST = bytes(4)


@attrs.frozen
class _Waiting:
    """
    A cgroup that was told of before the one above it.
    """

    time: int
    cgroup: Cgroup
    existing: bool


def _said(cgroup: Cgroup) -> _Said:
    """
    Return the fields that every record about a cgroup has, but for the time.
    """
    identity = cgroup.identity
    return (
        cgroup.cgroup_id,
        cgroup.parent_cgroup_id,
        cgroup.path,
        cgroup.name,
        cgroup.hierarchy,
        identity.container_id,
        identity.runtime,
        identity.pod_uid,
        identity.qos_class,
        identity.unit,
    )


class ContainersHandler(Handler):
    """
    Handles the messages of ``messages.h``.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._table = CgroupTable()
        self._hierarchy: int | None = None
        """The one that the table is of, once something was heard."""
        self._waiting: dict[int, _Waiting] = {}
        """Cgroups without the one above, by their own id."""
        self._awaited: dict[int, dict[int, None]] = {}
        """The ids of those above, and of who waits for each, in order."""
        self._suspects: Suspects[int] = Suspects()
        """Cgroups that a resync did not find, and since when."""
        self._moves: OrderedDict[tuple[int, int], int] = OrderedDict()
        """Where processes were moved to, by pid and start time."""
        self._cgroupfs = Cgroupfs(context.proc_root, context.observe)
        self._questions = Questions(context, self._cgroupfs)
        context.provide("cgroup_table", self._table)

    # -- messages -----------------------------------------------------------

    def on_css_populate_dir(
        self, time: int, cgroup_id: int, parent_cgroup_id: int, hierarchy: int, name: bytes
    ) -> Iterable[Record]:
        """
        Enter a cgroup that was made, unless it is known already.
        """
        cgroup = self._heard(cgroup_id, parent_cgroup_id, hierarchy, name)
        return self._appear(time, cgroup, existing=False) if cgroup is not None else ()

    def on_existing_cgroup_probe(
        self, time: int, cgroup_id: int, parent_cgroup_id: int, hierarchy: int, name: bytes
    ) -> Iterable[Record]:
        """
        Enter a cgroup that was found, unless it is known already.
        """
        cgroup = self._heard(cgroup_id, parent_cgroup_id, hierarchy, name)
        return self._appear(time, cgroup, existing=True) if cgroup is not None else ()

    def on_cgroup_rename(
        self, time: int, cgroup_id: int, parent_cgroup_id: int, hierarchy: int, name: bytes
    ) -> Iterable[Record]:
        """
        Rename a cgroup.
        """
        heard = self._heard(cgroup_id, parent_cgroup_id, hierarchy, name)
        if heard is None:
            return ()
        records = list(self._appear(time, heard, existing=True))
        records += self._release(time, cgroup_id)
        cgroup = self._table.alive(cgroup_id)
        if cgroup is not None:
            records += self._rename(time, cgroup, heard.name)
        return records

    def on_kill_css(
        self, time: int, cgroup_id: int, parent_cgroup_id: int, hierarchy: int, name: bytes
    ) -> Iterable[Record]:
        """
        Take a cgroup away, which was started if that was lost.
        """
        heard = self._heard(cgroup_id, parent_cgroup_id, hierarchy, name)
        if heard is None:
            return ()
        records = list(self._appear(time, heard, existing=True))
        records += self._release(time, cgroup_id)
        cgroup = self._table.alive(cgroup_id)
        if cgroup is not None:
            records += self._remove(time, cgroup)
        return records

    def on_cgroup_attach_task(
        self,
        time: int,
        pid: int,
        start_time: int,
        parent_pid: int,
        uid: int,
        comm: bytes,
        cgroup_id: int,
    ) -> Record | None:
        """
        Tell of a process that was moved, if nobody else does.
        """
        if self.context.find("process_table") is not None:
            self._moves.clear()
            return None
        old_cgroup_id = self._moves.pop((pid, start_time), None)
        self._moves[pid, start_time] = cgroup_id
        if len(self._moves) > MOVES_COUNT:
            self._moves.popitem(last=False)
        return ProcessMoved(
            time, pid, start_time, parent_pid, uid, text(comm), cgroup_id, old_cgroup_id
        )

    # -- the table ----------------------------------------------------------

    def _heard(
        self, cgroup_id: int, parent_cgroup_id: int, number: int, name: bytes
    ) -> Cgroup | None:
        """
        Return a cgroup as a message describes it, not entered yet; None if it does not count.
        """
        if number != self._hierarchy and not self._counts(number):
            return None
        return Cgroup(cgroup_id, parent_cgroup_id or None, text(name), number)

    def _counts(self, number: int) -> bool:
        """
        Tell whether another hierarchy than so far counts now, and forget that one if so.
        """
        if self._hierarchy is not None:
            # It moves when somebody mounts one of version 1, and what is still to come of the
            # one before must not bring that back.
            if self._cgroupfs.number() != number:
                self.context.log.debug("hierarchy %d does not count", number)
                return False
            self.context.log.warning(
                "cgroups of hierarchy %d count from now on, no longer those of %d, as the "
                "memory controller was moved; what was there before is found by the next scan",
                number,
                self._hierarchy,
            )
            self._forget()
        self._hierarchy = number
        return True

    def _forget(self) -> None:
        self._table.clear()
        self._waiting.clear()
        self._awaited.clear()
        self._suspects.clear()

    def _appear(self, time: int, cgroup: Cgroup, *, existing: bool) -> Iterable[Record]:
        """
        Enter a cgroup if it is new, or let it wait for the one above.
        """
        cgroup_id, parent_id = cgroup.cgroup_id, cgroup.parent_cgroup_id
        if (
            self._table.alive(cgroup_id) is not None
            or self._table.was_removed(cgroup_id)
            or cgroup_id in self._waiting
        ):
            return ()
        if parent_id is not None and self._table.alive(parent_id) is None:
            self._waiting[cgroup_id] = _Waiting(time, cgroup, existing)
            self._awaited.setdefault(parent_id, {})[cgroup_id] = None
            if len(self._waiting) > WAITING_COUNT:
                return self._give_up(next(iter(self._waiting)))
            return ()
        return self._enter(_Waiting(time, cgroup, existing))

    def _enter(self, first: _Waiting) -> list[Record]:
        """
        Enter a cgroup, and all that waited for it.
        """
        records: list[Record] = []
        items = [first]
        while items:
            item = items.pop()
            cgroup = item.cgroup
            if not self._table.add(cgroup):
                continue
            records.append(CgroupCreated(item.time, *_said(cgroup), item.existing))
            records += self._started(item.time, cgroup, existing=item.existing)
            for below in self._table.adopt(cgroup):
                records += self._started(item.time, below, existing=True)
            awaiting = self._awaited.pop(cgroup.cgroup_id, {})
            items += [self._waiting.pop(cgroup_id) for cgroup_id in reversed(awaiting)]
        return records

    def _release(self, time: int, cgroup_id: int) -> list[Record]:
        """
        Enter a cgroup that waits, although its path is not known.
        """
        item = self._waiting.pop(cgroup_id, None)
        if item is None:
            return []
        above = item.cgroup.parent_cgroup_id or 0
        awaiting = self._awaited[above]
        del awaiting[cgroup_id]
        if not awaiting:
            del self._awaited[above]
        return self._enter(attrs.evolve(item, time=min(time, item.time)))

    def _give_up(self, cgroup_id: int) -> list[Record]:
        """
        Enter the topmost of those that a cgroup waits for, and so all that wait below.
        """
        met: set[int] = set()
        while (item := self._waiting.get(cgroup_id)) is not None:
            met.add(cgroup_id)
            above = item.cgroup.parent_cgroup_id
            if above is None or above in met or above not in self._waiting:
                return self._release(item.time, cgroup_id)
            cgroup_id = above
        return []

    def _started(self, time: int, cgroup: Cgroup, *, existing: bool) -> list[Record]:
        if cgroup.container is not cgroup:
            return []
        self._questions.ask(cgroup)
        return [ContainerStarted(time, *_said(cgroup), existing)]

    def _stopped(self, time: int, cgroup: Cgroup) -> list[Record]:
        if cgroup.container is not cgroup:
            return []
        return [ContainerStopped(time, *_said(cgroup))]

    def _remove(self, time: int, cgroup: Cgroup) -> list[Record]:
        """
        Take a cgroup away, and before it those below whose end was missed.
        """
        records: list[Record] = []
        for each in reversed(list(cgroup.with_descendants())):
            records += self._stopped(time, each)
            records.append(CgroupDestroyed(time, *_said(each)))
            self._table.remove(each, time)
        return records

    def _rename(self, time: int, cgroup: Cgroup, name: str) -> list[Record]:
        """
        Rename a cgroup; what the new path makes a container starts, and the other way round.
        """
        if cgroup.name == name:
            return []
        old_name, old_path = cgroup.name, cgroup.path
        before = {
            each.cgroup_id: (each.identity, self._stopped(time, each))
            for each in cgroup.with_descendants()
        }
        cgroup.name = name
        for each in cgroup.with_descendants():
            each.identify()
        renamed = CgroupRenamed(time, *_said(cgroup), old_name, old_path)
        ended: list[Record] = []
        begun: list[Record] = []
        for each in cgroup.with_descendants():
            identity, stopped = before[each.cgroup_id]
            if each.identity.container_id != identity.container_id:
                ended += stopped
                begun += self._started(time, each, existing=True)
        return [*ended, renamed, *begun]

    # -- metadata ---------------------------------------------------------------

    def _learned(self, now: int, answer: Answer) -> list[Record]:
        """
        Tell what became of a question, also when the container has stopped meanwhile.
        """
        cgroup = self._table.get(answer.cgroup_id)
        said = answer.metadata
        if said is None:
            self.context.log.debug("container %s: %s", answer.container_id, answer.error)
            return []
        if cgroup is None or cgroup.identity.container_id != answer.container_id:
            return []
        return [
            ContainerMetadata(
                now,
                *_said(cgroup),
                container_name=said.name,
                image=said.image,
                image_id=said.image_id,
                labels=dict(said.labels),
                labels_dropped=said.labels_dropped,
                limits=_spoken(said.limits),
                networks=[_spoken(network) for network in said.networks],
                network_mode=said.network_mode,
                container_pid=said.pid,
                kubernetes=_spoken(said.kubernetes) if said.kubernetes else None,
                ecs=_spoken(said.ecs) if said.ecs else None,
                nomad=_spoken(said.nomad) if said.nomad else None,
                source=answer.source or "",
            )
        ]

    # -- scans ----------------------------------------------------------------

    def surroundings(self, hook: str) -> Iterator[AbstractContextManager[object]]:
        """
        Let the iterator walk as often as it takes; each pass reports a limited number.
        """
        del hook
        current = self.context.map("pass")
        while True:
            current.update(_FIRST, _PASS.pack(0, 0))
            yield nullcontext()
            reported, left = _PASS.unpack(current.lookup(_FIRST) or bytes(_PASS.size))
            # Without any progress no message finds room: the loss brings the next scan.
            if not left or not reported:
                return

    def poke(self, hook: str) -> None:
        """
        Make the kernel look at every cgroup.

        Asking for the programs attached to a folder calls cgroup_get_from_fd(); reading
        its ``cgroup.controllers`` calls cgroup_control(), and ``cgroup.clone_children``
        cgroup_clone_children_read(), on the kernels that have them.
        """
        counts = self._cgroupfs.find()
        if bool(counts.number) != (hook == "existing_v1"):
            return
        for folder in self._cgroupfs.walk(counts).folders:
            if counts.number:
                _read(f"{folder.path}/cgroup.clone_children")
            elif self.context.live[hook] == "existing_ctl":
                _read(f"{folder.path}/cgroup.controllers")
            else:
                self._query(folder.path)

    def _query(self, path: str) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return  # it was removed
        try:
            count_attached(fd, BPF_CGROUP_INET_INGRESS)
        except OSError as error:
            self.context.log.debug("%s: %s", path, error)
        finally:
            os.close(fd)

    def scan(self, hook: str) -> Iterable[Record]:
        """
        Walk the folders, where no program can be made to look at them.
        """
        counts = self._cgroupfs.find()
        if bool(counts.number) != (hook == "existing_v1"):
            return
        if not counts.is_whole:
            self.context.log.warning(
                "cgroups that were there before are not all found: hierarchy %d is not "
                "mounted as a whole here, and this kernel has no other way (hook %s)",
                counts.number,
                hook,
            )
        walk = self._cgroupfs.walk(counts)
        for folder in walk.folders:
            cgroup = self._heard(
                folder.cgroup_id, folder.parent_cgroup_id, counts.number, folder.name
            )
            if cgroup is not None:
                yield from self._appear(walk.time, cgroup, existing=True)

    def steady(self, *, resync: bool) -> Iterable[Record]:
        """
        Enter who still waits; after a loss, look for what was lost.
        """
        records: list[Record] = []
        for cgroup_id in list(self._waiting):
            records += self._give_up(cgroup_id)
        if resync:
            self._moves.clear()
            records += self._compare()
        return records

    def _compare(self) -> Iterable[Record]:
        """
        Compare the table with the folders; an end may still be under way.
        """
        counts = self._cgroupfs.find()
        if not counts.is_whole or counts.number != self._hierarchy:
            return
        known = {cgroup.cgroup_id: cgroup for cgroup in self._table}
        walk = self._cgroupfs.walk(counts)
        if not walk.folders:
            return  # it is not mounted, or not any more
        for folder in walk.folders:
            cgroup = known.pop(folder.cgroup_id, None)
            if cgroup is not None and folder.parent_cgroup_id:
                yield from self._rename(walk.time, cgroup, text(folder.name))
        for cgroup_id in known:
            self._suspects.add(cgroup_id)

    def tick(self, now: int) -> Iterable[Record]:
        """
        Tell what was learned, forget what was removed, and end what nobody has seen ending.
        """
        records: list[Record] = []
        for answer in self._questions.take():
            records += self._learned(now, answer)
        self._table.expire(now)
        if self._table.refused:
            self.context.log.warning(
                "%d times a cgroup was left out, as more than %d are there",
                self._table.refused,
                ALIVE_COUNT,
            )
            self._table.refused = 0
        for cgroup_id, item in list(self._waiting.items()):
            if now - item.time >= WAIT_NS:
                records += self._give_up(cgroup_id)
        return records + self._confirm(now)

    def _confirm(self, now: int) -> list[Record]:
        """
        End the cgroups that are still not found a while after a resync did not find them.
        """
        found = (self._table.alive(cgroup_id) for cgroup_id in self._suspects.due(now))
        due = [cgroup for cgroup in found if cgroup is not None]
        if not due:
            return []
        records: list[Record] = []
        counts = self._cgroupfs.find()
        for cgroup in due:
            # With one above it may have ended by now.
            if cgroup.removed is None and not self._cgroupfs.holds(
                counts, cgroup.path or "", cgroup.cgroup_id
            ):
                records += self._remove(now, cgroup)
        return records

    def detached(self) -> None:
        """
        Stop asking.
        """
        self._questions.close()


def _spoken(said: attrs.AttrsInstance) -> dict[str, Any]:
    """
    Return the fields that somebody said something about.
    """
    return attrs.asdict(said, filter=lambda _, value: value is not None and value != ())


def _read(path: str) -> None:
    """
    Read a small file and drop what it says.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return  # it was removed
    try:
        os.read(fd, 64)
    except OSError:
        pass  # the same, in between
    finally:
        os.close(fd)
