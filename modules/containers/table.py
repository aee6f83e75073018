# SPDX-License-Identifier: Apache-2.0
"""
The cgroups that are there, and for a short while those that were.

The handler offers its table to other modules' handlers as ``cgroup_table``:
``context.find("cgroup_table")`` gives a `CgroupTable`, or None while the containers
module is not attached.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import attrs
from kprobe_modules.modules.containers.identity import Identity, identify

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ALIVE_COUNT", "Cgroup", "CgroupTable"]

ALIVE_COUNT = 1 << 16
"""How many cgroups are kept at most that are there: the memory controller numbers its own with
16 bits (MEM_CGROUP_ID_MAX, mm/memcontrol.c)."""

GRACE_NS = 10_000_000_000
"""How long a removed cgroup can still be asked for."""

GRACE_COUNT = 8192
"""How many removed cgroups are kept at most."""


@attrs.define(eq=False)
class Cgroup:
    """
    What is known of a cgroup.  For readers: only the containers module changes it.
    """

    cgroup_id: int
    parent_cgroup_id: int | None
    """None for the root of the hierarchy."""
    name: str
    hierarchy: int
    """The hierarchy's number in ``/proc/PID/cgroup``: 0 is version 2."""
    parent: Cgroup | None = attrs.field(default=None, repr=False)
    """None for the root, and when the one above is not known."""
    identity: Identity = attrs.field(factory=Identity)
    """What the path says, or nothing where the path is not known."""
    children: dict[int, Cgroup] = attrs.field(factory=dict, repr=False)
    """The cgroups right below, by id."""
    removed: int | None = None
    """When it was removed, in nanoseconds since the epoch; None while it is there."""

    @property
    def path(self) -> str | None:
        """
        All names from the root, or None when a cgroup above is not known.
        """
        names: list[str] = []
        cgroup = self
        while cgroup.parent is not None:
            names.append(cgroup.name)
            cgroup = cgroup.parent
        if cgroup.parent_cgroup_id is not None:
            return None
        return "/" + "/".join(reversed(names))

    @property
    def container(self) -> Cgroup | None:
        """
        The container's own cgroup that this is, or is in: the topmost with its id.
        """
        wanted = self.identity.container_id
        if wanted is None:
            return None
        cgroup = self
        while cgroup.parent is not None and cgroup.parent.identity.container_id == wanted:
            cgroup = cgroup.parent
        return cgroup

    def with_descendants(self) -> Iterator[Cgroup]:
        """
        Iterate over this one and all below, from the top.
        """
        below = [self]
        while below:
            cgroup = below.pop()
            yield cgroup
            below += cgroup.children.values()

    def identify(self) -> None:
        """
        Read the identity anew from the path.
        """
        path = self.path
        self.identity = Identity() if path is None else identify(path)


class CgroupTable:
    """
    The cgroups of one hierarchy, by id.
    """

    def __init__(self) -> None:
        self._alive: dict[int, Cgroup] = {}
        # Entered before the one above: the id of that one, and theirs.
        self._orphans: dict[int, dict[int, Cgroup]] = {}
        # In the order of their removal.
        self._removed: OrderedDict[int, Cgroup] = OrderedDict()
        self.refused = 0
        """How often there was no room for another."""

    def __len__(self) -> int:
        return len(self._alive)

    def __iter__(self) -> Iterator[Cgroup]:
        """
        Iterate over a copy of those that are there.
        """
        return iter(list(self._alive.values()))

    def get(self, cgroup_id: int) -> Cgroup | None:
        """
        Return the cgroup of that id, also for some seconds after its removal.
        """
        return self._alive.get(cgroup_id) or self._removed.get(cgroup_id)

    def alive(self, cgroup_id: int) -> Cgroup | None:
        """
        Return the cgroup of that id, if it is there.
        """
        return self._alive.get(cgroup_id)

    def was_removed(self, cgroup_id: int) -> bool:
        """
        Tell whether that cgroup was removed within the last seconds.
        """
        return cgroup_id in self._removed

    def add(self, cgroup: Cgroup) -> bool:
        """
        Enter a cgroup below its parent, if that is known, and read its identity.

        Returns:
            Whether there was room: those that are there stay, as others are below them.
        """
        if len(self._alive) >= ALIVE_COUNT:
            self.refused += 1
            return False
        if cgroup.parent_cgroup_id is not None:
            self._place(cgroup, cgroup.parent_cgroup_id)
        cgroup.identify()
        self._alive[cgroup.cgroup_id] = cgroup
        return True

    def _place(self, cgroup: Cgroup, parent_id: int) -> None:
        cgroup.parent = self._alive.get(parent_id)
        if cgroup.parent is None:
            self._orphans.setdefault(parent_id, {})[cgroup.cgroup_id] = cgroup
        else:
            cgroup.parent.children[cgroup.cgroup_id] = cgroup

    def adopt(self, parent: Cgroup) -> list[Cgroup]:
        """
        Put those below a cgroup that were entered before it in their place.

        Returns:
            All whose path is known now.
        """
        orphans = self._orphans.pop(parent.cgroup_id, None)
        if orphans is None:
            return []
        top = parent
        while top.parent is not None:
            top = top.parent
        # Not the one that the parent itself is below: what says so cannot be true.
        orphans.pop(top.cgroup_id, None)
        below: list[Cgroup] = []
        for cgroup in orphans.values():
            self._place(cgroup, parent.cgroup_id)
            below += cgroup.with_descendants()
        for cgroup in below:
            cgroup.identify()
        return below

    def remove(self, cgroup: Cgroup, now: int) -> None:
        """
        Take a cgroup from those that are there to those that were.
        """
        self._alive.pop(cgroup.cgroup_id, None)
        if cgroup.parent is not None:
            cgroup.parent.children.pop(cgroup.cgroup_id, None)
        elif cgroup.parent_cgroup_id is not None:
            self._disown(cgroup, cgroup.parent_cgroup_id)
        cgroup.removed = now
        self._removed[cgroup.cgroup_id] = cgroup
        while len(self._removed) > GRACE_COUNT:
            self._removed.popitem(last=False)

    def _disown(self, cgroup: Cgroup, parent_id: int) -> None:
        orphans = self._orphans.get(parent_id)
        if orphans is not None:
            orphans.pop(cgroup.cgroup_id, None)
            if not orphans:
                del self._orphans[parent_id]

    def expire(self, now: int) -> None:
        """
        Forget who was removed too long ago.
        """
        while self._removed:
            oldest = next(iter(self._removed.values()))
            if oldest.removed is not None and now - oldest.removed < GRACE_NS:
                return
            self._removed.popitem(last=False)

    def clear(self) -> None:
        """
        Forget all.
        """
        self._alive.clear()
        self._orphans.clear()
        self._removed.clear()
