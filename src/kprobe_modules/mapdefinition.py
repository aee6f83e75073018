# SPDX-License-Identifier: Apache-2.0
"""
Maps as an object declares them: BTF-defined, in section ``.maps``.

A declaration is a struct whose members are pointers: the number of
``__uint(max_entries, 64)`` is the length of an array pointed to, the type of
``__type(key, __u32)`` is what is pointed to (bpf_helpers.h of libbpf).
"""

from __future__ import annotations

from typing import Final

from kprobe_modules.btf import Btf, BtfType, Kind, Member
from kprobe_modules.errors import ObjectError
from kprobe_modules.shape import TypeShape, shape
from kprobe_modules.spec import MapSpec

__all__ = ["MAP_TYPES", "read_maps"]

#: BPF_MAP_TYPE_* of linux/bpf.h by number, up to Linux 6.9.
MAP_TYPES: Final = (
    "unspecified",
    "hash",
    "array",
    "prog_array",
    "perf_event_array",
    "percpu_hash",
    "percpu_array",
    "stack_trace",
    "cgroup_array",
    "lru_hash",
    "lru_percpu_hash",
    "lpm_trie",
    "array_of_maps",
    "hash_of_maps",
    "devmap",
    "sockmap",
    "cpumap",
    "xskmap",
    "sockhash",
    "cgroup_storage_deprecated",
    "reuseport_sockarray",
    "percpu_cgroup_storage",
    "queue",
    "stack",
    "sk_storage",
    "devmap_hash",
    "struct_ops",
    "ringbuf",
    "inode_storage",
    "task_storage",
    "bloom_filter",
    "user_ringbuf",
    "cgroup_storage",
    "arena",
)
_FD_SIZE: Final = 4


def read_maps(btf: Btf, *, has_legacy: bool = False) -> tuple[MapSpec, ...]:
    """
    Return the maps of ``.maps`` in order of declaration.

    *has_legacy* says that the object has a section ``maps``, which libbpf 1.0
    no longer reads.

    Raises:
        ObjectError: a declaration is not as described above.
    """
    if has_legacy:
        msg = f'{btf.origin}: section maps is of the old kind; declare maps in SEC(".maps")'
        raise ObjectError(msg)
    section = btf.find(Kind.DATASEC, ".maps")
    if section is None:
        return ()
    return tuple(_Definition(btf, btf.type(variable.ref)).read() for variable in section.variables)


class _Definition:
    """
    One variable of ``.maps``.
    """

    def __init__(self, btf: Btf, variable: BtfType) -> None:
        self.btf = btf
        self.name = variable.name
        declaration = btf.resolve(variable.ref)
        if variable.kind is not Kind.VAR or declaration.kind is not Kind.STRUCT:
            msg = f"{btf.origin}: map {variable.name} must be a struct, found {declaration}"
            raise ObjectError(msg)
        self.members = {member.name: member for member in declaration.members}

    def error(self, sentence: str) -> ObjectError:
        return ObjectError(f"{self.btf.origin}: map {self.name}: {sentence}")

    def read(self) -> MapSpec:
        type_ = self.number("type")
        if not type_:
            msg = "has no type; add __uint(type, BPF_MAP_TYPE_...)"
            raise self.error(msg)
        key, value = self.shape("key"), self.shape("value")
        return MapSpec(
            name=self.name,
            type=type_,
            type_name=MAP_TYPES[type_] if type_ < len(MAP_TYPES) else f"type {type_}",
            key_size=self.size("key", key),
            value_size=self.size("value", value),
            max_entries=self.number("max_entries"),
            flags=self.number("map_flags"),
            key=key,
            value=value,
        )

    def number(self, name: str) -> int:
        member = self.members.get(name)
        if member is None:
            return 0
        array = self.btf.resolve(self.pointed(member))
        if array.kind is not Kind.ARRAY:
            msg = f"{name} must be declared with __uint, found {array}"
            raise self.error(msg)
        return array.length

    def shape(self, name: str) -> TypeShape | None:
        member = self.members.get(name)
        return None if member is None else shape(self.btf, self.pointed(member))

    def size(self, name: str, found: TypeShape | None) -> int:
        declared = self.number(f"{name}_size")
        if found is None:
            # __array(values, ...) declares what the descriptors refer to.
            return declared or (_FD_SIZE if name == "value" and "values" in self.members else 0)
        if declared not in (0, found.size):
            msg = f"{name}_size is {declared}, but {found} has {found.size} bytes"
            raise self.error(msg)
        return found.size

    def pointed(self, member: Member) -> int:
        pointer = self.btf.resolve(member.ref)
        if pointer.kind is not Kind.PTR:
            msg = f"{member.name} must be declared with __uint or __type, found {pointer}"
            raise self.error(msg)
        return pointer.ref
