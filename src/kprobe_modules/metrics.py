# SPDX-License-Identifier: Apache-2.0
"""
What a module costs: runs and time of its programs, fill and memory of its maps.

Everything is asked of the kernel when it is wanted, and nothing is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from kprobe_modules.libbpf import KernelError, prog_info
from kprobe_modules.libbpf import map as bpf_map
from kprobe_modules.records import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kprobe_modules.libbpf import Library

__all__ = ["MapMetrics", "ProgramMetrics", "measure", "measure_maps", "measure_programs"]


@attrs.frozen
class ProgramMetrics:
    """
    One loaded program.
    """

    name: str
    run_count: int
    """Runs while statistics were enabled, by anybody, since it was loaded."""
    run_time: int
    """Nanoseconds of these runs, all CPUs together."""
    missed: int
    """
    Runs that the kernel left out, and with them what should have been told.

    Of a program that was running already on that CPU: from 5.12 on, ``raw_tp`` and ``tp_btf`` from
    6.1 on.  Of a kprobe's, from 6.7 on: where it was hit inside of another one,
    or a call of bpf(2) was busy with a map (dd8657894c11).
    """
    instructions: int
    """BPF instructions after the verifier has removed what is never reached."""
    memory: int
    """Bytes of bytecode and machine code."""


@attrs.frozen
class MapMetrics:
    """
    One map.
    """

    name: str
    entries: int | None
    """Entries in use; None where all of them always exist, or there are none to count."""
    max_entries: int
    memory: int
    """Bytes, as the kernel accounts for them."""


def measure(
    module: str,
    time: int,
    counts: Mapping[str, Any],
    programs: Iterable[ProgramMetrics],
    maps: Iterable[MapMetrics],
) -> Metrics:
    """
    Return the record that says all of it.

    Args:
        module: its name.
        time: nanoseconds since the epoch.
        counts: its totals, as in ``stats``.
        programs: the module's programs.
        maps: the module's own maps.
    """
    loaded, own = tuple(programs), tuple(maps)
    memory = sum(each.memory for each in loaded) + sum(each.memory for each in own)
    return Metrics(
        time,
        module,
        **{name: counts.get(name, 0) for name in _COUNTS},
        run_count=sum(each.run_count for each in loaded),
        run_time=sum(each.run_time for each in loaded),
        memory=memory,
        programs=loaded,
        maps=own,
    )


_COUNTS = (
    "emitted",
    "received",
    "lost",
    "missed",
    "suppressed",
    "late",
    "errors",
    "stalls",
    "handler_time",
)


def measure_programs(
    descriptors: Mapping[str, int], missed: Mapping[str, int], library: Library | None = None
) -> list[ProgramMetrics]:
    """
    Ask the kernel about programs, given by name and descriptor.

    Args:
        descriptors: of the programs.
        missed: runs that were left out, by name.
        library: the libbpf to ask with.
    """
    found = []
    for name, fd in descriptors.items():
        info = prog_info(fd, library=library)
        found.append(
            ProgramMetrics(
                name,
                info.run_cnt,
                info.run_time_ns,
                missed.get(name, 0),
                info.translated_size // 8,
                _accounted(fd) + info.jited_size,
            )
        )
    return found


def measure_maps(
    descriptors: Mapping[str, int], library: Library | None = None
) -> list[MapMetrics]:
    """
    Ask the kernel about maps, given by name and descriptor.
    """
    found = []
    for name, fd in descriptors.items():
        info = bpf_map.info(fd, library=library)
        try:
            entries = bpf_map.count(fd, library=library)
        except KernelError:
            # It is busier than we can count, or of a kind without entries.
            entries = None
        found.append(MapMetrics(name, entries, info.max_entries, _accounted(fd)))
    return found


def _accounted(fd: int) -> int:
    """
    Return the bytes that the kernel accounts to a descriptor of BPF; 0 without procfs.
    """
    try:
        text = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii")
    except OSError:
        return 0
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "memlock":
            return int(value)
    return 0
