# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import threading
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
