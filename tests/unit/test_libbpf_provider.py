# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import subprocess
import sys

import pytest

from kprobe_modules.errors import KprobeModulesError, LibbpfNotFoundError
from kprobe_modules.libbpf import Library, candidates, find, provider
from kprobe_modules.libbpf.symbols import REQUIRED
from tests.support.requirements import needs

VERSION = """
int libbpf_major_version(void) {{ return {}; }}
int libbpf_minor_version(void) {{ return {}; }}
"""


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    monkeypatch.delenv(provider.ENVIRONMENT, raising=False)


def python(script, *arguments):
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split()


def shared_library(folder, source):
    """
    Compile what looks like a libbpf of some kind.
    """
    compiler = needs.command("cc", "gcc", "clang")
    target = folder / "libfake.so"
    (folder / "fake.c").write_text(source)
    command = [compiler, "-shared", "-fPIC", "-o", str(target), str(folder / "fake.c")]
    subprocess.run(command, check=True)
    return str(target)


def test_import_opens_nothing():
    script = (
        "import sys, kprobe_modules.libbpf as room\n"
        "dir(room)\n"
        "print('ctypes' in sys.modules, 'libbpf' in open('/proc/self/maps').read())"
    )
    assert python(script) == ["False", "False"]


def test_all_public_names_resolve():
    from kprobe_modules import libbpf

    for name in libbpf.__all__:
        assert getattr(libbpf, name)
    assert set(libbpf.__all__) <= set(dir(libbpf))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = libbpf.nothing


def test_the_candidates_come_in_order_of_preference():
    origins = [each.origin for each in candidates()]
    order = ["bundled", "system", "pylibbpf"]
    assert "system" in origins
    assert origins == sorted(origins, key=order.index)


def test_every_usable_candidate_says_file_and_version():
    usable = [each for each in candidates() if each.refusal is None]
    needs.that(usable, "needs a libbpf")
    for each in usable:
        assert each.path.startswith("/")
        assert each.version >= (1, 0)
        assert f"{each.version[0]}.{each.version[1]}" in str(each)
        library = find(each.path)
        assert isinstance(library, Library)
        assert library.path == each.path
        assert library.version == each.version
        assert library.version_string.startswith(f"v{each.version[0]}.{each.version[1]}")
    assert find().path == usable[0].path


def test_a_library_is_opened_once():
    assert find() is find()
    assert provider.in_use() in provider._opened.values()


def test_pylibbpf_is_used_without_importing_it():
    needs.package("pylibbpf")
    script = (
        "import sys\n"
        "from kprobe_modules.libbpf import candidates, find\n"
        "library = find([c.path for c in candidates() if c.origin == 'pylibbpf'][0])\n"
        "print('pylibbpf' in sys.modules, 'llvmlite' in sys.modules, library.version >= (1, 6))"
    )
    assert python(script) == ["False", "False", "True"]


def test_a_named_file_is_exclusive(monkeypatch):
    monkeypatch.setenv(provider.ENVIRONMENT, "/nowhere/libbpf.so")
    [only] = candidates()
    assert only.origin == "environment"
    with pytest.raises(LibbpfNotFoundError) as caught:
        find()
    assert isinstance(caught.value, KprobeModulesError)
    message = str(caught.value)
    assert "environment /nowhere/libbpf.so" in message
    assert "system" not in message.partition(";")[0]
    # An argument has the last word.
    assert candidates("/else/where.so")[0].origin == "argument"


def test_the_environment_chooses(monkeypatch):
    usable = [each for each in candidates() if each.refusal is None]
    needs.that(len(usable) > 1, "needs two libbpfs")
    monkeypatch.setenv(provider.ENVIRONMENT, usable[-1].path)
    assert find().path == usable[-1].path


def test_without_any_the_error_lists_all_and_the_remedy(monkeypatch):
    monkeypatch.setattr(provider, "SONAME", "libbpf-of-nowhere.so.1")
    monkeypatch.setattr(provider, "_bundled", lambda: iter(["/bundled/libbpf.so"]))
    monkeypatch.setattr(provider, "_pylibbpf", lambda: iter(["/site/pylibbpf.x.so"]))
    with pytest.raises(LibbpfNotFoundError) as caught:
        find()
    message = str(caught.value)
    places = ["bundled /bundled", "system libbpf-of-nowhere", "pylibbpf /site/pylibbpf"]
    at = [message.index(place) for place in places]
    assert at == sorted(at)
    assert "apt install libbpf1" in message
    assert "pip install 'kprobe_modules[pylibbpf]'" in message
    assert provider.ENVIRONMENT in message


def test_a_refused_candidate_is_passed_over(monkeypatch):
    usable = find().path
    monkeypatch.setattr(provider, "_bundled", lambda: iter(["/bundled/libbpf.so"]))
    refused, *rest = candidates()
    assert refused.refusal
    assert refused.version is None
    assert find().path == usable
    assert rest


@pytest.mark.parametrize(
    ("source", "reason", "version"),
    [
        ("int other(void) { return 0; }", "not a libbpf", None),
        (
            VERSION.format(0, 8),
            "older than 1.0",
            (0, 8),
        ),
        (
            VERSION.format(1, 0),
            "bpf_object__open_mem",
            (1, 0),
        ),
    ],
)
def test_an_unusable_library_is_refused_with_the_reason(tmp_path, source, reason, version):
    path = shared_library(tmp_path, source)
    [candidate] = candidates(path)
    assert reason in candidate.refusal
    assert candidate.version == version
    with pytest.raises(LibbpfNotFoundError, match=reason):
        find(path)


def test_required_symbols_leave_out_what_pylibbpf_lacks():
    absent = ("ring_buffer__", "user_ring_buffer__", "btf_dump__", "bpf_linker__", "bpf_tc_")
    assert not [name for name in REQUIRED if name.startswith(absent)]
    assert "libbpf_strerror" not in REQUIRED
    # Added in 1.2.
    assert not {"bpf_prog_get_info_by_fd", "bpf_map_get_info_by_fd"} & set(REQUIRED)
