# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from kprobe_modules import capabilities
from kprobe_modules.errors import AttachError, LoadError, PrivilegeError
from kprobe_modules.features import Answer, Features, Support
from kprobe_modules.libbpf import BpfObject, program_ids
from kprobe_modules.libbpf.ids import open_program
from kprobe_modules.libbpf.program import prog_info
from kprobe_modules.symbols import Symbols
from tests.support.libbpfs import wait_until
from tests.support.requirements import needs

KALLSYMS = """\
0000000000000000 T wake_up_new_task
0000000000000000 t cgroup_exit.isra.0
0000000000000000 d task_data
0000000000000000 t twice
0000000000000000 t twice
0000000000000000 W weak_one
0000000000000000 T forbidden
0000000000000000 t nf_confirm\t[nf_conntrack]
0000000000000000 T xlast_of_all
"""


@pytest.fixture
def roots(tmp_path):
    """
    A machine with kprobes, without BTF, and with the functions above.
    """
    proc, sys_ = tmp_path / "proc", tmp_path / "sys"
    (proc / "self").mkdir(parents=True)
    (proc / "kallsyms").write_text(KALLSYMS)
    (proc / "self" / "status").write_text("Name:\tx\nCapEff:\t000000c000000000\n")
    pmu = sys_ / "bus/event_source/devices/kprobe"
    pmu.mkdir(parents=True)
    (pmu / "type").write_text("8\n")
    kprobes = sys_ / "kernel/debug/kprobes"
    kprobes.mkdir(parents=True)
    (kprobes / "blacklist").write_text("0x0000000000000000-0x0000000000000000\tforbidden\n")
    return {"proc": proc, "sys": sys_}


@pytest.mark.parametrize(
    ("function", "support", "reason"),
    [
        ("wake_up_new_task", Support.YES, ""),
        ("weak_one", Support.YES, ""),
        ("nf_confirm", Support.YES, ""),
        ("xlast_of_all", Support.YES, ""),
        ("cgroup_exit", Support.NO, "no function cgroup_exit"),
        ("wake_up_new", Support.NO, "no function wake_up_new"),
        ("last_of_all", Support.NO, "no function"),
        ("task_data", Support.NO, "no function"),
        ("forbidden", Support.NO, "functions without kprobes"),
        ("twice", Support.UNKNOWN, "2 functions named twice"),
    ],
)
def test_kprobe_by_exact_name(roots, function, support, reason):
    answer = Features(**roots).kprobe(function)
    assert answer.support is support
    assert reason in answer.reason
    assert bool(answer) is (support is Support.YES)


def test_without_the_event_source_there_are_no_kprobes(roots):
    (roots["sys"] / "bus/event_source/devices/kprobe/type").unlink()
    features = Features(**roots)
    for answer in (features.kprobes(), features.kprobe("wake_up_new_task")):
        assert answer.support is Support.NO
        assert "CONFIG_KPROBES" in answer.reason


def test_without_sysfs_nothing_is_known_of_kprobes(tmp_path):
    features = Features(proc=tmp_path, sys=tmp_path)
    assert features.kprobe("wake_up_new_task").support is Support.UNKNOWN


def test_unknown_is_asked_again_and_the_rest_is_remembered(roots):
    features = Features(**roots)
    kallsyms = roots["proc"] / "kallsyms"
    kallsyms.rename(roots["proc"] / "hidden")
    answer = features.kprobe("wake_up_new_task")
    assert answer.support is Support.UNKNOWN
    assert "kallsyms cannot be read" in answer.reason
    kallsyms.write_text(KALLSYMS)
    assert features.kprobe("wake_up_new_task")
    kallsyms.write_text("")
    features.close()
    assert features.kprobe("wake_up_new_task")
    assert features.kprobe("weak_one").support is Support.NO


def test_symbols_are_read_only_where_they_matter(roots):
    (roots["proc"] / "kallsyms").unlink()
    features = Features(**roots)
    assert features.program("tp_btf", "sched_process_exit").support is Support.NO
    assert features._symbols._text is None


def test_without_btf(roots):
    features = Features(**roots)
    for kind, target in (
        ("fentry", "wake_up_new_task"),
        ("fexit", "wake_up_new_task"),
        ("fentry", ""),
        ("tp_btf", "sched_process_exit"),
        ("iter", "task"),
    ):
        answer = features.program(kind, target)
        assert answer.support is Support.NO
        assert "CONFIG_DEBUG_INFO_BTF" in answer.reason
    assert features.program("raw_tp", "sched_process_exit").support is Support.UNKNOWN


def test_classic_tracepoints_need_tracefs(roots):
    features = Features(**roots)
    answer = features.program("tracepoint", "sched/sched_process_exec")
    assert answer.support is Support.NO
    assert "tracefs is not mounted" in answer.reason
    for root, name in (
        ("kernel/tracing", "sched_process_exec"),
        ("kernel/debug/tracing", "sched_process_fork"),
    ):
        event = roots["sys"] / root / "events/sched" / name
        event.mkdir(parents=True)
        (event / "id").write_text("300\n")
    features = Features(**roots)
    assert features.program("tp", "sched/sched_process_exec")
    # The first tracefs found is the one that is asked.
    assert "sched:nothing" in features.tracepoint("sched", "nothing").reason


def test_an_unknown_kind_is_not_refused(roots):
    answer = Features(**roots).program("struct_ops", "tcp_congestion_ops")
    assert answer == Answer(Support.UNKNOWN, "no probe is known for programs of kind struct_ops")


def test_what_needs_privileges_is_unknown_without_them(roots):
    (roots["proc"] / "self" / "status").write_text("CapEff:\t0000000000000000\n")
    features = Features(**roots)
    assert features.capabilities == frozenset()
    for answer in (features.ring_buffer(), features.run_on_cpu()):
        assert answer == Answer(Support.UNKNOWN, "CAP_BPF is needed to find out")


def test_capabilities_by_name(roots):
    status = roots["proc"] / "self" / "status"
    assert capabilities.effective(status) == {"CAP_PERFMON", "CAP_BPF"}
    status.write_text("CapEff:\t0000000000200000\n")
    held = capabilities.effective(status)
    assert held == {"CAP_SYS_ADMIN"}
    assert capabilities.has("CAP_BPF", held)
    assert not capabilities.has("CAP_NET_ADMIN", held)
    status.write_text("no such line\n")
    assert capabilities.effective(status) == frozenset()


def test_a_missing_capability_is_named():
    script = textwrap.dedent("""
        import os
        from kprobe_modules import capabilities
        capabilities.effective()  # the codecs may be out of reach below
        if os.geteuid() == 0:
            os.setuid(65534)
        try:
            capabilities.require("CAP_NET_ADMIN", "to dump connections")
        except PermissionError as error:
            print(type(error).__name__, error.capability, error)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(
        f"{PrivilegeError.__name__} CAP_NET_ADMIN CAP_NET_ADMIN is needed to dump connections"
    )


def test_the_running_kernel(library):
    needs.root()
    needs.kernel_btf()
    features = Features(library)
    assert features.tracepoint_btf("sched_process_exit")
    assert features.tracepoint_btf("km_nowhere").support is Support.NO
    assert features.raw_tracepoint("sched_process_exit")
    assert features.iterator("task")
    assert features.iterator("km_nowhere").support is Support.NO
    assert features.fentry_function("km_nowhere").support is Support.NO
    assert features.ring_buffer()
    assert features.run_on_cpu()
    assert features.fentry().support is not Support.UNKNOWN
    assert "CAP_SYS_ADMIN" in features.capabilities
    features.close()


@pytest.mark.parametrize(
    "name", ["exit_btf", "exit_raw", "exit_classic", "start_kprobe", "start_fentry", "tasks"]
)
def test_an_answer_is_what_attaching_shows(selftest, library, name):
    attach = {
        "exit_btf": lambda program: program.attach_trace(),
        "exit_raw": lambda program: program.attach_raw_tracepoint("sched_process_exit"),
        "exit_classic": lambda program: program.attach_tracepoint("sched", "sched_process_exit"),
        "start_kprobe": lambda program: program.attach_kprobe("wake_up_new_task"),
        "start_fentry": lambda program: program.attach_trace(),
        "tasks": lambda program: program.attach_iter(),
    }[name]
    with BpfObject.open(selftest, "selftest", library) as opened:
        for program in opened.programs.values():
            program.set_autoload(program.name == name)
        kind, _, target = opened.programs[name].section.partition("/")
        answer = Features(library).program(kind, target)
        try:
            opened.load()
            with attach(opened.programs[name]):
                works = Support.YES
        except (AttachError, LoadError):
            works = Support.NO
        assert answer.support is works, answer.reason


def test_trying_leaves_nothing_behind(library):
    needs.root()
    features = Features(library)
    features.fentry()
    features.ring_buffer()
    features.run_on_cpu()
    # Other processes of the machine may be trying at this moment.
    assert wait_until(lambda: not probes(library)), probes(library)


def probes(library):
    """
    Return the programs of probes that the kernel has.
    """
    found = []
    for identity in program_ids(library=library):
        fd = open_program(identity)
        if fd is not None:
            about = prog_info(fd)
            os.close(fd)
            found += [about] if about.name == "km_probe" else []
    return found


def test_kernel_symbols_are_found_by_exact_name():
    symbols = Symbols(Path("/proc/kallsyms"))
    needs.file("/proc/kallsyms")
    assert symbols.count("wake_up_new_task") == 1
    assert symbols.count("wake_up_new_tas") == 0
    assert symbols.count("km_nowhere") == 0
    symbols.close()
