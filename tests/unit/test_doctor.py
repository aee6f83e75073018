# SPDX-License-Identifier: Apache-2.0
"""
The doctor, on hosts made of files and on this one.
"""

from __future__ import annotations

import gzip
import os
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kprobe_modules.doctor import kernel
from kprobe_modules.doctor.host import Host

if TYPE_CHECKING:
    from pathlib import Path

    from kprobe_modules.doctor.findings import Finding

ALL_CAPABILITIES = "000001ffffffffff"
BPF_AND_PERFMON = f"{1 << 38 | 1 << 39:016x}"


class Files:
    """
    A host made of files, healthy until a test changes it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/sys/kernel/osrelease", "6.1.0-50-amd64\n")
        self.write("proc/self/status", f"Name:\tx\nCapEff:\t{ALL_CAPABILITIES}\n")
        self.write("proc/sys/kernel/perf_event_paranoid", "3\n")
        self.write("proc/sys/kernel/perf_event_mlock_kb", "516\n")
        self.write("proc/sys/kernel/unprivileged_bpf_disabled", "2\n")
        self.write("proc/sys/net/core/bpf_jit_enable", "1\n")
        self.write(
            "proc/kallsyms", "0000 T taken\n0000 t cut.isra.0\n0000 t cut.cold\n0000 d data\n"
        )
        options = (
            "BPF_SYSCALL",
            "DEBUG_INFO_BTF",
            "BPF_EVENTS",
            "BPF_JIT",
            "KPROBES",
            "KPROBE_EVENTS",
            "CGROUPS",
        )
        self.configure(dict.fromkeys(options, "y"))
        self.write("sys/kernel/security/lockdown", "[none] integrity confidentiality\n")
        self.write("sys/bus/event_source/devices/kprobe/type", "8\n")
        self.write("sys/kernel/tracing/events/sched/id", "1\n")
        self.write("sys/fs/cgroup/cgroup.controllers", "cpu\n")
        btf = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 4096, 4096, 1000) + bytes(5096)
        self.write("sys/kernel/btf/vmlinux", btf)
        self.options = dict.fromkeys(options, "y")

    def write(self, name: str, content: str | bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def remove(self, name: str) -> None:
        (self.root / name).unlink()

    def configure(self, options: dict[str, str]) -> None:
        text = "".join(f"CONFIG_{key}={value}\n" for key, value in options.items())
        self.write(
            "proc/config.gz", gzip.compress(b"# Linux\n# CONFIG_X is not set\n" + text.encode())
        )

    def host(self) -> Host:
        return Host(proc=self.root / "proc", sys=self.root / "sys", root=self.root)

    def kernel(self) -> dict[str, Finding]:
        return {finding.id: finding for finding in kernel.check_kernel(self.host())}

    def rights(self, *kinds: str) -> dict[str, Finding]:
        return {finding.id: finding for finding in kernel.check_rights(self.host(), kinds)}

    def rings(self, pages: int) -> dict[str, Finding]:
        return {finding.id: finding for finding in kernel.check_rings(self.host(), pages)}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def statuses(findings: dict[str, Finding]) -> dict[str, str]:
    return {name: finding.status for name, finding in findings.items()}


def test_a_healthy_host(files: Files) -> None:
    found = files.kernel() | files.rights("kprobe", "tracepoint") | files.rings(512)

    assert {name for name, status in statuses(found).items() if status != "ok"} == {"runtime"}
    assert found["kernel.release"].found.startswith("6.1.0-50-amd64 ")
    assert found["cgroup"].found.startswith("v2 at ")


@pytest.mark.parametrize(
    ("release", "status"),
    [
        ("5.9.1", "fail"),
        ("5.10.0-32-amd64", "ok"),
        ("7.3.4+deb13", "ok"),
        ("weird", "fail"),
    ],
)
def test_kernels_before_5_10_are_refused(files: Files, release: str, status: str) -> None:
    files.write("proc/sys/kernel/osrelease", release)

    assert files.kernel()["kernel.release"].status == status


@pytest.mark.parametrize(
    ("option", "status"),
    [("BPF_SYSCALL", "fail"), ("DEBUG_INFO_BTF", "fail"), ("KPROBES", "warn"), ("BPF_JIT", "warn")],
)
def test_a_missing_option_is_named_with_its_remedy(files: Files, option: str, status: str) -> None:
    files.configure({key: value for key, value in files.options.items() if key != option})

    finding = files.kernel()[f"config.{option}"]
    assert finding.status == status
    assert finding.remedy == f"boot a kernel built with CONFIG_{option}=y"


def test_the_configuration_may_lie_in_boot_or_nowhere(files: Files) -> None:
    files.remove("proc/config.gz")
    assert files.kernel()["config"].status == "skip"

    files.write("boot/config-6.1.0-50-amd64", "CONFIG_KPROBES=y\n")
    found = files.kernel()
    assert found["config.KPROBES"].status == "ok"
    assert found["config.BPF_SYSCALL"].status == "fail"


def test_a_damaged_configuration_counts_as_absent(files: Files) -> None:
    files.write("proc/config.gz", b"\x1f\x8b\x08\x00damaged")

    assert files.kernel()["config"].status == "skip"


def test_lockdown(files: Files) -> None:
    files.write("sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    assert files.kernel()["kernel.lockdown"].status == "ok"

    files.write("sys/kernel/security/lockdown", "none integrity [confidentiality]\n")
    finding = files.kernel()["kernel.lockdown"]
    assert (finding.status, finding.remedy) == (
        "fail",
        "boot with lockdown=integrity or lockdown=none",
    )

    files.remove("sys/kernel/security/lockdown")
    assert files.kernel()["kernel.lockdown"].status == "skip"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x9f\xeb\x01",
        struct.pack("<HBBIIIII", 0x9FEB, 1, 0, 24, 0, 8, 8, 8) + bytes(64),
        struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 1 << 20, 1 << 20, 8) + bytes(64),
    ],
)
def test_damaged_kernel_btf_fails(files: Files, content: bytes) -> None:
    files.write("sys/kernel/btf/vmlinux", content)

    assert files.kernel()["btf.kernel"].status == "fail"


def test_no_kprobes_is_a_warning_whatever_the_configuration_says(files: Files) -> None:
    files.remove("sys/bus/event_source/devices/kprobe/type")

    assert files.kernel()["kprobe.attach"].status == "warn"


def test_cgroup_hierarchies(files: Files) -> None:
    files.remove("sys/fs/cgroup/cgroup.controllers")
    assert files.kernel()["cgroup"].status == "warn"
    files.write("sys/fs/cgroup/memory/tasks", "")
    assert files.kernel()["cgroup"].found.endswith(": memory")
    files.write("sys/fs/cgroup/unified/cgroup.controllers", "")
    assert files.kernel()["cgroup"].found.startswith("hybrid")


def test_without_capabilities_loading_fails_and_names_them(files: Files) -> None:
    files.write("proc/self/status", "CapEff:\t0000000000000000\n")

    finding = files.rights()["capability.load"]

    assert str(finding) == (
        "fail  capability.load             CAP_BPF and CAP_PERFMON not effective: programs "
        "cannot be loaded; remedy: run as root, or grant CAP_BPF and CAP_PERFMON"
    )


def test_cap_sys_admin_stands_for_bpf_and_perfmon(files: Files) -> None:
    files.write("proc/self/status", f"CapEff:\t{1 << 21:016x}\n")

    assert files.rights()["capability.load"].status == "ok"


@pytest.mark.parametrize(
    ("level", "capabilities", "kind", "status"),
    [
        (2, BPF_AND_PERFMON, "kprobe", "ok"),
        (3, BPF_AND_PERFMON, "kprobe", "fail"),
        (3, BPF_AND_PERFMON, "tp_btf", "warn"),
        (4, BPF_AND_PERFMON, "kretprobe", "fail"),
        (4, ALL_CAPABILITIES, "kprobe", "ok"),
        (-1, BPF_AND_PERFMON, "kprobe", "ok"),
    ],
)
def test_stock_distributions_refuse_kprobes_to_the_least_capabilities(
    files: Files, level: int, capabilities: str, kind: str, status: str
) -> None:
    files.write("proc/sys/kernel/perf_event_paranoid", str(level))
    files.write("proc/self/status", f"CapEff:\t{capabilities}\n")

    finding = files.rights(kind)["perf.paranoid"]

    assert finding.status == status
    if status == "fail":
        assert finding.remedy == "sysctl kernel.perf_event_paranoid=2, or grant CAP_SYS_ADMIN"


@pytest.mark.parametrize(
    ("pages", "locked", "status"),
    [
        (128, 0, "ok"),
        (256, 0, "fail"),
        (512, 8 << 20, "ok"),
        (4096, 8 << 20, "fail"),
        (4096, None, "ok"),
    ],
)
def test_large_rings_need_room(
    files: Files, monkeypatch: pytest.MonkeyPatch, pages: int, locked: int | None, status: str
) -> None:
    monkeypatch.setattr(Host, "locked_bytes_allowed", lambda _self: locked)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "sysconf", lambda _name: 4096)
    files.write("proc/self/status", f"CapEff:\t{BPF_AND_PERFMON}\n")

    finding = files.rings(pages)["perf.memory"]

    assert finding.status == status
    need = 4 * (pages + 1)
    assert finding.found.startswith(f"{need} KiB for each of 2 CPUs")
    if status == "fail":
        assert finding.remedy.startswith(f"sysctl kernel.perf_event_mlock_kb={need}, grant CAP_IPC")


def test_5_10_charges_maps_to_memlock(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "locked_bytes_allowed", lambda _self: 64 << 10)
    files.write("proc/self/status", f"CapEff:\t{BPF_AND_PERFMON}\n")
    assert "memlock" not in files.rings(8)

    files.write("proc/sys/kernel/osrelease", "5.10.0-32-amd64")
    assert files.rings(8)["memlock"].status == "fail"
    files.write("proc/self/status", f"CapEff:\t{ALL_CAPABILITIES}\n")
    assert files.rings(8)["memlock"].status == "ok"


def test_functions_that_the_compiler_cut_up_are_found(files: Files) -> None:
    host = files.host()

    assert host.functions == {"taken", "cut.isra.0", "cut.cold"}
    assert host.variants("cut") == ["cut.cold", "cut.isra.0"]
    assert host.variants("taken") == []


def test_an_empty_host_is_described_without_raising(tmp_path: Path) -> None:
    host = Host(proc=tmp_path, sys=tmp_path, root=tmp_path)

    rights = kernel.check_rights(host, ["kprobe"])
    found = [*kernel.check_kernel(host), *rights, *kernel.check_rings(host, 8)]

    assert all(finding.remedy for finding in found if finding.status == "fail")
    assert {finding.id for finding in found if finding.status == "fail"} >= {
        "btf.kernel",
        "capability.load",
    }


@given(
    content=st.binary(max_size=200),
    name=st.sampled_from(
        [
            "proc/config.gz",
            "proc/self/status",
            "proc/kallsyms",
            "proc/sys/kernel/osrelease",
            "proc/sys/kernel/perf_event_paranoid",
            "proc/sys/net/core/bpf_jit_enable",
            "sys/kernel/btf/vmlinux",
            "sys/kernel/security/lockdown",
        ]
    ),
)
def test_no_file_makes_the_doctor_raise(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    files = Files(tmp_path_factory.mktemp("host"))
    files.write(name, content)

    found = files.kernel() | files.rights("kprobe") | files.rings(512)
    files.host().variants("cut")

    assert all(finding.remedy for finding in found.values() if finding.status == "fail")


def test_roots_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST_PROC", "/hostfs/proc")
    monkeypatch.setenv("HOST_SYS", "")

    assert Host() == Host(proc="/hostfs/proc", sys="/sys")
