# SPDX-License-Identifier: Apache-2.0
"""
Finding modules: entry points of the group ``kprobe_modules.modules``.

Only what is asked for is imported.  A module that cannot be imported fails alone,
with an error that names the distribution it came from.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from kprobe_modules import entrypoints
from kprobe_modules.entrypoints import EntryPoint
from kprobe_modules.errors import RegistryError
from kprobe_modules.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["GROUP", "Registry"]

GROUP = "kprobe_modules.modules"

Module = TypeVar("Module", bound="str | Manifest")


def _check(module: object) -> None:
    if not isinstance(module, str | Manifest):
        msg = f"modules: expected a name or a Manifest, found {module!r}"
        raise RegistryError(msg)


def _name(module: str | Manifest) -> str:
    return module if isinstance(module, str) else module.name


class Registry:
    """
    The modules that can be enabled, by name.

    Args:
        manifests: further modules that are not installed as entry points; they
            come first.
    """

    def __init__(self, manifests: Mapping[str, Manifest] | None = None) -> None:
        self._manifests = dict(manifests or {})

    @cached_property
    def _points(self) -> dict[str, list[EntryPoint]]:
        found: dict[str, list[EntryPoint]] = {}
        for point in entrypoints.find(GROUP):
            same = found.setdefault(point.name, [])
            # An editable install may list the same distribution twice.
            if point.target not in [other.target for other in same]:
                same.append(point)
        return found

    def names(self) -> tuple[str, ...]:
        """
        Return the names of all modules that are registered, sorted.
        """
        return tuple(sorted({*self._manifests, *self._points}))

    def registration(self, name: str) -> EntryPoint:
        """
        Return where a module comes from, without importing it.

        Raises:
            RegistryError: when there is no module of that name, or more than one.
        """
        if name in self._manifests:
            manifest = self._manifests[name]
            return EntryPoint(name, manifest.package, "given in the program", manifest.version)
        return self._point(name)

    def _point(self, name: str) -> EntryPoint:
        points = self._points.get(name)
        if not points:
            known = ", ".join(self.names()) or "none at all"
            msg = f"no module is registered as {name!r}; registered: {known}"
            raise RegistryError(msg)
        if len(points) > 1:
            by = " and ".join(f"{point.target} by {point.distribution}" for point in points)
            msg = f"module {name} is registered twice: {by}; uninstall one"
            raise RegistryError(msg)
        return points[0]

    def find(self, name: str) -> Manifest | None:
        """
        Return the manifest of a module that can be enabled, or None.
        """
        try:
            return self.load(name)
        except RegistryError:
            return None

    def exporters_first(self, modules: Iterable[Module]) -> Iterator[Module]:
        """
        Yield modules in their order, but each behind those of them that it imports maps from.

        Programs at one place run in the order in which they were attached: so what an
        exporter enters of an event is there when its importers look.

        Args:
            modules: names or manifests; each is loaded when it is its turn.

        Raises:
            RegistryError: one name alone, or what is neither.
        """
        if isinstance(modules, str):
            msg = f"modules: expected a list of names or manifests, found {modules!r}"
            raise RegistryError(msg)
        given = list(modules)
        for module in given:
            _check(module)
        left = {_name(module): module for module in given}
        if len(left) < len(given):
            yield from given  # who comes twice is refused the second time
            return

        def take(name: str) -> Iterator[Module]:
            module = left.pop(name, None)
            if module is None:
                return
            manifest = self.find(module) if isinstance(module, str) else module
            for exporter in manifest.imports.values() if manifest else ():
                yield from take(exporter)
            yield module

        for name in list(left):
            yield from take(name)

    def manifest(self, module: str | Manifest) -> Manifest:
        """
        Return the manifest of a module that is given by its name or by that.

        Raises:
            RegistryError: it is neither; as for `load`.
        """
        _check(module)
        return self.load(module) if isinstance(module, str) else module

    def load(self, name: str) -> Manifest:
        """
        Import a module and return its manifest.

        Raises:
            RegistryError: when it is unknown or ambiguous, fails to import, or is no
                manifest.
        """
        if name in self._manifests:
            return self._manifests[name]
        point = self._point(name)
        try:
            manifest = point.load()
        except (Exception, SystemExit) as error:
            msg = (
                f"module {name} of distribution {point.distribution} {point.version} "
                f"({point.target}) cannot be imported: {type(error).__name__}: {error}"
            )
            raise RegistryError(msg) from error
        if not isinstance(manifest, Manifest):
            msg = (
                f"module {name} of distribution {point.distribution}: {point.target} is a "
                f"{type(manifest).__name__}, expected a Manifest"
            )
            raise RegistryError(msg)
        if manifest.name != name:
            msg = (
                f"module {name} of distribution {point.distribution}: its manifest is named "
                f"{manifest.name!r}, expected the name of the entry point"
            )
            raise RegistryError(msg)
        return manifest
