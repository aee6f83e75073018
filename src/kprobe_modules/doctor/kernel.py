# SPDX-License-Identifier: Apache-2.0
"""
Checks of the kernel, its settings, and this process's rights.
"""

from __future__ import annotations

import os
import platform
import struct
from typing import TYPE_CHECKING, Final

from kprobe_modules.doctor.findings import fail, ok, skip, warn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kprobe_modules.doctor.findings import Finding
    from kprobe_modules.doctor.host import Host

__all__ = ["check_kernel", "check_rights", "check_rings"]

OLDEST: Final = (5, 10)
#: Since v5.11 BPF memory is charged to the cgroup and not to RLIMIT_MEMLOCK.
NO_MEMLOCK: Final = (5, 11)
MACHINES: Final = ("x86_64", "amd64", "aarch64", "arm64")
#: Above this perf_event_open asks for CAP_SYS_ADMIN where CAP_PERFMON is documented;
#: distributions ship 3 (Debian) and 4 (Ubuntu).
PARANOID_LIMIT: Final = 2
#: Enough for the maps and rings of all modules on a kernel that charges memlock.
MEMLOCK_ENOUGH: Final = 256 << 20

_BTF_HEADER = struct.Struct("<HBBIIIII")
_BTF_MAGIC: Final = 0xEB9F

_REBUILD = "boot a kernel built with CONFIG_{}=y"
#: Option, whether it is needed, and what is lost without it.
_OPTIONS = (
    ("BPF_SYSCALL", True, "BPF programs cannot be loaded"),
    ("DEBUG_INFO_BTF", True, "programs cannot adapt to this kernel"),
    ("BPF_EVENTS", False, "kprobes and tracepoints cannot run BPF programs"),
    ("BPF_JIT", False, "programs are interpreted, several times slower"),
    ("KPROBES", False, "hooks by kprobe are not available, others take their place"),
    ("KPROBE_EVENTS", False, "hooks by kprobe are not available, others take their place"),
    ("CGROUPS", False, "cgroup ids are not available"),
)


def check_kernel(host: Host) -> Iterator[Finding]:
    """
    Release, architecture, lockdown, configuration, BTF, JIT, kprobes, tracefs, cgroups.
    """
    release = f"{host.release} {platform.machine()}"
    if platform.machine() not in MACHINES:
        yield fail("kernel.release", release, "use an x86-64 or arm64 machine")
    elif host.version < OLDEST:
        yield fail("kernel.release", release, "boot a kernel of 5.10 or later")
    else:
        yield ok("kernel.release", release)
    yield _lockdown(host)
    yield from _config(host)
    yield _btf(host)
    yield from _bpf(host)
    yield _kprobes(host)
    yield _tracefs(host)
    yield _cgroups(host)
    yield _runtimes(host)


def _lockdown(host: Host) -> Finding:
    text = host.read(host.sys / "kernel/security/lockdown")
    if text is None:
        return skip("kernel.lockdown", "not shown (no securityfs, or no lockdown in this kernel)")
    mode = text.partition("[")[2].partition("]")[0] or text
    if mode == "confidentiality":
        return fail(
            "kernel.lockdown",
            "confidentiality: programs may not read kernel memory",
            "boot with lockdown=integrity or lockdown=none",
        )
    return ok("kernel.lockdown", mode)


def _config(host: Host) -> Iterator[Finding]:
    config = host.config
    if config is None:
        yield skip("config", f"neither /proc/config.gz nor /boot/config-{host.release} is readable")
        return
    for option, needed, lost in _OPTIONS:
        value = config.get(option)
        if value in ("y", "m"):
            yield ok(f"config.{option}", value)
        elif needed:
            yield fail(f"config.{option}", f"not set: {lost}", _REBUILD.format(option))
        else:
            yield warn(f"config.{option}", f"not set: {lost}", _REBUILD.format(option))


def _btf(host: Host) -> Finding:
    path = host.sys / "kernel/btf/vmlinux"
    remedy = _REBUILD.format("DEBUG_INFO_BTF")
    try:
        with path.open("rb") as stream:
            header = stream.read(_BTF_HEADER.size)
            # A read past the end tells the size, also where sysfs does not.
            size = stream.seek(0, os.SEEK_END)
    except FileNotFoundError:
        return fail("btf.kernel", f"{path} does not exist", remedy)
    except OSError as error:
        return fail("btf.kernel", f"{path} cannot be read: {error.strerror}", f"chmod a+r {path}")
    if len(header) < _BTF_HEADER.size:
        return fail("btf.kernel", f"{path} is {len(header)} bytes long, no BTF", remedy)
    magic, version, _flags, length, _, types, strings_at, strings = _BTF_HEADER.unpack(header)
    if magic != _BTF_MAGIC or version != 1:
        return fail("btf.kernel", f"{path}: magic {magic:#x} version {version}, no BTF", remedy)
    if max(types, length + strings_at + strings) > size > 0:
        return fail("btf.kernel", f"{path} is cut off at {size} bytes", remedy)
    return ok("btf.kernel", f"{path}, {types >> 10} KiB of types")


def _bpf(host: Host) -> Iterator[Finding]:
    jit = host.sysctl("net.core.bpf_jit_enable")
    if jit is None:
        yield skip("bpf.jit", "net.core.bpf_jit_enable is not readable")
    elif jit == 0:
        yield warn(
            "bpf.jit",
            "off: programs are interpreted, several times slower",
            "sysctl net.core.bpf_jit_enable=1",
        )
    else:
        yield ok("bpf.jit", "on")
    unprivileged = host.sysctl("kernel.unprivileged_bpf_disabled")
    if unprivileged is None:
        yield skip("bpf.unprivileged", "kernel.unprivileged_bpf_disabled is not readable")
    elif unprivileged == 0:
        yield warn(
            "bpf.unprivileged",
            "kernel.unprivileged_bpf_disabled=0: any user may load programs",
            "sysctl kernel.unprivileged_bpf_disabled=2",
        )
    else:
        yield ok("bpf.unprivileged", f"kernel.unprivileged_bpf_disabled={unprivileged}")


def _kprobes(host: Host) -> Finding:
    # Loading a kprobe program succeeds on kernels without kprobes: only the
    # attach path, this PMU, tells.
    path = host.sys / "bus/event_source/devices/kprobe/type"
    if host.read(path) is not None:
        return ok("kprobe.attach", "the kprobe PMU is there")
    return warn(
        "kprobe.attach",
        "no kprobe PMU: hooks by kprobe are not available, others take their place",
        _REBUILD.format("KPROBE_EVENTS"),
    )


def _tracefs(host: Host) -> Finding:
    for folder in ("kernel/tracing", "kernel/debug/tracing"):
        events = host.sys / folder / "events"
        try:
            if any(events.iterdir()):
                return ok("tracefs", str(events.parent))
        except PermissionError:
            return warn(
                "tracefs",
                f"{events.parent} is not readable: hooks by tracepoint cannot be looked up",
                "run as root, or grant CAP_DAC_READ_SEARCH",
            )
        except OSError:
            continue
    return warn(
        "tracefs",
        "not mounted: hooks by tracepoint are not available, others take their place",
        "mount -t tracefs tracefs /sys/kernel/tracing",
    )


def _cgroups(host: Host) -> Finding:
    folder = host.sys / "fs/cgroup"
    if (folder / "cgroup.controllers").exists():
        return ok("cgroup", f"v2 at {folder}")
    if (folder / "unified/cgroup.controllers").exists():
        return ok("cgroup", f"hybrid, v2 at {folder / 'unified'}")
    try:
        hierarchies = sorted(item.name for item in folder.iterdir() if item.is_dir())
    except OSError:
        hierarchies = []
    if hierarchies:
        return ok("cgroup", f"v1 at {folder}: {', '.join(hierarchies)}")
    return warn("cgroup", f"nothing mounted at {folder}", f"mount -t cgroup2 none {folder}")


def _runtimes(host: Host) -> Finding:
    sockets = [
        "run/docker.sock",
        "run/containerd/containerd.sock",
        "run/crio/crio.sock",
        "run/podman/podman.sock",
    ]
    token = "var/run/secrets/kubernetes.io/serviceaccount/token"  # noqa: S105 - a path
    there = [host.root / name for name in (*sockets, token) if _exists(host.root / name)]
    refused = [str(path) for path in there if not os.access(path, os.R_OK)]
    if refused:
        return warn(
            "runtime", f"not readable: {', '.join(refused)}", "run as root or join the file's group"
        )
    if not there:
        return skip("runtime", "no socket or credentials of a container runtime or orchestrator")
    return ok("runtime", ", ".join(map(str, there)))


def _exists(path: os.PathLike[str]) -> bool:
    try:
        os.stat(path)  # noqa: PTH116 - Path.exists raises on folders we may not enter
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def check_rights(host: Host, kinds: Sequence[str]) -> Iterator[Finding]:
    """
    Check what this process may do.

    Args:
        host: where to look.
        kinds: the kinds of program that the chosen hooks attach.
    """
    lacking = host.lacking("CAP_BPF", "CAP_PERFMON")
    if lacking:
        yield fail(
            "capability.load",
            f"{' and '.join(lacking)} not effective: programs cannot be loaded",
            "run as root, or grant CAP_BPF and CAP_PERFMON",
        )
    else:
        yield ok("capability.load", "CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN")
    yield _paranoid(host, kinds)
    if "tracepoint" in kinds and not host.has("CAP_DAC_READ_SEARCH") and os.geteuid() != 0:
        yield warn(
            "capability.tracepoint",
            "CAP_DAC_READ_SEARCH not effective: tracepoints cannot be looked up in tracefs",
            "grant CAP_DAC_READ_SEARCH",
        )
    if host.has("CAP_SYS_PTRACE"):
        yield ok("capability.inspect", "CAP_SYS_PTRACE")
    else:
        yield warn(
            "capability.inspect",
            "CAP_SYS_PTRACE not effective: other users' /proc/PID/exe cannot be read",
            "grant CAP_SYS_PTRACE",
        )


def _paranoid(host: Host, kinds: Sequence[str]) -> Finding:
    level = host.sysctl("kernel.perf_event_paranoid")
    if level is None:
        return skip("perf.paranoid", "kernel.perf_event_paranoid is not readable")
    found = f"kernel.perf_event_paranoid={level}"
    if level <= PARANOID_LIMIT or host.has("CAP_SYS_ADMIN"):
        return ok("perf.paranoid", found)
    remedy = f"sysctl kernel.perf_event_paranoid={PARANOID_LIMIT}, or grant CAP_SYS_ADMIN"
    if {"kprobe", "kretprobe", "tracepoint"} & set(kinds):
        return fail("perf.paranoid", f"{found}: kprobes cannot be attached", remedy)
    return warn("perf.paranoid", f"{found}: kprobes could not be attached", remedy)


def check_rings(host: Host, pages: int) -> Iterator[Finding]:
    """
    Whether rings of that many pages per CPU may be mapped, and maps created.
    """
    limit = host.locked_bytes_allowed()
    yield _ring_memory(host, pages, limit)
    if host.version < NO_MEMLOCK:
        if host.has("CAP_SYS_RESOURCE") or limit is None or limit >= MEMLOCK_ENOUGH:
            yield ok("memlock", "unlimited, or may be raised")
        else:
            yield fail(
                "memlock",
                f"limited to {limit >> 10} KiB, and this kernel charges maps to it",
                "ulimit -l unlimited (LimitMEMLOCK=infinity), or grant CAP_SYS_RESOURCE",
            )


def _ring_memory(host: Host, pages: int, limit: int | None) -> Finding:
    # kernel/events/core.c, perf_mmap(): a user may lock perf_event_mlock_kb for each
    # online CPU, and each process RLIMIT_MEMLOCK on top of that.
    ring = (pages + 1) * os.sysconf("SC_PAGE_SIZE")
    free = host.sysctl("kernel.perf_event_mlock_kb")
    cpus = os.cpu_count() or 1
    found = f"{ring >> 10} KiB for each of {cpus} CPUs"
    if host.has("CAP_IPC_LOCK") or limit is None:
        return ok("perf.memory", found)
    if free is None:
        return skip("perf.memory", "kernel.perf_event_mlock_kb is not readable")
    limits = f"kernel.perf_event_mlock_kb={free}, ulimit -l {limit >> 10}"
    if ring * cpus <= (free << 10) * cpus + limit:
        return ok("perf.memory", f"{found}, {limits}")
    return fail(
        "perf.memory",
        f"{found}, {limits} and CAP_IPC_LOCK not effective",
        f"sysctl kernel.perf_event_mlock_kb={ring >> 10}, grant CAP_IPC_LOCK, or fewer --pages",
    )
