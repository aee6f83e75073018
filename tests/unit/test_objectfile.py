# SPDX-License-Identifier: Apache-2.0
"""
Object file to spec, from synthesised objects and from what clang makes.
"""

from __future__ import annotations

import platform
import struct

import pytest

from kprobe_modules import objectfile
from kprobe_modules.errors import (
    BtfError,
    ConfigError,
    LayoutError,
    MissingMessageError,
    ObjectError,
)
from kprobe_modules.spec import check_arch
from kprobe_modules.tunable import pack
from tests.support.bpfcc import compile_bpf
from tests.support.btfwriter import CONST, VOLATILE, BtfWriter
from tests.support.elfwriter import SHF_COMPRESSED, STT_OBJECT, bpf_object

SOURCE = """
#include <km/hook.h>
#include <km/header.h>
#include <km/maps.h>

enum km_modx_message : __u16 { KM_MODX_OPENED = 1, KM_MODX_SAID = 3 };

struct km_modx_opened {
	struct km_header header;
	km_ns took;
	km_pid pid;
	km_be16 port;
	km_bool again;
	__u8 _pad;
	km_comm comm;
};

struct km_modx_said {
	struct km_header header;
	km_pid pid;
	char words[];
};

union km_modx_messages {
	enum km_modx_message id;
	struct km_modx_opened opened;
	struct km_modx_said said;
	__u8 _room[256];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, union km_modx_messages);
} km_scratch SEC(".maps");

const volatile __u16 km_module_id = 0;
const volatile km_ns slow KM_DOC("longer than this is slow") = 250;
const volatile int bias = -3;
const volatile bool loud = true;
const volatile char word[8] = "hello";
const int constant = 5;

static __attribute__((noinline)) int helper(int *x) { return *x + constant; }

SEC("kprobe/do_thing") KM_HOOK(start, START) int start_kprobe(void *ctx)
{
	int x = bias + km_module_id + slow + loud + word[0];
	return helper(&x);
}

SEC("?fentry/do_thing") KM_HOOK(start, START) int start_fentry(void *ctx) { return 0; }
SEC("iter.s/task") KM_HOOK(existing, EXISTING) int walk(void *ctx) { return 0; }
SEC("tp/sched/sched_switch") int plain(void *ctx) { return 0; }

KM_LICENSE;
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    source = tmp_path_factory.mktemp("object") / "modx.bpf.c"
    source.write_text(SOURCE, encoding="utf-8")
    return compile_bpf(source)


def test_what_clang_made_is_read_whole(compiled):
    spec = objectfile.read(compiled, "modx")
    assert (spec.name, spec.license) == ("modx", "GPL")
    check_arch(spec, platform.machine())
    found = {
        each.name: (each.kind, each.target, each.hook, each.tag, each.autoload, each.sleepable)
        for each in spec.programs
    }
    assert found == {
        "start_kprobe": ("kprobe", "do_thing", "start", "START", True, False),
        "start_fentry": ("fentry", "do_thing", "start", "START", False, False),
        "walk": ("iter", "task", "existing", "EXISTING", True, True),
        "plain": ("tracepoint", "sched/sched_switch", None, None, True, False),
    }
    assert [each.name for each in spec.hook_programs("start")] == ["start_kprobe", "start_fentry"]


def test_maps_of_clang(compiled):
    spec = objectfile.read(compiled, "modx")
    events, scratch = spec.map("events"), spec.map("km_scratch")
    assert (events.type, events.type_name, events.max_entries) == (4, "perf_event_array", 0)
    assert (str(events.key), events.key_size, events.value_size) == ("s32", 4, 4)
    assert (scratch.type_name, scratch.value_size) == ("percpu_array", 256)
    assert str(scratch.value) == "union km_modx_messages"


def test_messages_of_clang(compiled):
    spec = objectfile.read(compiled, "modx")
    assert [(each.name, each.id) for each in spec.messages] == [("opened", 1), ("said", 3)]
    opened = spec.message("opened").layout
    assert opened.struct.format == "<QHHHHQI2s?1x16s"
    assert opened.field("took").unit == "ns"
    said = spec.message("said").layout
    assert (said.size, said.tail.name, said.tail.offset) == (20, "words", 20)
    with pytest.raises(MissingMessageError, match="modx: has no message shut; it has opened, said"):
        spec.message("shut")


def test_tunables_of_clang(compiled):
    spec = objectfile.read(compiled, "modx")
    found = {each.name: (each.kind, each.default, each.unit, each.doc) for each in spec.tunables}
    assert found == {
        "km_module_id": ("u16", 0, None, None),
        "slow": ("u64", 250, "ns", "longer than this is slow"),
        "bias": ("s32", -3, None, None),
        "loud": ("bool", True, None, None),
        "word": ("char[]", b"hello", None, None),
    }
    assert [each.name for each in spec.tunables if each.framework] == ["km_module_id"]
    for each in spec.tunables:
        assert pack(each, each.default) == spec.rodata[each.offset : each.offset + each.size]


def test_tunables_refuse_what_does_not_fit(compiled):
    spec = objectfile.read(compiled, "modx")
    assert pack(spec.tunable("bias"), -1) == b"\xff\xff\xff\xff"
    assert pack(spec.tunable("word"), "héé") == "héé".encode().ljust(8, b"\0")
    for name, value, says in (
        ("slow", -1, "slow is -1, expected 0 to 18446744073709551615"),
        ("bias", 1 << 31, "2147483648, expected -2147483648 to 2147483647"),
        ("loud", 2, "loud is 2, expected true or false"),
        ("slow", "much", "expected 0 to"),
        ("word", "too long", "up to 7 bytes of text"),
        ("word", 7, "up to 7 bytes of text"),
    ):
        with pytest.raises(ConfigError, match=says):
            pack(spec.tunable(name), value)


def test_specs_are_values(compiled):
    assert objectfile.read(compiled, "modx") == objectfile.read(compiled, "modx")


def test_an_object_of_another_architecture_is_refused():
    spec = objectfile.read(made(BtfWriter(), arch=b"arm64\0"), "modx")
    check_arch(spec, "aarch64")
    with pytest.raises(ObjectError, match="object is for arm64, this machine is x86_64"):
        check_arch(spec, "x86_64")
    anywhere = objectfile.read(made(BtfWriter(), arch=None), "modx")
    assert anywhere.arch is None
    check_arch(anywhere, "riscv64")


def test_big_endian_is_refused(tmp_path):
    source = tmp_path / "big.bpf.c"
    source.write_text(SOURCE, encoding="utf-8")
    with pytest.raises(ObjectError, match="wrong endianness: big endian, expected little"):
        objectfile.read(compile_bpf(source, "-target", "bpfeb"), "modx")


def made(writer, **options):
    return bpf_object(writer.to_bytes(), **options).to_bytes()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not an ELF file: starts with nothing"),
        (b"#!/bin/sh\n", "not an ELF file: starts with 23 21 2f 62"),
        (b"\x7fELF\2\1\1", "truncated ELF: 7 bytes"),
        (bpf_object(b"").to_bytes(elf_class=1), "wrong ELF class 1, expected 2"),
        (bpf_object(b"").to_bytes(encoding=2), "wrong endianness: big endian"),
        (bpf_object(b"").to_bytes(machine=62), "machine is EM_X86_64, expected EM_BPF"),
        (bpf_object(b"").to_bytes()[:-40], "truncated ELF: section table ends"),
        (bpf_object(None).to_bytes(), "section .BTF is missing; build with clang -g"),
        (made(BtfWriter(), license_=None), "section license is missing or empty"),
        (made(BtfWriter(), license_=b"\0"), "section license is missing or empty"),
        (made(BtfWriter(), license_=b"\xff\0"), "section license does not hold text"),
    ],
)
def test_what_is_no_object_of_ours(data, says):
    with pytest.raises(ObjectError, match=says) as caught:
        objectfile.read(data, "modx")
    assert str(caught.value).startswith("modx: ")


def test_compressed_and_truncated_sections_are_refused():
    elf = bpf_object(None)
    elf.section(".BTF", b"x" * 64, flags=SHF_COMPRESSED)
    with pytest.raises(ObjectError, match=r"section .BTF is compressed; build without -gz"):
        objectfile.read(elf.to_bytes(), "modx")
    data = bytearray(bpf_object(b"x" * 64).to_bytes())
    table = struct.unpack_from("<Q", data, 40)[0]
    struct.pack_into("<Q", data, table + 3 * 64 + 32, 1 << 40)  # size of the third section
    with pytest.raises(ObjectError, match=r"truncated ELF: section .BTF ends at"):
        objectfile.read(bytes(data), "modx")


def test_old_maps_are_refused():
    elf = bpf_object(BtfWriter().to_bytes())
    elf.section("maps", bytes(20))
    with pytest.raises(ObjectError, match="section maps is of the old kind"):
        objectfile.read(elf.to_bytes(), "modx")


def hooked(*texts):
    writer = BtfWriter()
    function = writer.function("f")
    for text in texts:
        writer.tag(text, function)
    return made(writer, programs=[("kprobe/x", "f")])


def test_hook_tags():
    spec = objectfile.read(hooked("km_hook:end:END", "km_hook:end:END", "other"), "modx")
    assert (spec.program("f").hook, spec.program("f").tag) == ("end", "END")
    for texts, says in (
        (["km_hook:end:LATER"], "tagged 'km_hook:end:LATER', expected km_hook:<hook>:<START|END"),
        (["km_hook:end"], "tagged 'km_hook:end'"),
        (["km_hook::END"], "tagged 'km_hook::END'"),
        (["km_hook:a:END", "km_hook:b:END"], "serves one hook, found km_hook:a:END and km_hook:b"),
    ):
        with pytest.raises(ObjectError) as caught:
            objectfile.read(hooked(*texts), "modx")
        assert says in str(caught.value)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("kprobe/fn", ("kprobe", "fn", True, False)),
        ("kretprobe/fn", ("kretprobe", "fn", True, False)),
        ("?fexit.s/fn", ("fexit", "fn", False, True)),
        ("tp_btf/sched_process_exit", ("tp_btf", "sched_process_exit", True, False)),
        ("raw_tp/x", ("raw_tp", "x", True, False)),
        ("raw_tracepoint/x", ("raw_tp", "x", True, False)),
        ("raw_tp", ("raw_tp", "", True, False)),
        ("tracepoint/net/netif_rx", ("tracepoint", "net/netif_rx", True, False)),
        ("tp/net/netif_rx", ("tracepoint", "net/netif_rx", True, False)),
        ("iter/task", ("iter", "task", True, False)),
        ("xdp", ("xdp", "", True, False)),
        ("kprobe.multi/tcp_*", ("kprobe.multi", "tcp_*", True, False)),
    ],
)
def test_sections_say_where_a_program_attaches(section, expected):
    writer = BtfWriter()
    writer.function("f")
    program = objectfile.read(made(writer, programs=[(section, "f")]), "modx").program("f")
    assert (program.kind, program.target, program.autoload, program.sleepable) == expected


def test_subprograms_are_no_programs():
    elf = bpf_object(BtfWriter().to_bytes(), programs=[(".text", "helper"), ("kprobe/x", "f")])
    elf.program("kprobe/y", "static_one", local=True)
    spec = objectfile.read(elf.to_bytes(), "modx")
    assert [each.name for each in spec.programs] == ["f"]


def with_map(**members):
    writer = BtfWriter()
    declared = {name: make(writer) for name, make in members.items()}
    writer.section(".maps", [(writer.map("m", **declared), 0, 32)])
    return made(writer)


def number(value):
    return lambda writer: writer.number(value)


def test_maps_by_size_and_by_type():
    spec = objectfile.read(
        with_map(type=number(3), key_size=number(4), max_entries=number(64), map_flags=number(1),
                 values=lambda writer: writer.array(writer.pointer(), 0)),
        "modx",
    )  # fmt: skip
    each = spec.map("m")
    assert (each.type_name, each.key_size, each.value_size, each.max_entries, each.flags) == (
        "prog_array", 4, 4, 64, 1,
    )  # fmt: skip
    assert each.key is None
    assert each.value is None


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"max_entries": number(1)}, "map m: has no type"),
        ({"type": lambda writer: writer.plain("u32")}, "type must be declared with __uint or"),
        ({"type": lambda writer: writer.pointer(writer.plain("u32"))}, "with __uint, found"),
        (
            {"type": number(1), "key_size": number(8),
             "key": lambda writer: writer.pointer(writer.plain("u32"))},
            "key_size is 8, but u32 has 4 bytes",
        ),
    ],
)  # fmt: skip
def test_maps_that_contradict_themselves(members, says):
    with pytest.raises(ObjectError, match=says):
        objectfile.read(with_map(**members), "modx")


def with_messages(names=("first",), *, ids=None, counters=None):
    writer = BtfWriter()
    header = writer.header()
    messages = {
        name: writer.struct(f"km_modx_{name}", 16, [("header", header, 0)]) for name in names
    }
    maps = [writer.scratch("modx", messages, ids=ids)]
    if counters:
        type_, entries = writer.number(6), writer.number(counters)
        maps.append(writer.map("km_counters", type=type_, max_entries=entries))
    writer.section(".maps", [(each, 0, 32) for each in maps])
    return made(writer)


def test_messages_come_by_id_and_private_members_are_passed_over():
    data = with_messages(("late", "early", "_room"), ids={"late": 9, "early": 2, "_last": 10})
    spec = objectfile.read(data, "modx")
    assert [(each.name, each.id) for each in spec.messages] == [("early", 2), ("late", 9)]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (with_messages(("a",), ids={"b": 1}), "enumerator b has no member; member a has no enum"),
        (with_messages(("a",), ids={"a": 0}), "KM_MODX_A is 0, expected an id of its own from 1"),
        (with_messages(("a", "b"), ids={"a": 1, "b": 1}), "KM_MODX_B is 1, expected an id of its"),
        (
            with_messages(("a",), ids={"a": 64}, counters=64),
            "id 64, km_counters counts those below",
        ),
    ],
)
def test_messages_and_ids_must_pair(data, says):
    with pytest.raises(LayoutError, match=says):
        objectfile.read(data, "modx")


def test_the_scratch_map_must_hold_the_union():
    writer = BtfWriter()
    pointer = writer.pointer(writer.plain("u64"))
    scratch = writer.map("km_scratch", type=writer.number(6), value=pointer)
    writer.section(".maps", [(scratch, 0, 32)])
    with pytest.raises(LayoutError, match="must hold the union of messages, found"):
        objectfile.read(made(writer), "modx")
    writer = BtfWriter()
    union = writer.union("km_modx_messages", 8, [("id", writer.plain("u64"), 0)])
    scratch = writer.map("km_scratch", type=writer.number(6), value=writer.pointer(union))
    writer.section(".maps", [(scratch, 0, 32)])
    with pytest.raises(LayoutError, match="must begin with the enum of messages"):
        objectfile.read(made(writer), "modx")


def test_tunables_lie_within_their_section():
    def with_tunable(offset):
        writer = BtfWriter()
        volatile = writer.add(VOLATILE, "", writer.plain("u32"))
        variable = writer.variable("limit", writer.add(CONST, "", volatile))
        writer.section(".rodata", [(variable, 0, 4)])
        elf = bpf_object(writer.to_bytes())
        rodata = elf.section(".rodata", struct.pack("<II", 1, 2))
        elf.symbol("limit", STT_OBJECT, rodata, offset, size=4)
        return elf.to_bytes()

    (tunable,) = objectfile.read(with_tunable(4), "modx").tunables
    assert (tunable.offset, tunable.default) == (4, 2)
    with pytest.raises(ObjectError, match=r"tunable limit ends at 12 of 8 bytes of \.rodata"):
        objectfile.read(with_tunable(8), "modx")


def test_damaged_types_name_the_object():
    with pytest.raises(BtfError, match=r"modx: .BTF: magic is"):
        objectfile.read(bpf_object(bytes(64)).to_bytes(), "modx")
