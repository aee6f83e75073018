# SPDX-License-Identifier: Apache-2.0
"""
What handlers reach beyond messages: each other's objects, their maps, own sources.
"""

from __future__ import annotations

import select
from functools import partial
from typing import TYPE_CHECKING

from kprobe_modules.errors import ModuleStateError
from kprobe_modules.libbpf import map as bpf_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from kprobe_modules.handler import Handler, Source
    from kprobe_modules.libbpf import Library
    from kprobe_modules.loader import LoadedModule
    from kprobe_modules.records import Record

__all__ = ["LoadedResources", "ModuleMap", "Offers", "OpenSource", "Sources"]


class Offers:
    """
    Objects that handlers offer each other by name, while they are attached.
    """

    def __init__(self) -> None:
        self._offered: dict[str, tuple[str, object]] = {}

    def provide(self, module: str, name: str, offered: object) -> None:
        """
        Offer an object.

        Raises:
            ModuleStateError: when another module offers something of that name.
        """
        owner, _ = self._offered.get(name, (module, None))
        if owner != module:
            msg = f"{module}: {name} is provided by module {owner} already"
            raise ModuleStateError(msg)
        self._offered[name] = (module, offered)

    def find(self, name: str) -> object | None:
        """
        Return what is offered under a name, or None.
        """
        found = self._offered.get(name)
        return found[1] if found else None

    def withdraw(self, module: str) -> None:
        """
        Take back all that a module offered.
        """
        self._offered = {key: item for key, item in self._offered.items() if item[0] != module}


class ModuleMap:
    """
    One map of a loaded module; see `kprobe_modules.handler.MapAccess`.
    """

    def __init__(self, fd: int, library: Library) -> None:
        self._fd = fd
        self._library = library
        self._value_size = bpf_map.info(fd, library=library).value_size

    def lookup(self, key: bytes) -> bytes | None:
        """
        Return the value of a key, or None.
        """
        return bpf_map.lookup(self._fd, key, self._value_size, library=self._library)

    def lookup_percpu(self, key: bytes) -> list[bytes] | None:
        """
        Return the value of a key of a per-CPU map on every possible CPU, or None.
        """
        return bpf_map.lookup_percpu(self._fd, key, library=self._library)

    def update(self, key: bytes, value: bytes) -> None:
        """
        Insert or replace.
        """
        bpf_map.update(self._fd, key, value, library=self._library)

    def delete(self, key: bytes) -> bool:
        """
        Delete; tell whether the key was there.
        """
        return bpf_map.delete(self._fd, key, library=self._library)

    def keys(self) -> Iterator[bytes]:
        """
        Iterate over keys; what changes meanwhile may be missed or seen twice.
        """
        return bpf_map.keys(self._fd, library=self._library)

    def values(self, size: int | None = None) -> Iterator[bytes]:
        """
        Iterate over values, or the first *size* bytes of each.
        """
        return bpf_map.values(self._fd, size, library=self._library)


class LoadedResources:
    """
    A module's own maps and programs, from the moment it is loaded.
    """

    def __init__(self, module: str, library: Library) -> None:
        self._module = module
        self._library = library
        self.loaded: LoadedModule | None = None

    def _require(self) -> LoadedModule:
        if self.loaded is None:
            msg = f"{self._module}: its maps and programs exist only while it is attached"
            raise ModuleStateError(msg)
        return self.loaded

    def map(self, name: str) -> ModuleMap:
        """
        Return a map of the module, common ones included.

        Raises:
            ObjectError: when the object declares no map of that name.
            ModuleStateError: when the module is not loaded.
        """
        return ModuleMap(self._require().map_fd(name), self._library)

    def program_fd(self, name: str) -> int:
        """
        Return the descriptor of a program of the module; it stays the module's.
        """
        return self._require().program(name).fd


class OpenSource:
    """
    A handler's own source, watched by the collector until it is closed.
    """

    def __init__(self, source: Source, name: str, close: Callable[[OpenSource], None]) -> None:
        self.source = source
        self.name = name
        self._close = close

    def close(self) -> None:
        """
        Stop watching and close it.  Safe to call twice.
        """
        self._close(self)


class Sources:
    """
    What handlers read themselves, such as netlink sockets.

    Args:
        watch: adds a descriptor to what the collector waits for.
        unwatch: takes it away again.
    """

    def __init__(self, watch: Callable[[int], None], unwatch: Callable[[int], None]) -> None:
        self._watch = watch
        self._unwatch = unwatch
        self._open: dict[int, tuple[str, Handler, OpenSource]] = {}

    def open(self, module: str, handler: Handler, name: str) -> OpenSource:
        """
        Open a source of a handler and watch it.

        Raises:
            OSError, ManifestError: as the handler does.
        """
        source = handler.open_source(name)
        try:
            fd = source.fileno()
            self._watch(fd)
        except BaseException:
            source.close()
            raise

        def close(opened: OpenSource) -> None:
            if self._open.pop(fd, None) is not None:
                self._unwatch(fd)
                opened.source.close()

        opened = OpenSource(source, name, close)
        self._open[fd] = (module, handler, opened)
        return opened

    def rest(self, module: str, name: str) -> None:
        """
        Do not let a source that fails end every wait; it is still read at each drain.
        """
        for fd, (owner, _, opened) in self._open.items():
            if (owner, opened.name) == (module, name):
                self._unwatch(fd)

    def readable(self) -> list[tuple[str, str, Callable[[], Iterable[Record]]]]:
        """
        Return module, source name and what to call, of each source with something to say.
        """
        if not self._open:
            return []
        poll = select.poll()
        for fd in self._open:
            poll.register(fd, select.POLLIN)
        ready: list[tuple[str, str, Callable[[], Iterable[Record]]]] = []
        for fd, _ in poll.poll(0):
            module, handler, opened = self._open[fd]
            ready.append((module, opened.name, partial(handler.read_source, opened.name)))
        return ready
