# SPDX-License-Identifier: Apache-2.0
"""
Object file to spec: what a ``.bpf.o`` holds, without asking a kernel.

Programs come from the functions in executable sections, hooks from their
``km_hook:<hook>:<TAG>`` declaration tags, maps from the ``.maps`` section,
messages from the members of the union that ``km_scratch`` holds, tunables from
the ``const volatile`` variables of ``.rodata``, the architecture from section
``km.arch``, what its programs log from ``km.types`` and ``km.sites``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kprobe_modules import btf as btf_
from kprobe_modules.btf import Btf, BtfType, Kind
from kprobe_modules.codes import SITES_SECTION, find_unions, read_codes, read_sites
from kprobe_modules.elf import STT_FUNC, STT_OBJECT, Elf, Section, Symbol, read_elf
from kprobe_modules.errors import LayoutError, ObjectError
from kprobe_modules.layout import layout
from kprobe_modules.mapdefinition import read_maps
from kprobe_modules.section import attach_point
from kprobe_modules.spec import MapSpec, MessageSpec, ObjectSpec, ProgramSpec, Tunable
from kprobe_modules.tunable import read_tunables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "MapSpec",
    "MessageSpec",
    "ObjectSpec",
    "ProgramSpec",
    "Tunable",
    "read",
]

SCRATCH_MAP: Final = "km_scratch"
COUNTERS_MAP: Final = "km_counters"
TAGS: Final = ("START", "END", "EXISTING", "TELEMETRY")
MAX_MESSAGE_ID: Final = 0xFFFF

_HOOK_TAG: Final = "km_hook:"
_ARCH_SECTION: Final = "km.arch"


def read(data: bytes, name: str) -> ObjectSpec:
    """
    Read an object file.

    *data* is its content, *name* names it in the spec and in errors.

    Raises:
        ObjectError: it is not a little-endian BPF ELF with BTF and a licence,
            or is damaged.
        BtfError: its types are damaged.
        LayoutError: its messages are not as messages must be.
    """
    elf = read_elf(data, name)
    btf = _read_btf(elf)
    symbols = tuple(elf.symbols())
    maps = read_maps(btf, has_legacy=elf.section("maps") is not None)
    rodata = elf.section(".rodata")
    constants = b"" if rodata is None else elf.content(rodata)
    offsets = _offsets(symbols, rodata)
    sites = elf.section(SITES_SECTION)
    messages, diagnostics = _messages(btf, maps), _diagnostics(btf)
    _check_ids(btf, messages, diagnostics)
    return ObjectSpec(
        name=name,
        arch=_text(elf, _ARCH_SECTION),
        license=_license(elf),
        programs=tuple(_programs(elf, btf, symbols)),
        maps=maps,
        messages=messages,
        tunables=read_tunables(btf, constants, offsets),
        rodata=constants,
        diagnostics=diagnostics,
        codes=read_codes(btf),
        sites={} if sites is None else read_sites(elf.content(sites), name),
    )


def _read_btf(elf: Elf) -> Btf:
    section = elf.section(".BTF")
    if section is None:
        msg = f"{elf.name}: section .BTF is missing; build with clang -g and keep it when stripping"
        raise ObjectError(msg)
    return btf_.parse(elf.content(section), elf.name)


def _license(elf: Elf) -> str:
    text = _text(elf, "license")
    if not text:
        msg = f'{elf.name}: section license is missing or empty; add char LICENSE[] SEC("license")'
        raise ObjectError(msg)
    return text


def _text(elf: Elf, name: str) -> str | None:
    section = elf.section(name)
    if section is None:
        return None
    raw = elf.content(section).partition(b"\0")[0]
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError as error:
        msg = f"{elf.name}: section {name} does not hold text"
        raise ObjectError(msg) from error


def _offsets(symbols: Sequence[Symbol], section: Section | None) -> dict[str, int]:
    # clang leaves the offsets of a DATASEC 0; libbpf takes them from the
    # symbols too.
    if section is None:
        return {}
    return {
        symbol.name: symbol.value
        for symbol in symbols
        if symbol.type == STT_OBJECT and symbol.section == section.number
    }


def _programs(elf: Elf, btf: Btf, symbols: Sequence[Symbol]) -> Iterator[ProgramSpec]:
    tags = _function_tags(btf)
    found = [
        (symbol.section, symbol.value, symbol.name)
        for symbol in symbols
        if symbol.type == STT_FUNC and not symbol.local
    ]
    for index, _, name in sorted(found):
        section = elf.sections[index]
        # .text holds subprograms that programs call.
        if not section.executable or section.name == ".text":
            continue
        point = attach_point(section.name)
        hook, tag = _hook(elf.name, name, tags.get(name, ()))
        yield ProgramSpec(
            name=name,
            section=section.name,
            kind=point.kind,
            target=point.target,
            hook=hook,
            tag=tag,
            autoload=point.autoload,
            sleepable=point.sleepable,
        )


def _function_tags(btf: Btf) -> dict[str, tuple[str, ...]]:
    return {
        type_.name: texts
        for type_ in btf
        if type_.kind is Kind.FUNC and (texts := btf.tags(type_.id))
    }


def _hook(origin: str, program: str, texts: Sequence[str]) -> tuple[str | None, str | None]:
    # A macro may declare a function twice, which writes its tag twice.
    hooks = sorted({text for text in texts if text.startswith(_HOOK_TAG)})
    if not hooks:
        return None, None
    if len(hooks) > 1:
        msg = f"{origin}: program {program} serves one hook, found {' and '.join(hooks)}"
        raise ObjectError(msg)
    hook, colon, tag = hooks[0].removeprefix(_HOOK_TAG).partition(":")
    if not hook or not colon or tag not in TAGS:
        expected = f"{_HOOK_TAG}<hook>:<{'|'.join(TAGS)}>"
        msg = f"{origin}: program {program} is tagged {hooks[0]!r}, expected {expected}"
        raise ObjectError(msg)
    return hook, tag


def _messages(btf: Btf, maps: Sequence[MapSpec]) -> tuple[MessageSpec, ...]:
    union = _scratch_union(btf)
    if union is None:
        return ()
    limit = next((each.max_entries for each in maps if each.name == COUNTERS_MAP), 0)
    messages = _union_messages(btf, union)
    for message in messages:
        if limit and message.id >= limit:
            msg = (
                f"{btf.origin}: message {message.name} has id {message.id},"
                f" {COUNTERS_MAP} counts those below {limit}"
            )
            raise LayoutError(msg)
    return messages


def _diagnostics(btf: Btf) -> tuple[MessageSpec, ...]:
    found = (_union_messages(btf, union) for union in find_unions(btf, "_message"))
    return tuple(message for messages in found for message in messages)


def _check_ids(
    btf: Btf, messages: Sequence[MessageSpec], diagnostics: Sequence[MessageSpec]
) -> None:
    taken = {message.id: message.name for message in diagnostics}
    for message in messages:
        if message.id in taken:
            other = f"which is the framework's {taken[message.id]}"
            msg = f"{btf.origin}: message {message.name} has id {message.id}, {other}"
            raise LayoutError(msg)


def _union_messages(btf: Btf, union: BtfType) -> tuple[MessageSpec, ...]:
    ids = _message_ids(btf, union)
    members = {
        member.name: member for member in union.members[1:] if not member.name.startswith("_")
    }
    missing = [f"enumerator {name} has no member" for name in ids if name not in members]
    missing += [f"member {name} has no enumerator" for name in members if name not in ids]
    if missing:
        msg = f"{btf.origin}: union {union.name}: {'; '.join(missing)}"
        raise LayoutError(msg)
    return tuple(
        MessageSpec(name, number, layout(btf, members[name].ref))
        for name, number in sorted(ids.items(), key=lambda pair: pair[1])
    )


def _scratch_union(btf: Btf) -> BtfType | None:
    value = None
    section = btf.find(Kind.DATASEC, ".maps")
    for variable in section.variables if section else ():
        declaration = btf.type(variable.ref)
        if declaration.name == SCRATCH_MAP:
            members = btf.resolve(declaration.ref).members
            value = next((member for member in members if member.name == "value"), None)
    if value is None:
        return None
    union = btf.resolve(btf.resolve(value.ref).ref)
    if union.kind is not Kind.UNION or not union.members:
        msg = f"{btf.origin}: map {SCRATCH_MAP} must hold the union of messages, found {union}"
        raise LayoutError(msg)
    return union


def _message_ids(btf: Btf, union: BtfType) -> dict[str, int]:
    """
    Return message name to id, from the enum that is the union's first member.
    """
    enum = btf.resolve(union.members[0].ref)
    if enum.kind not in (Kind.ENUM, Kind.ENUM64) or not enum.name.endswith("message"):
        expected = "the enum of messages, km_<entity>_message"
        msg = f"{btf.origin}: union {union.name} must begin with {expected}, found {enum}"
        raise LayoutError(msg)
    prefix = enum.name.removesuffix("message").upper()
    ids: dict[str, int] = {}
    for enumerator, value in enum.values:
        name = enumerator.removeprefix(prefix).lower()
        if not enumerator.startswith(prefix) or not name:
            msg = f"{btf.origin}: enumerator {enumerator} must begin with {prefix}"
            raise LayoutError(msg)
        if name.startswith("_"):
            continue
        if name in ids or value in ids.values() or not 0 < value <= MAX_MESSAGE_ID:
            msg = (
                f"{btf.origin}: enumerator {enumerator} is {value}, expected an id of its own"
                f" from 1 to {MAX_MESSAGE_ID}"
            )
            raise LayoutError(msg)
        ids[name] = value
    return ids
