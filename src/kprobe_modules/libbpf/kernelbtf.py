# SPDX-License-Identifier: Apache-2.0
"""
What the running kernel's BTF knows: functions, BTF tracepoints, iterators.

BTF is world readable, so none of this needs privileges.  The BTF of kernel
modules came with Linux 5.11; before it a module's functions are not found.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from kprobe_modules.errors import NotSupportedError
from kprobe_modules.libbpf import structs
from kprobe_modules.libbpf.provider import Library, find

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["KernelBtf"]

_SYS = Path("/sys")


class KernelBtf:
    """
    Look names up in the kernel's BTF.

    The BTF is parsed on the first question (some 15 ms, 6 MB) and answers are
    remembered; each new one costs about half a millisecond.  :meth:`close`
    gives the memory back and keeps the answers; a new question afterwards
    parses again.  Kernel modules are those loaded when first asked about; make
    a new object to see others.  Safe to use from several threads.
    """

    def __init__(self, library: Library | None = None, *, sys: Path = _SYS) -> None:
        self._library = library
        self._folder = sys / "kernel" / "btf"
        self._lock = threading.RLock()
        self._vmlinux = 0
        self._modules: dict[str, int] | None = None
        self._ids: dict[tuple[str, int], int] = {}
        self._homes: dict[tuple[str, int], str | None] = {}
        self._parameters: dict[str, int | None] = {}

    @property
    def available(self) -> bool:
        """
        Whether the kernel has BTF at all (CONFIG_DEBUG_INFO_BTF).
        """
        return (self._folder / "vmlinux").exists()

    def has_function(self, name: str) -> bool:
        """
        Say whether the kernel, or a loaded module, has a function in its BTF.

        Raises:
            NotSupportedError: the kernel has no BTF.
        """
        return self.home(name) is not None

    def has_tracepoint(self, name: str) -> bool:
        """
        Say whether ``tp_btf/name`` exists: a typedef ``btf_trace_name``.

        Raises:
            NotSupportedError: the kernel has no BTF.
        """
        return self._home(f"btf_trace_{name}", structs.BTF_KIND_TYPEDEF) is not None

    def has_iterator(self, name: str) -> bool:
        """
        Say whether ``iter/name`` exists: a function ``bpf_iter_name``.

        Raises:
            NotSupportedError: the kernel has no BTF.
        """
        return self.function_id(f"bpf_iter_{name}") is not None

    def has_struct(self, name: str) -> bool:
        """
        Say whether the kernel proper has a struct of that name.

        Raises:
            NotSupportedError: the kernel has no BTF.
        """
        return self._id(name, structs.BTF_KIND_STRUCT) > 0

    def home(self, function: str) -> str | None:
        """
        Return ``vmlinux`` or the kernel module whose BTF has a function.

        Raises:
            NotSupportedError: the kernel has no BTF.
        """
        return self._home(function, structs.BTF_KIND_FUNC)

    def function_id(self, name: str) -> int | None:
        """
        Return the BTF id of a function of the kernel proper.

        Raises:
            NotSupportedError: the kernel has no BTF.
        """
        found = self._id(name, structs.BTF_KIND_FUNC)
        return found if found > 0 else None

    def func_params(self, name: str) -> int | None:
        """
        Return how many parameters a function takes; None if it is unknown.

        Raises:
            NotSupportedError: the kernel has no BTF.
        """
        with self._lock:
            if name not in self._parameters:
                self._parameters[name] = self._count_parameters(name)
            return self._parameters[name]

    def close(self) -> None:
        """
        Give the memory back; answers given so far stay.
        """
        with self._lock:
            if self._library is None:
                return
            # Split BTF points into its base, which therefore goes last.
            for pointer in (self._modules or {}).values():
                self._library.c.btf__free(pointer)
            if self._vmlinux:
                self._library.c.btf__free(self._vmlinux)
            self._modules = None
            self._vmlinux = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _count_parameters(self, name: str) -> int | None:
        home = self.home(name)
        if home is None:
            return None
        library = self._opened()
        btf = self._vmlinux if home == "vmlinux" else self._split()[home]
        identity = library.c.btf__find_by_name_kind(btf, name.encode(), structs.BTF_KIND_FUNC)
        function = library.c.btf__type_by_id(btf, identity).contents
        prototype = library.c.btf__type_by_id(btf, function.type).contents
        if prototype.kind != structs.BTF_KIND_FUNC_PROTO:
            return None
        count: int = prototype.count
        return count

    def _home(self, name: str, kind: int) -> str | None:
        with self._lock:
            if (name, kind) not in self._homes:
                self._homes[name, kind] = self._find_home(name, kind)
            return self._homes[name, kind]

    def _find_home(self, name: str, kind: int) -> str | None:
        if self._id(name, kind) > 0:
            return "vmlinux"
        library = self._opened()
        base = library.c.btf__type_cnt(self._vmlinux)
        for module, btf in self._split().items():
            # The search of a split BTF covers its base, too.
            if library.c.btf__find_by_name_kind(btf, name.encode(), kind) >= base:
                return module
        return None

    def _id(self, name: str, kind: int) -> int:
        with self._lock:
            found = self._ids.get((name, kind))
            if found is None:
                library = self._opened()
                found = library.c.btf__find_by_name_kind(self._vmlinux, name.encode(), kind)
                self._ids[name, kind] = found
            return found

    def _opened(self) -> Library:
        library = self._library = self._library or find()
        if not self._vmlinux:
            path = self._folder / "vmlinux"
            if not path.exists():
                feature = "BTF"
                reason = f"there is no {path}; CONFIG_DEBUG_INFO_BTF is off"
                raise NotSupportedError(feature, reason)
            self._vmlinux = self._parse(library, path, None)
        return library

    def _split(self) -> dict[str, int]:
        """
        Parse the BTF of all loaded kernel modules.
        """
        if self._modules is None:
            library = self._opened()
            self._modules = {}
            for path in sorted(self._folder.iterdir()):
                if path.name != "vmlinux":
                    try:
                        self._modules[path.name] = self._parse(library, path, self._vmlinux)
                    except NotSupportedError:
                        continue  # unloaded meanwhile, or built for another kernel
        return self._modules

    @staticmethod
    def _parse(library: Library, path: Path, base: int | None) -> int:
        with library.messages.listen():
            if base is None:
                pointer = library.c.btf__parse(os.fsencode(path), None)
            else:
                pointer = library.c.btf__parse_split(os.fsencode(path), base)
            code = ctypes.get_errno()
        if not pointer:
            feature = f"BTF of {path.name}"
            raise NotSupportedError(feature, os.strerror(code))
        parsed: int = pointer
        return parsed
