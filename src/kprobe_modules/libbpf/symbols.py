# SPDX-License-Identifier: Apache-2.0
"""
The prototypes of the libbpf functions that this package calls.

REQUIRED is what a libbpf must export to be accepted; OPTIONAL is used where
present.  All required names exist in every libbpf from 1.0 and in the copy
inside pylibbpf, which lacks ``ring_buffer__*``, ``btf_dump__*`` and
``libbpf_strerror``: nothing here may depend on those.
"""

from __future__ import annotations

from ctypes import POINTER, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p

from kprobe_modules.libbpf import structs

__all__ = ["OPTIONAL", "REQUIRED", "Prototype"]

#: (result, arguments); pointers to libbpf's own structs are ``void *``.
Prototype = tuple[object, tuple[object, ...]]

_u32p = POINTER(c_uint32)

_OBJECTS: dict[str, Prototype] = {
    "bpf_object__open_mem": (
        c_void_p,
        (c_char_p, c_size_t, POINTER(structs.ObjectOpenOptions)),
    ),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__next_map": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__next_program": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__btf_fd": (c_int, (c_void_p,)),
}

_MAPS: dict[str, Prototype] = {
    "bpf_map__name": (c_char_p, (c_void_p,)),
    "bpf_map__fd": (c_int, (c_void_p,)),
    "bpf_map__type": (c_uint32, (c_void_p,)),
    "bpf_map__set_type": (c_int, (c_void_p, c_uint32)),
    "bpf_map__key_size": (c_uint32, (c_void_p,)),
    "bpf_map__set_key_size": (c_int, (c_void_p, c_uint32)),
    "bpf_map__value_size": (c_uint32, (c_void_p,)),
    "bpf_map__set_value_size": (c_int, (c_void_p, c_uint32)),
    "bpf_map__max_entries": (c_uint32, (c_void_p,)),
    "bpf_map__set_max_entries": (c_int, (c_void_p, c_uint32)),
    "bpf_map__map_flags": (c_uint32, (c_void_p,)),
    "bpf_map__set_map_flags": (c_int, (c_void_p, c_uint32)),
    "bpf_map__is_internal": (c_bool, (c_void_p,)),
    "bpf_map__initial_value": (c_void_p, (c_void_p, POINTER(c_size_t))),
    "bpf_map__set_initial_value": (c_int, (c_void_p, c_char_p, c_size_t)),
    "bpf_map__reuse_fd": (c_int, (c_void_p, c_int)),
    "bpf_map__autocreate": (c_bool, (c_void_p,)),
    "bpf_map__set_autocreate": (c_int, (c_void_p, c_bool)),
    "bpf_map__btf_key_type_id": (c_uint32, (c_void_p,)),
    "bpf_map__btf_value_type_id": (c_uint32, (c_void_p,)),
}

_PROGRAMS: dict[str, Prototype] = {
    "bpf_program__name": (c_char_p, (c_void_p,)),
    "bpf_program__section_name": (c_char_p, (c_void_p,)),
    "bpf_program__type": (c_uint32, (c_void_p,)),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_program__autoload": (c_bool, (c_void_p,)),
    "bpf_program__set_autoload": (c_int, (c_void_p, c_bool)),
    "bpf_program__set_attach_target": (c_int, (c_void_p, c_int, c_char_p)),
    "bpf_program__set_log_buf": (c_int, (c_void_p, c_void_p, c_size_t)),
    "bpf_program__attach_kprobe": (c_void_p, (c_void_p, c_bool, c_char_p)),
    "bpf_program__attach_trace": (c_void_p, (c_void_p,)),
    "bpf_program__attach_raw_tracepoint": (c_void_p, (c_void_p, c_char_p)),
    "bpf_program__attach_tracepoint": (c_void_p, (c_void_p, c_char_p, c_char_p)),
    "bpf_program__attach_iter": (c_void_p, (c_void_p, c_void_p)),
}

_LINKS: dict[str, Prototype] = {
    "bpf_link__fd": (c_int, (c_void_p,)),
    "bpf_link__destroy": (c_int, (c_void_p,)),
    "bpf_iter_create": (c_int, (c_int,)),
}

_CALLS: dict[str, Prototype] = {
    "bpf_map_lookup_elem": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_map_update_elem": (c_int, (c_int, c_void_p, c_void_p, c_uint64)),
    "bpf_map_delete_elem": (c_int, (c_int, c_void_p)),
    "bpf_map_get_next_key": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_obj_get_info_by_fd": (c_int, (c_int, c_void_p, _u32p)),
    "bpf_prog_load": (
        c_int,
        (
            c_uint32,
            c_char_p,
            c_char_p,
            c_void_p,
            c_size_t,
            POINTER(structs.ProgramLoadOptions),
        ),
    ),
    "bpf_prog_test_run_opts": (c_int, (c_int, POINTER(structs.TestRunOptions))),
    "bpf_raw_tracepoint_open": (c_int, (c_char_p, c_int)),
    "bpf_enable_stats": (c_int, (c_uint32,)),
    "bpf_prog_get_next_id": (c_int, (c_uint32, _u32p)),
    "bpf_map_get_next_id": (c_int, (c_uint32, _u32p)),
    "bpf_link_get_next_id": (c_int, (c_uint32, _u32p)),
    "bpf_prog_get_fd_by_id": (c_int, (c_uint32,)),
    "bpf_map_get_fd_by_id": (c_int, (c_uint32,)),
    "bpf_link_get_fd_by_id": (c_int, (c_uint32,)),
    "bpf_prog_query": (c_int, (c_int, c_uint32, c_uint32, _u32p, _u32p, _u32p)),
}

_KERNEL: dict[str, Prototype] = {
    "libbpf_major_version": (c_uint32, ()),
    "libbpf_minor_version": (c_uint32, ()),
    "libbpf_version_string": (c_char_p, ()),
    "libbpf_set_print": (c_void_p, (c_void_p,)),
    "libbpf_num_possible_cpus": (c_int, ()),
    "libbpf_probe_bpf_map_type": (c_int, (c_uint32, c_void_p)),
    "libbpf_find_vmlinux_btf_id": (c_int, (c_char_p, c_uint32)),
}

REQUIRED: dict[str, Prototype] = {
    **_OBJECTS,
    **_MAPS,
    **_PROGRAMS,
    **_LINKS,
    **_CALLS,
    **_KERNEL,
}

OPTIONAL: dict[str, Prototype] = {
    "bpf_map_lookup_batch": (
        c_int,
        (c_int, c_void_p, c_void_p, c_void_p, c_void_p, _u32p, c_void_p),
    ),
    "bpf_map_freeze": (c_int, (c_int,)),
    "libbpf_set_memlock_rlim": (c_int, (c_size_t,)),
}
