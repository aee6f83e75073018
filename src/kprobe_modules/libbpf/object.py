# SPDX-License-Identifier: Apache-2.0
"""
An object file: open, edit, load.

::

    with BpfObject.open(data, "processes") as opened:
        opened.maps["events"].reuse_fd(shared)
        opened.programs["on_fork"].set_autoload(False)
        opened.load()
        link = opened.programs["on_exit"].attach_trace()
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import threading
from typing import TYPE_CHECKING

from kprobe_modules.libbpf import refusal, structs
from kprobe_modules.libbpf.attach import BpfProgram, Owner
from kprobe_modules.libbpf.descriptor import KernelError
from kprobe_modules.libbpf.provider import Library, find

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["BpfMap", "BpfObject", "BpfProgram"]

#: Room for the verifier's log of the program that fails.  Pages that are not
#: written cost nothing, and libbpf asks for a log only after a refusal.
_LOG_ROOM = 16 << 20


class BpfMap:
    """
    One map of an open object.

    The ``set_`` methods and :meth:`reuse_fd` are for before the load.
    Unusable once its object is closed.

    Attributes:
        name: as in the C source; ``.rodata``, ``.bss`` ... for those of global
            variables.
    """

    def __init__(self, owner: Owner, pointer: int) -> None:
        self._owner = owner
        self._c = owner.library.c
        self._pointer = pointer
        name: str = self._c.bpf_map__name(pointer).decode()
        if self._c.bpf_map__is_internal(pointer) and "." in name:
            # libbpf puts the beginning of the object's name in front.
            name = name[name.index(".") :]
        self.name = name

    def __repr__(self) -> str:
        return f"<BpfMap {self.name} of {self._owner.name}>"

    def _get(self, what: str) -> int:
        self._owner.check()
        value: int = getattr(self._c, f"bpf_map__{what}")(self._pointer)
        return value

    def _set(self, what: str, *values: object) -> None:
        self._owner.check()
        with self._owner.library.messages.listen() as lines:
            code = getattr(self._c, f"bpf_map__{what}")(self._pointer, *values)
        if code < 0:
            sentence = f"map {self.name}: {what.replace('_', ' ')}"
            raise refusal.of_object(self._owner.name, sentence, -code, lines)

    @property
    def type(self) -> int:
        """
        Its type, a number of ``enum bpf_map_type``.
        """
        return self._get("type")

    @property
    def key_size(self) -> int:
        """
        Size of a key in bytes.
        """
        return self._get("key_size")

    @property
    def value_size(self) -> int:
        """
        Size of a value, for per-CPU maps of one CPU's, in bytes.
        """
        return self._get("value_size")

    @property
    def max_entries(self) -> int:
        """
        How many entries it has room for; bytes, for a BPF ring buffer.
        """
        return self._get("max_entries")

    @property
    def flags(self) -> int:
        """
        Its BPF_F_ flags.
        """
        return self._get("map_flags")

    @property
    def btf_key_type_id(self) -> int:
        """
        Type of its keys in the object's BTF, 0 if unknown.
        """
        return self._get("btf_key_type_id")

    @property
    def btf_value_type_id(self) -> int:
        """
        Type of its values in the object's BTF, 0 if unknown.
        """
        return self._get("btf_value_type_id")

    @property
    def fd(self) -> int:
        """
        Its descriptor, owned by the object.

        Raises:
            KernelError: it has none yet.
        """
        fd = self._get("fd")
        if fd < 0:
            raise KernelError(errno.ENOENT, f"map {self.name}: not created yet")
        return fd

    def set_type(self, number: int) -> None:
        """
        Declare it to be of another type of ``enum bpf_map_type``.
        """
        self._set("set_type", number)

    def set_key_size(self, size: int) -> None:
        """
        Declare another size of keys, in bytes.
        """
        self._set("set_key_size", size)

    def set_value_size(self, size: int) -> None:
        """
        Declare another size of values, in bytes.
        """
        self._set("set_value_size", size)

    def set_max_entries(self, count: int) -> None:
        """
        Declare another capacity.
        """
        self._set("set_max_entries", count)

    def set_flags(self, flags: int) -> None:
        """
        Declare other BPF_F_ flags.
        """
        self._set("set_map_flags", flags)

    @property
    def autocreate(self) -> bool:
        """
        Whether the load creates it.
        """
        return bool(self._get("autocreate"))

    def set_autocreate(self, create: bool) -> None:  # noqa: FBT001 (the C name's meaning)
        """
        Choose whether the load creates it; programs must not need it then.
        """
        self._set("set_autocreate", create)

    def reuse_fd(self, fd: int) -> None:
        """
        Use an existing map in its place.

        libbpf duplicates the descriptor and takes type, sizes and flags from
        it **without any check** against what the object declares: compare
        first.
        """
        self._set("reuse_fd", fd)

    def initial_value(self) -> bytes:
        """
        Return what the global variables of this section begin with.

        Raises:
            LoadError: the map is not one of global variables.
        """
        self._owner.check()
        size = ctypes.c_size_t()
        pointer = self._c.bpf_map__initial_value(self._pointer, ctypes.byref(size))
        if not pointer:
            what = f"map {self.name}: initial value"
            raise refusal.of_object(self._owner.name, what, errno.ENOENT)
        return ctypes.string_at(pointer, size.value)

    def set_initial_value(self, value: bytes) -> None:
        """
        Set what the global variables begin with, all of them at once.
        """
        self._set("set_initial_value", value, len(value))


class BpfObject:
    """
    Own an object opened by libbpf, with its maps and programs.

    Once loaded it owns their descriptors; :meth:`close` releases everything
    but the links.  Opening, editing and loading belong to one thread; closing
    may happen in any, once or more, but not during another call.

    Attributes:
        name: what it is called in error messages and, cut, in the kernel.
        library: the libbpf that opened it; its pointers go to no other.
        maps: by name.
        programs: by name.
    """

    def __init__(self, library: Library, pointer: int, name: str, data: bytes) -> None:
        self.library = library
        self.name = name
        self._pointer = pointer
        self._data = data  # libbpf may look at it until the load
        self._lock = threading.Lock()
        self.loaded = False
        self.has_kernel_btf = False
        maps = [BpfMap(self, each) for each in self._each("map")]
        self.maps = {each.name: each for each in maps}
        programs = [BpfProgram(self, each) for each in self._each("program")]
        self.programs = {each.name: each for each in programs}

    @classmethod
    def open(cls, data: bytes, name: str, library: Library | None = None) -> Self:
        """
        Parse an object file; the kernel is not asked yet.

        Args:
            data: the ELF file.
            name: what to call it.
            library: the libbpf to use, :func:`find`'s by default.

        Raises:
            LoadError: libbpf does not accept the file.
            LibbpfNotFoundError: there is no libbpf.
        """
        library = library or find()
        options = structs.ObjectOpenOptions(
            sz=ctypes.sizeof(structs.ObjectOpenOptions), object_name=name.encode()
        )
        with library.messages.listen() as lines:
            pointer = library.c.bpf_object__open_mem(data, len(data), ctypes.byref(options))
            code = ctypes.get_errno()
        if not pointer:
            raise refusal.of_object(name, "open", code, lines)
        return cls(library, pointer, name, data)

    def _each(self, kind: str, within: int | None = None) -> list[int]:
        within = within or self._pointer
        advance = getattr(self.library.c, f"bpf_object__next_{kind}")
        found: list[int] = []
        pointer = advance(within, None)
        while pointer:
            found.append(pointer)
            pointer = advance(within, pointer)
        return found

    def check(self) -> None:
        """
        Raise if the object is closed.

        Raises:
            KernelError: it is.
        """
        if not self._pointer:
            raise KernelError(errno.EBADF, f"object {self.name}: already closed")

    @property
    def closed(self) -> bool:
        """
        Whether :meth:`close` has been called.
        """
        return not self._pointer

    def load(self) -> None:
        """
        Create the maps and load the programs that are to be loaded.

        libbpf resolves types against the kernel's BTF for each object, which
        takes tens of milliseconds.  After a refusal nothing is left in the
        kernel, and the object can only be closed.

        Raises:
            VerifierError: the verifier refused a program; has its log.
            PrivilegeError: CAP_BPF, CAP_PERFMON or, before 5.11,
                CAP_SYS_RESOURCE is missing.
            LoadError: anything else, with what libbpf said.
        """
        self.check()
        self.has_kernel_btf = False
        # One log serves all programs: they are loaded in turn, and the first
        # refusal ends the load.
        with _Log(_LOG_ROOM) as log, self.library.messages.listen() as lines:
            for program in self._each("program"):
                self.library.c.bpf_program__set_log_buf(program, log.address, log.size)
            code = self.library.c.bpf_object__load(self._pointer)
            text = log.text() if code < 0 else ""
        if code < 0:
            raise refusal.of_load(self.name, -code, lines, text)
        self.loaded = True
        self._data = b""

    def close(self) -> None:
        """
        Release programs and maps, once; what is attached stays attached.
        """
        with self._lock:
            pointer, self._pointer = self._pointer, 0
        if pointer:
            with self.library.messages.listen():
                if self.has_kernel_btf:
                    self._load_nothing(pointer)
                self.library.c.bpf_object__close(pointer)
        self._data = b""

    def _load_nothing(self, pointer: int) -> None:
        """
        Let libbpf free the kernel's BTF, 6 MB: 1.1 does so in a load only, 1.6 also without.
        """
        c = self.library.c
        for program in self._each("program", pointer):
            c.bpf_program__set_autoload(program, False)  # noqa: FBT003 - the C name's meaning
        for each in self._each("map", pointer):
            c.bpf_map__set_autocreate(each, False)  # noqa: FBT003
        c.bpf_object__load(pointer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "loaded" if self.loaded else "open"
        return f"<BpfObject {self.name} {state}>"


class _Log:
    """
    Memory that the kernel writes a log into, untouched until it does.
    """

    def __init__(self, size: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        self.size = size
        self._memory = mmap.mmap(-1, size, flags=flags)
        view = ctypes.c_char.from_buffer(self._memory)
        self.address = ctypes.addressof(view)
        del view  # an exported buffer would keep the memory from being closed

    def text(self) -> str:
        """
        Return what was written.
        """
        end = self._memory.find(b"\0")
        return self._memory[: max(end, 0)].decode("utf-8", "replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._memory.close()
