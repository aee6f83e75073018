# SPDX-License-Identifier: Apache-2.0
"""
Maps, by descriptor: read, write, walk, and ask about.

Every function takes and returns bytes in the machine's own byte order, and is
safe to call from several threads.  An entry that does not exist is None or
False, never an exception.
"""

from __future__ import annotations

import ctypes
import errno
import sys
from typing import TYPE_CHECKING

import attrs

from kprobe_modules.libbpf import structs
from kprobe_modules.libbpf.descriptor import KernelError, expect
from kprobe_modules.libbpf.provider import in_use

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kprobe_modules.libbpf.provider import Library

__all__ = [
    "ANY",
    "EXISTS",
    "NEW",
    "MapInfo",
    "clear",
    "count",
    "delete",
    "info",
    "items",
    "keys",
    "lookup",
    "lookup_percpu",
    "possible_cpus",
    "update",
]

# Flags of update, as in linux/bpf.h.
ANY = 0
NEW = 1
EXISTS = 2

BATCH = 4096
"""Entries that are read at a time in bulk."""


@attrs.frozen(eq=False, repr=False)
class MapInfo:
    """
    What the kernel says of a map (``struct bpf_map_info``).

    ``name`` is cut to 15 characters by the kernel; sizes are in bytes; the
    type ids index the BTF object ``btf_id`` and are 0 without BTF.
    """

    id: int
    type: int
    name: str
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    btf_id: int
    btf_key_type_id: int
    btf_value_type_id: int

    @property
    def percpu(self) -> bool:
        """
        Whether each entry has one value per possible CPU.
        """
        return self.type in structs.PERCPU_MAP_TYPES


def info(fd: int, *, library: Library | None = None) -> MapInfo:
    """
    Ask the kernel about a map.

    Raises:
        KernelError: not a map (EINVAL), or not a descriptor (EBADF).
    """
    expect(fd, "bpf-map")
    # A fresh, zeroed struct each time: the kernel answers E2BIG to bytes that
    # it does not know and that are not zero.
    found = structs.MapInfo()
    size = ctypes.c_uint32(ctypes.sizeof(found))
    c = (library or in_use()).c
    code = c.bpf_obj_get_info_by_fd(fd, ctypes.byref(found), ctypes.byref(size))
    if code < 0:
        raise KernelError(-code, f"map descriptor {fd}: information")
    return MapInfo(
        id=found.id,
        type=found.type,
        name=found.name.decode("ascii", "replace"),
        key_size=found.key_size,
        value_size=found.value_size,
        max_entries=found.max_entries,
        flags=found.map_flags,
        btf_id=found.btf_id,
        btf_key_type_id=found.btf_key_type_id,
        btf_value_type_id=found.btf_value_type_id,
    )


def possible_cpus(*, library: Library | None = None) -> int:
    """
    Return how many CPUs the kernel has room for, online or not.

    A per-CPU entry has that many values.
    """
    count: int = (library or in_use()).c.libbpf_num_possible_cpus()
    if count < 0:
        raise KernelError(-count, "number of possible CPUs")
    return count


def lookup(
    fd: int, key: bytes, size: int | None = None, *, library: Library | None = None
) -> bytes | None:
    """
    Read one entry of a map that is not per-CPU.

    Args:
        fd: the map.
        key: its key, exactly as long as the map's keys.
        size: size of the map's values in bytes.  The kernel writes as much as
            the map says, so a wrong one corrupts memory: without it the kernel
            is asked first.
        library: any libbpf; this process's own by default.

    Returns:
        the value, or None if there is no such key.
    """
    if size is None:
        size = info(fd, library=library).value_size
    value = ctypes.create_string_buffer(size)
    code = (library or in_use()).c.bpf_map_lookup_elem(fd, key, value)
    if code == -errno.ENOENT:
        return None
    if code < 0:
        raise KernelError(-code, f"map descriptor {fd}: lookup")
    return value.raw


def lookup_percpu(
    fd: int, key: bytes, size: int | None = None, *, library: Library | None = None
) -> list[bytes] | None:
    """
    Read one entry of a per-CPU map.

    Args:
        fd: the map.
        key: its key.
        size: size of one CPU's value in bytes, as for :func:`lookup`.
        library: as for :func:`lookup`.

    Returns:
        one value per *possible* CPU, in their order; None if no such key.
    """
    if size is None:
        size = info(fd, library=library).value_size
    stride = (size + 7) & ~7  # the kernel rounds each CPU's value up
    cpus = possible_cpus(library=library)
    whole = lookup(fd, key, stride * cpus, library=library)
    if whole is None:
        return None
    return [whole[start : start + size] for start in range(0, stride * cpus, stride)]


def update(
    fd: int, key: bytes, value: bytes, flags: int = ANY, *, library: Library | None = None
) -> bool:
    """
    Write one entry.

    For a per-CPU map *value* is every possible CPU's, each rounded up to eight
    bytes.

    Args:
        fd: the map.
        key: its key.
        value: its value.
        flags: ANY, NEW (only insert) or EXISTS (only replace).
        library: as for :func:`lookup`.

    Returns:
        False if NEW found the key there, or EXISTS did not.

    Raises:
        KernelError: e.g. the map is full (E2BIG).
    """
    code = (library or in_use()).c.bpf_map_update_elem(fd, key, value, flags)
    if (flags == NEW and code == -errno.EEXIST) or (flags == EXISTS and code == -errno.ENOENT):
        return False
    if code < 0:
        raise KernelError(-code, f"map descriptor {fd}: update")
    return True


def delete(fd: int, key: bytes, *, library: Library | None = None) -> bool:
    """
    Delete one entry; return whether it was there.
    """
    code = (library or in_use()).c.bpf_map_delete_elem(fd, key)
    if code == -errno.ENOENT:
        return False
    if code < 0:
        raise KernelError(-code, f"map descriptor {fd}: delete")
    return True


def keys(fd: int, *, library: Library | None = None) -> Iterator[bytes]:
    """
    Walk a map's keys.

    The map may change meanwhile: if the key reached is deleted, the kernel
    starts again from the first, so a key may come twice and a busy map is
    walked for as many steps as it has room for, no more.
    """
    about = info(fd, library=library)
    c = (library or in_use()).c
    before: ctypes.Array[ctypes.c_char] | None = None
    for _ in range(max(about.max_entries, 1)):
        key = ctypes.create_string_buffer(about.key_size)
        code = c.bpf_map_get_next_key(fd, before, key)
        if code == -errno.ENOENT:
            return
        if code < 0:
            raise KernelError(-code, f"map descriptor {fd}: next key")
        yield key.raw
        before = key


def count(fd: int, *, library: Library | None = None) -> int | None:
    """
    Count the entries of a hash map, whichever of the four kinds.

    They are read in bulk where libbpf can (the kernel keeps no count that it
    tells): some milliseconds for ten thousand.  What comes and goes meanwhile may be
    counted or not.

    Returns:
        None for a map of any other kind.

    Raises:
        KernelError: e.g. a bucket holds more entries than fit (ENOSPC).
    """
    about = info(fd, library=library)
    if about.type not in structs.HASH_MAP_TYPES:
        return None
    if not hasattr((library or in_use()).c, "bpf_map_lookup_batch"):
        return sum(1 for _ in keys(fd, library=library))
    return sum(taken for taken, _ in _bulk(fd, about, library))


def values(fd: int, size: int | None = None, *, library: Library | None = None) -> Iterator[bytes]:
    """
    Walk the values of a map, those of a hash in bulk where libbpf can.

    That takes a tenth of what :func:`items` does, and does not begin again where a
    key is deleted.  What comes and goes meanwhile may be missed.  Not for per-CPU maps.

    Args:
        fd: the map.
        size: how many bytes of each are wanted; default, all.
        library: as for :func:`lookup`.

    Raises:
        KernelError: as for :func:`count`.
    """
    about = info(fd, library=library)
    bulk = hasattr((library or in_use()).c, "bpf_map_lookup_batch")
    if not bulk or about.type not in structs.HASH_MAP_TYPES:
        for _, value in items(fd, library=library):
            yield value[:size]
        return
    stride = about.value_size
    wanted = stride if size is None else min(size, stride)
    for taken, room in _bulk(fd, about, library):
        raw = memoryview(room)
        for start in range(0, taken * stride, stride):
            yield bytes(raw[start : start + wanted])


def _bulk(
    fd: int, about: MapInfo, library: Library | None
) -> Iterator[tuple[int, ctypes.Array[ctypes.c_char]]]:
    """
    Read a hash map in bulk; yield how many entries were read at a time, and their values.
    """
    c = (library or in_use()).c
    room = min(about.max_entries, BATCH)
    size = about.value_size
    if about.percpu:
        size = ((size + 7) & ~7) * possible_cpus(library=library)
    key_room = ctypes.create_string_buffer(about.key_size * room)
    value_room = ctypes.create_string_buffer(size * room)
    # Where the walk stands: the kernel's token is a bucket's number, of 32 bits.
    token, following = ctypes.c_uint64(0), ctypes.c_uint64(0)
    before = None
    while True:
        taken = ctypes.c_uint32(room)
        code = c.bpf_map_lookup_batch(
            fd, before, ctypes.byref(following), key_room, value_room, ctypes.byref(taken), None
        )
        if code < 0 and code != -errno.ENOENT:
            raise KernelError(-code, f"map descriptor {fd}: lookup in bulk")
        yield taken.value, value_room
        if code or not taken.value:
            return
        token.value = following.value
        before = ctypes.byref(token)


def clear(fd: int, *, library: Library | None = None) -> None:
    """
    Delete all entries of a map; those of an array become zero.
    """
    about = info(fd, library=library)
    if about.type not in structs.ARRAY_MAP_TYPES:
        # All at first: a walk begins again where the key it stands on is deleted.
        for key in list(keys(fd, library=library)):
            delete(fd, key, library=library)
        return
    size = about.value_size
    if about.percpu:
        size = ((size + 7) & ~7) * possible_cpus(library=library)
    for index in range(about.max_entries):
        update(fd, index.to_bytes(4, sys.byteorder), bytes(size), library=library)


def items(fd: int, *, library: Library | None = None) -> Iterator[tuple[bytes, bytes]]:
    """
    Walk a map's entries, skipping those deleted meanwhile.

    Not for per-CPU maps.
    """
    size = info(fd, library=library).value_size
    for key in keys(fd, library=library):
        value = lookup(fd, key, size, library=library)
        if value is not None:
            yield key, value
