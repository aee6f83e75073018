# SPDX-License-Identifier: Apache-2.0
"""
Maps that one module exports and others import.

In whichever order they attach, all use one map in the kernel: who comes first creates
it, and we keep a descriptor of it for those who come later.  The exporter is the
authority on its shape: an importer is compared with it beforehand, also when it comes
first and the exporter is only installed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import attrs

from kprobe_modules import specfile
from kprobe_modules.architecture import machine_arch
from kprobe_modules.errors import KprobeModulesError
from kprobe_modules.libbpf import Descriptor
from kprobe_modules.libbpf import map as bpf_map
from kprobe_modules.libbpf.rcu import wait_for_programs
from kprobe_modules.maps import COMPARED, map_differences

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kprobe_modules.manifest import Manifest
    from kprobe_modules.spec import MapSpec, ObjectSpec

__all__ = ["EXPORTABLE", "SharedMaps"]

EXPORTABLE: Final = (
    "hash",
    "lru_hash",
    "percpu_hash",
    "lru_percpu_hash",
    "lpm_trie",
    "array",
    "percpu_array",
)
"""Types of map whose entries can be taken back when their module leaves."""

SHARED: Final = (*COMPARED, "max_entries")
"""What must be equal: also the size, as any of the modules may be the one that creates."""


@attrs.define(eq=False)
class _Held:
    """
    A map in the kernel, and who uses it.
    """

    descriptor: Descriptor
    spec: MapSpec
    """As whoever created it declares it."""
    creator: str
    users: set[str]


class SharedMaps:
    """
    The exported and imported maps of the attached modules.

    Args:
        find: gives the manifest of a module that is installed, or None.
    """

    def __init__(self, find: Callable[[str], Manifest | None]) -> None:
        self._find = find
        self._held: dict[tuple[str, str], _Held] = {}

    def differences(self, manifest: Manifest, spec: ObjectSpec) -> list[str]:
        """
        Compare the maps that a module exports and imports with what they should be.

        Returns:
            A sentence for each difference.  An exporter has none with importers that
            came before it: they are not the authority.
        """
        own = {item.name: item for item in spec.maps}
        problems = [
            f"map {name}: the manifest lists it, the object does not declare it"
            for name in sorted({*manifest.exports, *manifest.imports} - own.keys())
        ]
        problems += [
            f"map {name}: is exported and of type {own[name].type_name}, "
            f"expected one of {', '.join(EXPORTABLE)}"
            for name in manifest.exports
            if name in own and own[name].type_name not in EXPORTABLE
        ]
        for name, exporter in manifest.imports.items():
            if name in own:
                problems += self._import_differences(exporter, own[name])
        return problems

    def _import_differences(self, exporter: str, theirs: MapSpec) -> list[str]:
        label = f"map {theirs.name} of module {exporter}"
        held = self._held.get((exporter, theirs.name))
        if held is not None and exporter in held.users:
            return map_differences(label, theirs, held.spec, exporter, SHARED)
        installed = self._find(exporter)
        if installed is not None:
            if theirs.name not in installed.exports:
                return [f"{label}: {exporter} exports no such map"]
            declared = _declared(installed, theirs.name)
            if declared is not None:
                return map_differences(label, theirs, declared, exporter, SHARED)
        if held is not None:
            return map_differences(label, theirs, held.spec, held.creator, SHARED)
        return []

    def fds(self, manifest: Manifest, spec: ObjectSpec) -> dict[str, int]:
        """
        Return the descriptors of those of a module's maps that exist already; they stay ours.
        """
        found = {}
        for exporter, name in _shared(manifest):
            held = self._held.get((exporter, name))
            if held is not None and not self._displaces(manifest, held, spec.map(name)):
                found[name] = held.descriptor.fd
        return found

    def _displaces(self, manifest: Manifest, held: _Held, declared: MapSpec) -> bool:
        """
        Whether an exporter finds a map that importers have made otherwise.
        """
        return declared.name in manifest.exports and bool(
            map_differences("", held.spec, declared, "", SHARED)
        )

    def join(
        self, manifest: Manifest, spec: ObjectSpec, map_fd: Callable[[str], int]
    ) -> dict[str, list[str]]:
        """
        Keep the maps of a module that has been loaded, until it leaves.

        Args:
            manifest: the module.
            spec: its object.
            map_fd: gives the descriptor of a map of its object.

        Returns:
            Importers that were there first with a map that the exporter cannot use, as
            it turns out: each with its differences.  They keep the map, to themselves.

        Raises:
            OSError: when no more descriptors are to be had.
        """
        estranged: dict[str, list[str]] = {}
        for exporter, name in _shared(manifest):
            key, declared = (exporter, name), spec.map(name)
            held = self._held.get(key)
            if held is not None and self._displaces(manifest, held, declared):
                label = f"map {name} of module {exporter}"
                found = map_differences(label, held.spec, declared, exporter, SHARED)
                for user in held.users:
                    estranged.setdefault(user, []).extend(found)
                held.descriptor.close()
                held = None
            if held is None:
                descriptor = Descriptor(os.dup(map_fd(name)), f"map {name} of {exporter}")
                held = self._held[key] = _Held(descriptor, declared, manifest.name, set())
            held.users.add(manifest.name)
        return estranged

    def empty(self, module: str) -> None:
        """
        Delete what a module, whose programs are unlinked, has left in maps that others use.
        """
        held = [
            item
            for (exporter, _), item in self._held.items()
            if exporter == module and item.users - {module}
        ]
        if held:
            # A program of its may be about to insert.
            wait_for_programs()
        for item in held:
            bpf_map.clear(item.descriptor.fd)

    def leave(self, module: str) -> None:
        """
        Forget a module; maps that nobody is left to use are given back.
        """
        for key, held in list(self._held.items()):
            held.users.discard(module)
            if not held.users:
                held.descriptor.close()
                del self._held[key]


def _shared(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """
    Yield exporter and name of each map that a module shares.
    """
    for name in manifest.exports:
        yield manifest.name, name
    for name, exporter in manifest.imports.items():
        yield exporter, name


def _declared(manifest: Manifest, name: str) -> MapSpec | None:
    """
    Return how a module declares a map; None if its object is missing or broken.

    That is the module's own failure, told when it is attached.
    """
    arch = machine_arch()
    try:
        data = manifest.object_bytes(arch)
        return specfile.read(data, manifest.name, manifest.spec_bytes(arch)).map(name)
    except KprobeModulesError:
        return None
