# SPDX-License-Identifier: Apache-2.0
"""
The kernel's BTF, read while Python imports.

Attaching a module waits for it twice: the choice of hooks asks for names in it, and
libbpf reads it again for each object.  Both take some ten milliseconds in which Python
has nothing to do, and before them it has as much to import.
"""

from __future__ import annotations

from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING, Self

import attrs

from kprobe_modules.architecture import machine_arch
from kprobe_modules.kernelbtf import KernelBtf
from kprobe_modules.libbpf import BpfObject, find

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from kprobe_modules.libbpf import BpfProgram, Library
    from kprobe_modules.manifest import Manifest

__all__ = ["Headstart"]


class Headstart:
    """
    Begin, in threads, what attaching modules will wait for.

    Nothing depends on it: what fails here is left out, and fails again, with its
    reason, when the module is attached.  One object is open ahead of time, with some
    12 MB of libbpf's for the kernel's BTF: the next one's when an object is taken.

    Args:
        modules: give the manifests of what will be attached, in that order; called
            when it is their turn.

    Attributes:
        btf: the kernel's BTF; whoever asks it waits until it is read.
    """

    def __init__(self, modules: Iterable[Callable[[], Manifest]]) -> None:
        self.btf = KernelBtf()
        self._modules = iter(modules)
        self._ahead: _Ahead | None = None
        self._reading: Thread | None = None
        if self.btf.lets_others_run:
            self._reading = _start(self.btf.read, "the kernel's BTF")
        self._begin_next()

    def take(self, name: str, data: bytes, library: Library) -> BpfObject | None:
        """
        Hand over the open object of a module, which is the caller's from now on.

        Args:
            name: the module.
            data: the object that is wanted.
            library: the libbpf that must have opened it.

        Returns:
            None if the head start was another one's, or none.
        """
        ahead = self._ahead
        if ahead is None or ahead.name != name:
            return None
        ahead.thread.join()
        self._begin_next()
        if ahead.data == data and ahead.target.library is library:
            return ahead.target
        ahead.target.close()
        return None

    def close(self) -> None:
        """
        Give back what nobody has taken.  Safe to call twice.
        """
        self._modules = iter(())
        if self._reading is not None:
            self._reading.join()
        self.btf.close()
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.thread.join()
            ahead.target.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _begin_next(self) -> None:
        self._ahead = None
        for load in self._modules:
            # A module of others may raise anything, and will again.
            with suppress(Exception):
                self._ahead = self._begin(load())
                return

    def _begin(self, manifest: Manifest) -> _Ahead:
        data = manifest.object_bytes(machine_arch())
        # Opening takes half a millisecond and calls back into Python some hundred times:
        # in a thread each call would wait for those who import.
        target = BpfObject.open(data, manifest.object_name, find())
        try:
            if not self.btf.lets_others_run:
                # Of the two readings, libbpf's is still worth a thread.
                self._known(target)
            thread = _start(lambda: self._read_ahead(target), f"BTF for {manifest.name}")
        except BaseException:
            target.close()
            raise
        return _Ahead(manifest.name, data, target, thread)

    def _read_ahead(self, target: BpfObject) -> None:
        """
        Let libbpf read the kernel's BTF, by looking up a target.
        """
        program = self._known(target)
        if program is not None:
            program.find_target()

    def _known(self, target: BpfObject) -> BpfProgram | None:
        """
        Return a program whose target is known to be there.

        For one that is not, libbpf would read the BTF of all kernel modules, too.
        """
        return next(filter(self._is_in_kernel, target.programs.values()), None)

    def _is_in_kernel(self, program: BpfProgram) -> bool:
        kind, _, name = program.section.partition("/")
        if kind == "tp_btf":
            return self.btf.tracepoint_home(name) == "vmlinux"
        return kind == "iter" and self.btf.has_iterator(name)


@attrs.frozen(eq=False, repr=False)
class _Ahead:
    """
    An object that a thread is busy with.
    """

    name: str
    data: bytes
    target: BpfObject
    thread: Thread


def _start(work: Callable[[], None], name: str) -> Thread:
    def run() -> None:
        with suppress(Exception):
            work()

    thread = Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
