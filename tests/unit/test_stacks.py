# SPDX-License-Identifier: Apache-2.0
"""
Names for addresses, against what the kernel and the tools of the ELF world say.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kprobe_modules.stacks import Frame, Resolver
from kprobe_modules.stacks.elfsymbols import read_symbols
from kprobe_modules.stacks.kernel import KernelSymbols
from kprobe_modules.stacks.mappings import read_mappings
from kprobe_modules.stacks.table import SymbolTable
from tests.support import stacked
from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KALLSYMS = """\
ffffffff81000000 T _stext
ffffffff81000100 t first
ffffffff81000100 t another_name_of_it
ffffffff81000200 D data_is_no_function
ffffffff81000300 T second
ffffffffc0001000 t helper\t[nf_conntrack]
ffffffffc0002000 t bpf_prog_0123456789abcdef_on_fork\t[bpf]
"""


@pytest.fixture
def symbols(tmp_path: Path) -> KernelSymbols:
    path = tmp_path / "kallsyms"
    path.write_text(KALLSYMS, encoding="ascii")
    return KernelSymbols(path)


@pytest.mark.parametrize(
    ("address", "returns", "expected"),
    [
        (0xFFFFFFFF81000100, False, "another_name_of_it+0x0"),
        (0xFFFFFFFF810001FF, False, "another_name_of_it+0xff"),
        (0xFFFFFFFF81000210, False, "another_name_of_it+0x110"),
        # The call was the last instruction of the function before.
        (0xFFFFFFFF81000300, True, "another_name_of_it+0x200"),
        (0xFFFFFFFF81000300, False, "second+0x0"),
        (0xFFFFFFFFC0001010, False, "helper+0x10 (nf_conntrack)"),
        (0xFFFFFFFFC0002010, True, "bpf_prog_0123456789abcdef_on_fork+0x10 (bpf)"),
        (0xFFFFFFFF80FFFFFF, False, "0xffffffff80ffffff"),
        (0xFFFFFFFFC0F00000, False, "0xffffffffc0f00000"),
    ],
)
def test_kernel_functions(
    symbols: KernelSymbols, address: int, *, returns: bool, expected: str
) -> None:
    assert str(symbols.frame(address, returns=returns)) == expected


def test_hidden_addresses_name_nothing(tmp_path: Path) -> None:
    path = tmp_path / "kallsyms"
    path.write_text("0000000000000000 T _stext\n0000000000000000 T do_exit\n", encoding="ascii")
    assert KernelSymbols(path).frame(0x1000, returns=False) == Frame("", 0x1000)
    assert KernelSymbols(tmp_path / "absent").frame(1, returns=False) == Frame("", 1)


def test_the_running_kernels_functions() -> None:
    needs.root()
    lines = Path("/proc/kallsyms").read_text(encoding="ascii").splitlines()
    known = {}
    for line in lines:
        address, letter, name = line.split(None, 2)
        if letter in "tT" and name in ("do_exit", "vfs_read", "schedule"):
            known[int(address, 16)] = name
    needs.that(all(known), "needs addresses in /proc/kallsyms (kernel.kptr_restrict)")
    resolver = Resolver(Path("/proc"))
    for address, name in known.items():
        assert resolver.kernel([address + 1]) == (Frame(name, 1),)
    assert len(known) == 3


def test_a_table_knows_ends_where_there_are_sizes() -> None:
    table = SymbolTable([(100, 10, b"a"), (200, 0, b"b")], reach=50)
    assert table.find(99) is None
    assert table.find(109) == ("a", 9)
    assert table.find(110) is None
    assert table.find(249) == ("b", 49)
    assert table.find(250) is None


def functions(path: Path) -> dict[str, int]:
    """
    Return the addresses of the program's functions, as readelf has them.
    """
    readelf = needs.command("readelf", "llvm-readelf-14")
    text = subprocess.run([readelf, "-sW", path], capture_output=True, text=True, check=True).stdout
    found = re.finditer(r"^ *\d+: ([0-9a-f]+) .* FUNC .* (stacked_\w+|main)$", text, re.MULTILINE)
    return {each[2]: int(each[1], 16) for each in found}


def build_id(path: Path) -> str:
    readelf = needs.command("readelf", "llvm-readelf-14")
    text = subprocess.run([readelf, "-nW", path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"Build ID: ([0-9a-f]+)", text)
    assert found
    return found[1]


def test_an_elf_file_says_what_readelf_says(tmp_path: Path) -> None:
    program = stacked.build(tmp_path)
    with program.open("rb") as stream:
        symbols = read_symbols(stream)
    assert symbols is not None
    assert symbols.complete
    assert symbols.build_id == build_id(program)
    for name, address in functions(program).items():
        assert symbols.find(address + 2) == (name, 2)
    assert set(functions(program)) >= set(stacked.FUNCTIONS)


def test_what_is_no_elf_file_names_nothing(tmp_path: Path) -> None:
    whole = Path("/bin/true").read_bytes()
    for content in (b"", b"#!/bin/sh\n", whole[:100], whole[: len(whole) // 2], b"\x7fELF" * 50):
        path = tmp_path / "file"
        path.write_bytes(content)
        with path.open("rb") as stream:
            found = read_symbols(stream)
        assert found is None or found.find(0) is None


@contextmanager
def held(command: Sequence[str | Path]) -> Iterator[int]:
    """
    Run the program until it waits; give its pid.
    """
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.stdin.close()


def loaded_at(pid: int, name: str) -> int:
    """
    Return where a file's first byte would lie, by its executable mapping.
    """
    mapping = next(each for each in read_mappings(Path(f"/proc/{pid}")) if each.path.endswith(name))
    return mapping.start - mapping.offset


def address_in_file(program: Path, function: str) -> int:
    """
    Return the offset in a file at which a function lies.
    """
    with program.open("rb") as stream:
        symbols = read_symbols(stream)
    assert symbols is not None
    linked = functions(program)[function]
    return next(
        start + linked - at for start, size, at in symbols._segments if at <= linked < at + size
    )


@pytest.mark.parametrize("options", [(), ("-static",), ("-no-pie",)])
def test_functions_of_a_process(tmp_path: Path, options: tuple[str, ...]) -> None:
    program = stacked.build(tmp_path, *options)
    with held([program, "hold"]) as pid:
        addresses = [
            loaded_at(pid, program.name) + address_in_file(program, name) + 4
            for name in stacked.FUNCTIONS
        ]
        frames = Resolver(Path("/proc")).user(pid, addresses)
    assert [each.symbol for each in frames] == stacked.FUNCTIONS
    assert {each.offset for each in frames} == {4}
    assert {each.object for each in frames} == {str(program)}
    assert {each.build_id for each in frames} == {build_id(program)}


def test_functions_of_a_file_that_was_replaced(tmp_path: Path) -> None:
    needs.root()
    program = stacked.build(tmp_path)
    copy = tmp_path / "running"
    shutil.copy(program, copy)
    with held([copy, "hold"]) as pid:
        base = loaded_at(pid, "running")
        offset = address_in_file(program, "stacked_middle")
        copy.unlink()
        shutil.copy("/bin/true", copy)
        (frame,) = Resolver(Path("/proc")).user(pid, [base + offset])
    assert (frame.symbol, frame.offset, frame.object) == ("stacked_middle", 0, str(copy))


def test_functions_of_a_process_in_another_mount_namespace(tmp_path: Path) -> None:
    needs.root()
    unshare = needs.command("unshare")
    program = stacked.build(tmp_path)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    script = 'mount -t tmpfs tmpfs "$1" && cp "$2" "$1/inside" && exec "$1/inside" hold'
    command = [unshare, "-m", "sh", "-c", script, "sh", hidden, program]
    with held(command) as pid:
        assert list(hidden.iterdir()) == []  # it is there for that process alone
        base = loaded_at(pid, "inside")
        address = address_in_file(program, "stacked_outer")
        (frame,) = Resolver(Path("/proc")).user(pid, [base + address])
    assert (frame.symbol, frame.object) == ("stacked_outer", str(hidden / "inside"))
    assert frame.build_id == build_id(program)


def test_symbols_kept_apart_are_found_by_build_id(tmp_path: Path) -> None:
    needs.root()
    objcopy = needs.command("objcopy", "llvm-objcopy-14")
    program = stacked.build(tmp_path)
    identity = build_id(program)
    offset = address_in_file(program, "stacked_middle")
    apart = Path("/usr/lib/debug/.build-id") / identity[:2] / f"{identity[2:]}.debug"
    created = not apart.parent.exists()
    apart.parent.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run([objcopy, "--only-keep-debug", program, apart], check=True)
        subprocess.run([objcopy, "--strip-all", program], check=True)
        with held([program, "hold"]) as pid:
            address = loaded_at(pid, "stacked") + offset
            (named,) = Resolver(Path("/proc")).user(pid, [address])
            apart.unlink()
            (stripped,) = Resolver(Path("/proc")).user(pid, [address])
    finally:
        apart.unlink(missing_ok=True)
        if created:
            apart.parent.rmdir()
    assert (named.symbol, named.offset, named.build_id) == ("stacked_middle", 0, identity)
    # Still enough to find it elsewhere: the file's place and identity.
    assert (stripped.symbol, stripped.offset, stripped.build_id) == ("", offset, identity)


def test_a_shared_library_of_this_process() -> None:
    address = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value
    assert address is not None
    (frame,) = Resolver(Path("/proc")).user(os.getpid(), [address + 1])
    assert frame.symbol in {"getpid", "__getpid", "__GI___getpid"}
    assert frame.offset == 1
    assert "libc" in frame.object


def test_a_process_that_is_gone_leaves_numbers() -> None:
    with subprocess.Popen(["/bin/true"]) as process:
        pass
    assert Resolver(Path("/proc")).user(process.pid, [0x5555]) == (Frame("", 0x5555),)
