# SPDX-License-Identifier: Apache-2.0
"""
What a head start hands over is what would have been opened later, and nothing of it stays.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import pytest

from kprobe_modules import Collector, kernelbtf
from kprobe_modules.architecture import machine_arch
from kprobe_modules.errors import LoadError, RegistryError
from kprobe_modules.headstart import Headstart
from kprobe_modules.libbpf import BpfObject, find, structs
from kprobe_modules.objectfile import read
from kprobe_modules.registry import Registry
from tests.support import generator, hooked
from tests.support.generator import generate
from tests.support.libbpfs import descriptors
from tests.support.requirements import needs


@pytest.fixture(autouse=True)
def _root():
    needs.root()
    needs.kernel_btf()


def manifest(name):
    return Registry().load(name)


def bytes_of(name):
    return manifest(name).object_bytes(machine_arch())


def has_target_in_kernel(name):
    """
    Tell whether a program of it attaches where kernels themselves, not their modules, have BTF.
    """
    return any(each.kind in {"tp_btf", "iter"} for each in read(bytes_of(name), name).programs)


def instructions(program):
    """
    What the kernel made of a program, CO-RE relocations included; pointers are left out.
    """
    c, size = find().c, ctypes.c_uint32(ctypes.sizeof(structs.ProgramInfo))
    found = structs.ProgramInfo()
    assert c.bpf_obj_get_info_by_fd(program.fd, ctypes.byref(found), ctypes.byref(size)) == 0
    room = ctypes.create_string_buffer(found.xlated_prog_len)
    asked = structs.ProgramInfo(
        xlated_prog_len=found.xlated_prog_len, xlated_prog_insns=ctypes.addressof(room)
    )
    assert c.bpf_obj_get_info_by_fd(program.fd, ctypes.byref(asked), ctypes.byref(size)) == 0
    return found.attach_btf_id, [
        room.raw[at : at + 8 - 4 * (room.raw[at] == 0x18)] for at in range(0, len(room.raw), 8)
    ]


def loaded(target):
    """
    Load what of an object this kernel can have; return the instructions by program.
    """
    btf = Headstart(()).btf
    for program in target.programs.values():
        kind, _, name = program.section.partition("/")
        there = {"tp_btf": btf.has_tracepoint, "iter": btf.has_iterator}.get(kind)
        program.set_autoload(there is not None and there(name))
    btf.close()
    target.load()
    return {
        name: instructions(program) for name, program in target.programs.items() if program.autoload
    }


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", list(filter(has_target_in_kernel, Registry().names())))
def test_programs_are_the_same_as_without(name, native, monkeypatch):
    if native:
        needs.that(kernelbtf.Index, "the compiled index")
    else:
        monkeypatch.setattr(kernelbtf, "Index", None)
    data = bytes_of(name)
    with BpfObject.open(data, name) as opened:
        expected = loaded(opened)
    with Headstart([lambda: manifest(name)]) as headstart:
        target = headstart.take(name, data, find())
        assert target is not None
        with target:
            assert target.has_kernel_btf
            found = loaded(target)
    assert len(expected) > 3
    assert found == expected


def test_the_next_one_begins_when_one_is_taken():
    names = Registry().names()
    with Headstart([lambda name=name: manifest(name) for name in names]) as headstart:
        assert headstart.take(names[1], bytes_of(names[1]), find()) is None
        for name in names:
            target = headstart.take(name, bytes_of(name), find())
            assert target is not None
            assert target.name == manifest(name).object_name
            target.close()
        assert headstart.take(names[0], bytes_of(names[0]), find()) is None


def test_another_object_is_not_handed_over():
    name = Registry().names()[0]
    with Headstart([lambda: manifest(name)]) as headstart:
        assert headstart.take(name, bytes_of(name) + b"\0", find()) is None


def test_what_cannot_be_begun_is_left_out():
    def broken():
        msg = "not there"
        raise RegistryError(msg)

    name = Registry().names()[0]
    with Headstart([broken, lambda: manifest(name)]) as headstart:
        target = headstart.take(name, bytes_of(name), find())
        assert target is not None
        target.close()


def test_nothing_is_kept_of_what_nobody_takes():
    before = descriptors(), threading.active_count()
    sizes = []
    for _ in range(7):
        headstart = Headstart([lambda: manifest(Registry().names()[0])])
        headstart.close()
        headstart.close()
        sizes.append(resident_mib())
    assert (descriptors(), threading.active_count()) == before
    # libbpf holds 6 MB of the kernel's BTF for an open object.
    assert sizes[-1] - sizes[1] < 6


def resident_mib():
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4 // 1024


def test_a_collector_takes_it():
    modules = [generator.renamed("alpha"), hooked.MODULE]
    before = descriptors()
    taken = []
    with Headstart([lambda each=each: each for each in modules]) as headstart:
        take = headstart.take

        def noted(*arguments):
            taken.append(take(*arguments))
            return taken[-1]

        headstart.take = noted
        with Collector(modules, headstart=headstart) as collector:
            assert collector.modules == ("alpha", "hooked")
            generate(collector, 7, name="alpha")
    assert [target is not None for target in taken] == [True, True]
    # The first alternative of the other one was refused: it went on with an object of its own.
    assert [target.loaded for target in taken] == [True, False]
    assert all(target.closed for target in taken)
    assert descriptors() - before == set()


def test_a_target_that_the_kernel_lacks(library):
    data = bytes_of(Registry().names()[0])
    with BpfObject.open(data, "lacking", library) as opened:
        program = next(each for each in opened.programs.values() if "tp_btf" in each.section)
        program.section = "tp_btf/km_nowhere"
        with pytest.raises(LoadError, match="target km_nowhere"):
            program.find_target()
