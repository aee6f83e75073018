# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import textwrap

import pytest

from kprobe_modules.errors import LoadError, VerifierError
from kprobe_modules.libbpf import BpfObject, KernelError, test_run
from kprobe_modules.libbpf import map as bpf_map
from tests.support.libbpfs import descriptors, library_of, nothing_left
from tests.support.requirements import needs

NATIVE = ("answer", "which_cpu", "second_word", "output")
RINGBUF = 27


def opened_with(data, library, *programs):
    opened = BpfObject.open(data, "selftest", library)
    for program in opened.programs.values():
        program.set_autoload(program.name in programs)
    return opened


def test_open_lists_what_the_object_declares(selftest, library):
    with BpfObject.open(selftest, "selftest", library) as opened:
        assert set(opened.maps) == {"shared", "percpu", "events", ".rodata"}
        assert set(NATIVE) < set(opened.programs)
        shared = opened.maps["shared"]
        assert (shared.type, shared.key_size, shared.value_size, shared.max_entries) == (1, 4, 8, 4)
        assert shared.btf_key_type_id > 0
        assert shared.btf_value_type_id > 0
        assert opened.programs["exit_btf"].section == "tp_btf/sched_process_exit"
        assert opened.library is library
        assert not opened.loaded


def test_nothing_is_left_behind(selftest, library):
    with nothing_left() as footprint:
        for _ in range(3):
            with opened_with(selftest, library, *NATIVE) as opened:
                opened.load()
                footprint.note(opened)
                assert footprint.left()


def test_rodata_is_edited_before_the_load(selftest, library):
    with opened_with(selftest, library, "answer") as opened:
        rodata = opened.maps[".rodata"]
        before = rodata.initial_value()
        assert struct.pack("<I", 41) in before
        rodata.set_initial_value(before.replace(struct.pack("<I", 41), struct.pack("<I", 1009)))
        opened.load()
        assert test_run(opened.programs["answer"].fd) == 1009


def test_rodata_of_another_size_is_refused(selftest, library):
    with (
        opened_with(selftest, library, "answer") as opened,
        pytest.raises(LoadError, match=r"\.rodata: set initial value") as caught,
    ):
        opened.maps[".rodata"].set_initial_value(b"short")
    assert caught.value.errno == errno.EINVAL


def test_only_global_variables_have_an_initial_value(selftest, library):
    with (
        opened_with(selftest, library) as opened,
        pytest.raises(LoadError, match="map shared: initial value"),
    ):
        opened.maps["shared"].initial_value()


def test_autoload_off_keeps_a_program_out(selftest, library):
    with opened_with(selftest, library, "answer") as opened:
        opened.load()
        assert opened.loaded
        assert opened.programs["answer"].fd > 2
        with pytest.raises(KernelError, match="exit_btf: not loaded"):
            _ = opened.programs["exit_btf"].fd


def test_one_map_serves_two_objects(selftest, library):
    key, value = struct.pack("<I", 5), struct.pack("<Q", 1009)
    with nothing_left() as footprint:
        first = opened_with(selftest, library, "answer")
        first.load()
        second = opened_with(selftest, library, "answer")
        second.maps["shared"].reuse_fd(first.maps["shared"].fd)
        second.load()
        footprint.note(first)
        footprint.note(second)
        one, two = first.maps["shared"].fd, second.maps["shared"].fd
        assert one != two
        assert bpf_map.info(one).id == bpf_map.info(two).id
        bpf_map.update(one, key, value)
        first.close()
        # The map lives as long as somebody holds it.
        assert bpf_map.lookup(two, key) == value
        second.close()


def test_a_map_made_by_one_libbpf_serves_another(selftest):
    with (
        opened_with(selftest, library_of("system"), "answer") as first,
        opened_with(selftest, library_of("pylibbpf"), "answer") as second,
    ):
        first.load()
        second.maps["shared"].reuse_fd(first.maps["shared"].fd)
        second.load()
        assert first.library.version != second.library.version
        assert bpf_map.info(first.maps["shared"].fd).id == bpf_map.info(second.maps["shared"].fd).id


def test_declarations_are_changed_before_the_load(selftest, library):
    with opened_with(selftest, library, "answer") as opened:
        opened.maps["shared"].set_max_entries(1009)
        events = opened.maps["events"]
        events.set_type(RINGBUF)
        events.set_key_size(0)
        events.set_value_size(0)
        events.set_max_entries(65536)
        opened.load()
        assert bpf_map.info(opened.maps["shared"].fd).max_entries == 1009
        made = bpf_map.info(events.fd)
        assert (made.type, made.key_size, made.value_size, made.max_entries) == (
            RINGBUF,
            0,
            0,
            65536,
        )


def test_changes_after_the_load_are_refused(selftest, library):
    with opened_with(selftest, library, "answer") as opened:
        opened.load()
        with pytest.raises(LoadError, match="set max entries") as caught:
            opened.maps["shared"].set_max_entries(3)
        assert caught.value.errno == errno.EBUSY
        with pytest.raises(LoadError, match="answer: choice to load"):
            opened.programs["answer"].set_autoload(False)


def test_a_refusal_of_the_verifier_shows_why(refused, library):
    with (
        BpfObject.open(refused, "refused", library) as opened,
        pytest.raises(VerifierError) as caught,
    ):
        opened.load()
    error = caught.value
    assert error.program == "unchecked_pointer"
    assert error.errno == errno.EACCES
    assert "R0 invalid mem access 'map_value_or_null'" in str(error).splitlines()[-2]
    assert "processed" not in error.tail()
    assert len(error.log.splitlines()) > len(error.tail().splitlines())


def test_a_refused_object_leaves_nothing(refused, library):
    before = descriptors()
    for _ in range(3):
        with BpfObject.open(refused, "refused", library) as opened, pytest.raises(VerifierError):
            opened.load()
    assert descriptors() - before == set()


def test_a_missing_attach_point_is_named(selftest, library):
    with (
        opened_with(selftest, library, "nowhere") as opened,
        pytest.raises(LoadError, match="km_no_such_tracepoint") as caught,
    ):
        opened.load()
    assert not isinstance(caught.value, VerifierError)
    assert caught.value.errno == errno.ESRCH
    assert "object selftest" in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"not an object" * 100])
def test_garbage_is_refused(data, library):
    before = descriptors()
    with pytest.raises(LoadError, match="object garbage: open: ") as caught:
        BpfObject.open(data, "garbage", library)
    assert caught.value.errno
    assert descriptors() == before


def test_truncated_objects_are_refused(selftest, library):
    for size in range(64, len(selftest) - 1, len(selftest) // 13):
        with pytest.raises(LoadError):
            BpfObject.open(selftest[:size], "truncated", library)


def test_closing_twice_is_fine_and_using_it_after_is_an_error(selftest, library):
    opened = opened_with(selftest, library, "answer")
    opened.load()
    program, events = opened.programs["answer"], opened.maps["events"]
    opened.close()
    opened.close()
    assert opened.closed
    uses = (
        lambda: program.fd,
        lambda: events.fd,
        lambda: events.set_max_entries(2),
        program.attach_trace,
        opened.load,
    )
    for use in uses:
        with pytest.raises(KernelError, match="object selftest: already closed") as caught:
            use()
        assert caught.value.errno == errno.EBADF


def test_descriptors_are_closed_on_exec(selftest, library):
    with opened_with(selftest, library, "answer") as opened:
        opened.load()
        for each in (*opened.maps.values(), opened.programs["answer"]):
            assert not os.get_inheritable(each.fd), each


def test_without_privileges_the_capability_is_named(selftest, library, tmp_path):
    path = tmp_path / "selftest.o"
    path.write_bytes(selftest)
    script = textwrap.dedent("""
        import os, sys
        from kprobe_modules import capabilities
        from kprobe_modules.errors import PrivilegeError
        from kprobe_modules.libbpf import BpfObject, find
        library = find(sys.argv[2])
        opened = BpfObject.open(open(sys.argv[1], "rb").read(), "selftest", library)
        for program in opened.programs.values():
            program.set_autoload(program.name == "answer")
        capabilities.effective()  # the codecs may be out of reach below
        os.setuid(65534)
        try:
            opened.load()
        except PrivilegeError as error:
            print(error.capability, "|", error)
    """)
    command = [sys.executable, "-c", script, str(path), library.path]
    needs.capability("CAP_SYS_ADMIN")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("CAP_BPF | CAP_BPF is needed to load BPF programs"), done
