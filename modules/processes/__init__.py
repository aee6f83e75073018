# SPDX-License-Identifier: Apache-2.0
"""
Processes: start, program execution, rename, move between cgroups, exit.

Reports every process that is alive when the module is attached or starts later,
exactly once each, and how it ended.  It cannot see processes that ended before,
zombies included, nor what a process calls itself in its argument memory after it
was executed.
"""

from __future__ import annotations

from kprobe_modules.modules.processes.records import (
    ProcessExecuted,
    ProcessExited,
    ProcessMoved,
    ProcessRenamed,
    ProcessStarted,
    ThreadExited,
)

from kprobe_modules.api import Alternative, Hook, Manifest

__all__ = ["MODULE"]

_BEFORE_FILES = "the end is reported before files and sockets are closed"
_SIBLINGS = "files_closed is false if other threads of the process were still exiting"

MODULE = Manifest(
    name="processes",
    package="kprobe_modules.modules.processes",
    handler="kprobe_modules.modules.processes.handler:ProcessesHandler",
    summary="processes: start, exec, rename, cgroup moves, exit",
    version="1",
    common_maps=("events", "tgid_info_table"),
    fills=("tgid_info_table",),
    records=(
        ProcessStarted,
        ProcessExecuted,
        ProcessRenamed,
        ProcessMoved,
        ProcessExited,
        ThreadExited,
    ),
    hooks=(
        Hook(
            "end",
            "END",
            (
                "end_notify_f",
                "end_notify_k",
                Alternative("end_cgroup_f", note=_SIBLINGS),
                Alternative("end_cgroup_k", note=_SIBLINGS),
                Alternative("end_cgtask_f", note=_SIBLINGS),
                Alternative("end_cgtask_k", note=_SIBLINGS),
                Alternative(
                    "end_exit_btf",
                    fields_missing=("process_exited.files_closed",),
                    note=_BEFORE_FILES,
                ),
                Alternative(
                    "end_stats_f",
                    fields_missing=("process_exited.files_closed",),
                    note=_BEFORE_FILES,
                ),
                Alternative(
                    "end_stats_k",
                    fields_missing=("process_exited.files_closed",),
                    note=_BEFORE_FILES,
                ),
            ),
            notices="the last thread of a process is gone",
        ),
        Hook(
            "start",
            "START",
            ("start_btf", "start_fentry", "start_kprobe"),
            notices="a process is forked",
        ),
        Hook(
            "exec",
            "TELEMETRY",
            ("exec_btf", "exec_fentry", "exec_kprobe"),
            notices="a process executes a program",
        ),
        Hook(
            "rename",
            "TELEMETRY",
            ("rename_btf", "rename_fentry", "rename_kprobe"),
            required=False,
            notices="a process gets another command name",
        ),
        Hook(
            "move",
            "TELEMETRY",
            (
                "move_btf",
                "move_fexit",
                Alternative("move_kprobe", note="also reports a move that the kernel refuses"),
            ),
            required=False,
            notices="a process is moved to another cgroup",
        ),
        Hook(
            "thread_exit",
            "TELEMETRY",
            ("thread_btf", "thread_fentry", "thread_kprobe"),
            required=False,
            notices="a thread exits (if thread_exits is 1)",
        ),
        Hook(
            "existing",
            "EXISTING",
            ("existing_iter", "existing_fexit", "existing_kret"),
            notices="processes that were there before",
        ),
    ),
)
