# SPDX-License-Identifier: Apache-2.0
"""
The C structs and constants that libbpf and the kernel take.

Sources: linux/bpf.h, linux/perf_event.h, and libbpf's bpf.h and libbpf.h at
1.0, the oldest that is accepted.  Option structs begin with their own size, so
that a newer libbpf knows what an older caller filled in, and an older one
accepts what it does not know as long as it is zero.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p

__all__ = [
    "IterAttachOptions",
    "LinkInfo",
    "MapInfo",
    "ObjectOpenOptions",
    "PerfEventAttributes",
    "ProgramInfo",
    "ProgramLoadOptions",
    "TestRunOptions",
]

# enum bpf_map_type
MAP_TYPE_HASH = 1
MAP_TYPE_ARRAY = 2
MAP_TYPE_PERCPU_HASH = 5
MAP_TYPE_PERCPU_ARRAY = 6
MAP_TYPE_LRU_PERCPU_HASH = 10
MAP_TYPE_PERCPU_CGROUP_STORAGE = 21
MAP_TYPE_RINGBUF = 27
MAP_TYPE_LRU_HASH = 9
HASH_MAP_TYPES = frozenset(
    {MAP_TYPE_HASH, MAP_TYPE_PERCPU_HASH, MAP_TYPE_LRU_HASH, MAP_TYPE_LRU_PERCPU_HASH}
)
ARRAY_MAP_TYPES = frozenset({MAP_TYPE_ARRAY, MAP_TYPE_PERCPU_ARRAY})
PERCPU_MAP_TYPES = frozenset(
    {
        MAP_TYPE_PERCPU_HASH,
        MAP_TYPE_PERCPU_ARRAY,
        MAP_TYPE_LRU_PERCPU_HASH,
        MAP_TYPE_PERCPU_CGROUP_STORAGE,
    }
)

# enum bpf_prog_type
PROG_TYPE_SOCKET_FILTER = 1
PROG_TYPE_RAW_TRACEPOINT = 17
PROG_TYPE_TRACING = 26

# enum bpf_attach_type
TRACE_RAW_TP = 23
TRACE_FENTRY = 24
TRACE_FEXIT = 25

# enum bpf_stats_type
STATS_RUN_TIME = 0

# BPF_PROG_TEST_RUN flags
TEST_RUN_ON_CPU = 1


class ObjectOpenOptions(ctypes.Structure):
    """
    ``struct bpf_object_open_opts``.
    """

    _fields_ = (
        ("sz", c_size_t),
        ("object_name", c_char_p),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", c_char_p),
        ("_removed", c_uint32),
        ("kconfig", c_char_p),
        ("btf_custom_path", c_char_p),
        ("kernel_log_buf", c_void_p),
        ("kernel_log_size", c_size_t),
        ("kernel_log_level", c_uint32),
    )


class ProgramLoadOptions(ctypes.Structure):
    """
    ``struct bpf_prog_load_opts``.
    """

    _fields_ = (
        ("sz", c_size_t),
        ("attempts", c_int),
        ("expected_attach_type", c_uint32),
        ("prog_btf_fd", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_ifindex", c_uint32),
        ("kern_version", c_uint32),
        ("attach_btf_id", c_uint32),
        ("attach_prog_fd", c_uint32),
        ("attach_btf_obj_fd", c_uint32),
        ("fd_array", c_void_p),
        ("func_info", c_void_p),
        ("func_info_cnt", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("line_info", c_void_p),
        ("line_info_cnt", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("log_level", c_uint32),
        ("log_size", c_uint32),
        ("log_buf", c_void_p),
    )


class IterAttachOptions(ctypes.Structure):
    """
    ``struct bpf_iter_attach_opts``.
    """

    _fields_ = (
        ("sz", c_size_t),
        ("link_info", c_void_p),
        ("link_info_len", c_uint32),
    )


class TestRunOptions(ctypes.Structure):
    """
    ``struct bpf_test_run_opts``.
    """

    __test__ = False  # not a test case, whatever its name suggests to pytest

    _fields_ = (
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


class KprobeLinkInfo(ctypes.Structure):
    """
    ``struct bpf_link_info`` of a kprobe's link; what an older kernel does not know stays zero.
    """

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("_pad", c_uint32),
        ("perf_type", c_uint32),
        ("_perf_pad", c_uint32),
        ("func_name", c_uint64),
        ("name_len", c_uint32),
        ("offset", c_uint32),
        ("addr", c_uint64),
        ("missed", c_uint64),
        ("cookie", c_uint64),
    )


class ProgramInfo(ctypes.Structure):
    """
    ``struct bpf_prog_info``; what an older kernel does not know stays zero.
    """

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", c_char * 16),
        ("ifindex", c_uint32),
        ("gpl_compatible", c_uint32),
        ("netns_dev", c_uint64),
        ("netns_ino", c_uint64),
        ("nr_jited_ksyms", c_uint32),
        ("nr_jited_func_lens", c_uint32),
        ("jited_ksyms", c_uint64),
        ("jited_func_lens", c_uint64),
        ("btf_id", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("func_info", c_uint64),
        ("nr_func_info", c_uint32),
        ("nr_line_info", c_uint32),
        ("line_info", c_uint64),
        ("jited_line_info", c_uint64),
        ("nr_jited_line_info", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("jited_line_info_rec_size", c_uint32),
        ("nr_prog_tags", c_uint32),
        ("prog_tags", c_uint64),
        ("run_time_ns", c_uint64),
        ("run_cnt", c_uint64),
        ("recursion_misses", c_uint64),
        ("verified_insns", c_uint32),
        ("attach_btf_obj_id", c_uint32),
        ("attach_btf_id", c_uint32),
        ("_pad", c_uint32),
    )


class MapInfo(ctypes.Structure):
    """
    ``struct bpf_map_info``.
    """

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", c_char * 16),
        ("ifindex", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("netns_dev", c_uint64),
        ("netns_ino", c_uint64),
        ("btf_id", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("_pad", c_uint32),
        ("map_extra", c_uint64),
    )


class LinkInfo(ctypes.Structure):
    """
    The common part of ``struct bpf_link_info``, with room for the rest.
    """

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("_by_type", c_uint32 * 13),
    )


# struct perf_event_attr and its constants
PERF_TYPE_SOFTWARE = 1
PERF_COUNT_SW_BPF_OUTPUT = 10
PERF_SAMPLE_RAW = 1 << 10
PERF_ATTR_WATERMARK = 1 << 14
PERF_FLAG_FD_CLOEXEC = 8
PERF_IOC_ENABLE = 0x2400


class PerfEventAttributes(ctypes.Structure):
    """
    ``struct perf_event_attr`` up to PERF_ATTR_SIZE_VER5 (112 bytes).
    """

    _fields_ = (
        ("type", c_uint32),
        ("size", c_uint32),
        ("config", c_uint64),
        ("sample_period", c_uint64),
        ("sample_type", c_uint64),
        ("read_format", c_uint64),
        ("flags", c_uint64),
        ("wakeup_watermark", c_uint32),
        ("bp_type", c_uint32),
        ("config1", c_uint64),
        ("config2", c_uint64),
        ("branch_sample_type", c_uint64),
        ("sample_regs_user", c_uint64),
        ("sample_stack_user", c_uint32),
        ("clockid", ctypes.c_int32),
        ("sample_regs_intr", c_uint64),
        ("aux_watermark", c_uint32),
        ("sample_max_stack", ctypes.c_uint16),
        ("_reserved", ctypes.c_uint16),
    )
