# SPDX-License-Identifier: Apache-2.0
"""
Sections and symbols of a BPF object, from its ELF bytes.

Headers are read with pyelftools' ``ELFStructs``.  Its ``ELFFile`` is left out
on purpose: it imports the DWARF readers, which doubles the cost of the import
(18 ms became 40 on the machine that this was written on, and the first
record is due 150 ms after start), it inflates compressed sections of any
size, and it builds an object per symbol, of which clang writes one for each
branch.  Nothing of pyelftools is imported before the first object is read.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kprobe_modules.errors import ObjectError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Elf", "Section", "Symbol", "read_elf"]

#: Bounds.  Modules' objects are 10 to 200 KB with some sixty sections.
MAX_BYTES: Final = 16 << 20
MAX_SECTIONS: Final = 4096
MAX_SYMBOLS: Final = 1 << 17
MAX_NAME: Final = 4096

_MACHINE: Final = "EM_BPF"
_HEADER_SIZE: Final = 64
_SECTION_SIZE: Final = 64
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_SHF_EXECINSTR: Final = 4
_SHF_COMPRESSED: Final = 0x800
_SHT_SYMTAB: Final = "SHT_SYMTAB"
_SHT_NOBITS: Final = "SHT_NOBITS"

STT_OBJECT: Final = 1
STT_FUNC: Final = 2
STB_LOCAL: Final = 0


class Section(NamedTuple):
    """
    One section.

    Attributes:
        number: its index in the section table.
        name: as in the section header.
        type: ``SHT_…``, or the number of a type that has no name.
        offset: bytes from the start of the file.
        size: bytes.
        link: index of the section it refers to.
        executable: whether it holds instructions.
        compressed: whether its bytes would have to be inflated.
    """

    number: int
    name: str
    type: str | int
    offset: int
    size: int
    link: int
    executable: bool
    compressed: bool


class Symbol(NamedTuple):
    """
    One function or object of the symbol table.
    """

    name: str
    type: int
    local: bool
    section: int
    value: int
    size: int


class Elf:
    """
    The parts of one object file; what is asked for is checked when asked.
    """

    def __init__(self, data: bytes, name: str, sections: tuple[Section, ...]) -> None:
        self.data = data
        self.name = name
        self.sections = sections
        self._by_name = {section.name: section for section in reversed(sections)}

    def section(self, name: str) -> Section | None:
        """
        Return the first section of this name.
        """
        return self._by_name.get(name)

    def content(self, section: Section) -> bytes:
        """
        Return the bytes of a section, zeros for one without any in the file.

        Raises:
            ObjectError: they are not all there, or are compressed.
        """
        if section.compressed:
            msg = f"{self.name}: section {section.name} is compressed; build without -gz"
            raise ObjectError(msg)
        if section.type == _SHT_NOBITS:
            return bytes(min(section.size, MAX_BYTES))
        end = section.offset + section.size
        if end > len(self.data):
            found = f"ends at {end} of {len(self.data)} bytes"
            msg = f"{self.name}: truncated ELF: section {section.name} {found}"
            raise ObjectError(msg)
        return self.data[section.offset : end]

    def symbols(self) -> Iterator[Symbol]:
        """
        Yield the functions and objects of the symbol table.

        Labels, sections and undefined symbols are left out.

        Raises:
            ObjectError: the table or its strings are damaged.
        """
        table = next((each for each in self.sections if each.type == _SHT_SYMTAB), None)
        if table is None:
            return
        if not table.link < len(self.sections):
            msg = f"{self.name}: damaged ELF: names of symbols are in section {table.link}"
            raise ObjectError(msg)
        strings = self.content(self.sections[table.link])
        content = self.content(table)
        count, rest = divmod(len(content), _SYMBOL.size)
        if rest or count > MAX_SYMBOLS:
            msg = f"{self.name}: damaged ELF: symbol table has {len(content)} bytes"
            raise ObjectError(msg)
        for at, info, _, section, value, size in _SYMBOL.iter_unpack(content):
            if info & 0xF in (STT_OBJECT, STT_FUNC) and 0 < section < len(self.sections):
                name = _string(strings, at, self.name)
                yield Symbol(name, info & 0xF, info >> 4 == STB_LOCAL, section, value, size)


def read_elf(data: bytes, name: str) -> Elf:
    """
    Read the headers of an object file.

    *name* says in errors which object it is.

    Raises:
        ObjectError: not ELF, not 64 bits, not little endian, not BPF, or
            truncated.
    """
    _check_identity(data, name)
    from elftools.common.exceptions import ELFError
    from elftools.construct import ConstructError

    try:
        headers, names_at = _headers(data, name)
    except (ELFError, ConstructError) as error:
        msg = f"{name}: damaged ELF: {error}"
        raise ObjectError(msg) from error
    if not names_at < len(headers):
        msg = f"{name}: damaged ELF: names of sections are in section {names_at} of {len(headers)}"
        raise ObjectError(msg)
    names = _section(names_at, "(names)", headers[names_at])
    strings = Elf(data, name, ()).content(names)
    sections = (
        _section(index, _string(strings, header["sh_name"], name), header)
        for index, header in enumerate(headers)
    )
    return Elf(data, name, tuple(sections))


def _check_identity(data: bytes, name: str) -> None:
    if len(data) > MAX_BYTES:
        msg = f"{name}: {len(data)} bytes, more than the {MAX_BYTES} an object may have"
        raise ObjectError(msg)
    if data[:4] != b"\x7fELF":
        msg = f"{name}: not an ELF file: starts with {data[:4].hex(' ') or 'nothing'}"
        raise ObjectError(msg)
    if len(data) < _HEADER_SIZE:
        msg = f"{name}: truncated ELF: {len(data)} bytes, its header alone has {_HEADER_SIZE}"
        raise ObjectError(msg)
    if data[4] != 2:  # noqa: PLR2004 - ELFCLASS64
        msg = f"{name}: wrong ELF class {data[4]}, expected 2 (64 bits)"
        raise ObjectError(msg)
    if data[5] != 1:
        found = "big endian" if data[5] == 2 else f"data encoding {data[5]}"  # noqa: PLR2004
        msg = f"{name}: wrong endianness: {found}, expected little (clang --target=bpfel)"
        raise ObjectError(msg)


def _headers(data: bytes, name: str) -> tuple[list[dict[str, Any]], int]:
    from elftools.common.utils import struct_parse
    from elftools.elf.structs import ELFStructs

    structs = ELFStructs(little_endian=True, elfclass=64)
    structs.create_basic_structs()
    stream = io.BytesIO(data)
    header = struct_parse(structs.Elf_Ehdr, stream, 0)
    if header["e_machine"] != _MACHINE:
        msg = f"{name}: machine is {header['e_machine']}, expected {_MACHINE} (clang --target=bpf)"
        raise ObjectError(msg)
    start, count = header["e_shoff"], header["e_shnum"]
    if header["e_shentsize"] != _SECTION_SIZE or not 0 < count <= MAX_SECTIONS:
        found = f"{count} sections of {header['e_shentsize']} bytes each"
        msg = f"{name}: damaged ELF: {found}, expected 1 to {MAX_SECTIONS} of {_SECTION_SIZE}"
        raise ObjectError(msg)
    if start + count * _SECTION_SIZE > len(data):
        found = f"section table ends at {start + count * _SECTION_SIZE} of {len(data)} bytes"
        msg = f"{name}: truncated ELF: {found}"
        raise ObjectError(msg)
    structs.create_advanced_structs(header["e_type"], header["e_machine"])
    table = [
        struct_parse(structs.Elf_Shdr, stream, start + index * _SECTION_SIZE)
        for index in range(count)
    ]
    return table, header["e_shstrndx"]


def _section(index: int, name: str, header: dict[str, Any]) -> Section:
    return Section(
        number=index,
        name=name,
        type=header["sh_type"],
        offset=header["sh_offset"],
        size=header["sh_size"],
        link=header["sh_link"],
        executable=bool(header["sh_flags"] & _SHF_EXECINSTR),
        compressed=bool(header["sh_flags"] & _SHF_COMPRESSED),
    )


def _string(strings: bytes, offset: int, name: str) -> str:
    end = strings.find(0, offset, offset + MAX_NAME)
    if end < 0:
        msg = f"{name}: damaged ELF: no name at {offset} of {len(strings)} bytes of names"
        raise ObjectError(msg)
    return strings[offset:end].decode("utf-8", "backslashreplace")
