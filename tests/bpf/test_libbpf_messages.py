# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import threading
from importlib.util import find_spec
from types import ModuleType

import pytest

from kprobe_modules.errors import LoadError
from kprobe_modules.libbpf import BpfObject
from tests.support.requirements import needs


def refuse(library, name):
    with pytest.raises(LoadError) as caught:
        BpfObject.open(b"\x7fELF and no more", name, library)
    return str(caught.value)


def test_an_error_repeats_what_libbpf_said(library):
    assert "libbpf says: elf: 'culprit' is not a proper ELF object" in refuse(library, "culprit")
    assert any("culprit" in line for line in library.messages.recent)


def test_messages_go_to_the_logger(library, caplog):
    with caplog.at_level(logging.DEBUG, logger="kprobe_modules.libbpf"):
        refuse(library, "logged")
    mine = [each for each in caplog.records if "logged" in each.getMessage()]
    assert mine
    assert {each.levelno for each in mine} == {logging.DEBUG}
    assert {each.name for each in mine} == {"kprobe_modules.libbpf"}


def test_nothing_is_printed(library, capfd):
    refuse(library, "silent")
    assert capfd.readouterr() == ("", "")


def test_recent_messages_are_bounded(library):
    for number in range(120):
        refuse(library, f"number-{number}")
    assert len(library.messages.recent) == 50
    assert "number-119" in library.messages.recent[-1]


def test_each_thread_reads_its_own_messages(library):
    needs.cpus(2)
    wrong = []

    def work(name):
        for number in range(100):
            said = refuse(library, f"{name}-{number}").split("libbpf says: ")[1]
            if said.count("'") != 2 or f"'{name}-{number}'" not in said:
                wrong.append(said)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two", "three")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_messages_of_other_users_go_where_they_went_before(library):
    script = textwrap.dedent("""
        import ctypes, sys
        from kprobe_modules.libbpf import find
        host = ctypes.CDLL(sys.argv[1])
        PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        got = []
        mine = PRINT(lambda level, template, arguments: got.append(level) or 0)
        host.libbpf_set_print(mine)
        find(sys.argv[1])
        host.bpf_object__open_mem(b"junk", ctypes.c_size_t(4), None)
        print(len(got) > 0)
    """)
    command = [sys.executable, "-c", script, library.path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
    assert not done.stderr


@pytest.mark.parametrize("pure", ["", "1"])
def test_what_nobody_reads_is_dropped_before_it_reaches_python(library, pure):
    """
    And what somebody reads is not.
    """
    if not pure:
        needs.that(find_spec("kprobe_modules.libbpf._print"), "the compiled filter")
    script = textwrap.dedent("""
        import sys
        from kprobe_modules.libbpf import BpfObject, find, messages
        from kprobe_modules.registry import Registry
        from kprobe_modules.architecture import machine_arch
        levels, plain = [], messages.Messages._print
        def noted(self, level, *others):
            levels.append(level)
            return plain(self, level, *others)
        messages.Messages._print = noted
        registry = Registry()
        data = registry.load(registry.names()[0]).object_bytes(machine_arch())
        library = find(sys.argv[1])
        def count(data):
            del levels[:]
            try:
                BpfObject.open(data, "noted", library).close()
            except Exception:
                pass
            return levels.count(0), levels.count(2)
        quiet, refused = count(data), count(b"junk")
        import logging
        logging.basicConfig(level=logging.DEBUG, filename="/dev/null")
        print(*quiet, *refused, *count(data))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, library.path],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "KPROBE_MODULES_PURE": pure},
    )
    warned, debugged, refused, _, _, logged = map(int, done.stdout.split())
    assert warned == 0
    assert (debugged > 50) == bool(pure)
    assert refused > 0
    assert logged > 50


def test_there_are_filters_for_a_few_libraries():
    needs.that(find_spec("kprobe_modules.libbpf._print"), "the compiled filter")
    script = textwrap.dedent("""
        from kprobe_modules.libbpf._print import filtered, set_quiet
        addresses = range(4096, 4096 + 7)
        print([filtered(each) == each for each in addresses].count(True))
        print(set_quiet(True), set_quiet(False), set_quiet(False))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["3", "False", "True", "False"]


def test_a_library_with_our_print_function_survives_the_interpreter(library):
    script = textwrap.dedent("""
        import atexit, ctypes, sys
        from kprobe_modules.libbpf import find
        host = ctypes.CDLL(sys.argv[1])
        # Registered before ours, hence run after it.
        atexit.register(host.bpf_object__open_mem, b"junk", ctypes.c_size_t(4), None)
        find(sys.argv[1])
    """)
    command = [sys.executable, "-c", script, library.path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "libbpf: " in done.stderr


def test_a_thread_may_be_importing_logging(library, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "logging", ModuleType("logging"))
    refuse(library, "while importing")
    assert capfd.readouterr() == ("", "")
