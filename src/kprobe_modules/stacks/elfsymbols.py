# SPDX-License-Identifier: Apache-2.0
"""
Functions of an ELF file by their place in it, and its build id.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from kprobe_modules.stacks.table import SymbolTable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

__all__ = ["ElfSymbols", "prepare", "read_symbols"]

_STT_FUNC: Final = 2
_STT_GNU_IFUNC: Final = 10
#: st_name, st_info, st_other, st_shndx, st_value, st_size; and as 32 bits have them.
_SYMBOL_64: Final = struct.Struct("IBBHQQ")
_SYMBOL_32: Final = struct.Struct("IIIBBH")
#: Bound: the largest browser has some millions.
MAX_BYTES: Final = 256 << 20
#: Assembly has symbols without a size.
REACH: Final = 4096
_BUILD_ID: Final = 3


class ElfSymbols:
    """
    What an ELF file says of its functions.

    Attributes:
        build_id: in hexadecimal; empty if it has none.
        complete: whether it has a symbol table, and not only what it exports.
    """

    def __init__(
        self,
        table: SymbolTable,
        segments: tuple[tuple[int, int, int], ...],
        build_id: str,
        *,
        complete: bool,
    ) -> None:
        self._table = table
        self._segments = segments
        self.build_id = build_id
        self.complete = complete

    def with_table_of(self, other: ElfSymbols) -> ElfSymbols:
        """
        Return the symbols of another file with the same build id, for this one's bytes.
        """
        return ElfSymbols(other._table, self._segments, self.build_id, complete=other.complete)

    def address(self, offset: int) -> int | None:
        """
        Return the address that a byte of the file is linked at; None if it is not loaded.
        """
        for start, size, address in self._segments:
            if start <= offset < start + size:
                return address + offset - start
        return None

    def find(self, address: int) -> tuple[str, int] | None:
        """
        Return the function at a linked address, and how far into it that is.
        """
        return self._table.find(address)


def prepare() -> None:
    """
    Import what reads ELF files: some 40 ms, which nobody pays who has no stacks.
    """
    import elftools.elf.elffile  # noqa: F401


def read_symbols(stream: BinaryIO) -> ElfSymbols | None:
    """
    Read a file's symbols; None if it is no ELF file, or is damaged.
    """
    from elftools.common.exceptions import ELFError
    from elftools.construct import ConstructError
    from elftools.elf.elffile import ELFFile

    try:
        elf = ELFFile(stream)
        segments = tuple(
            (each["p_offset"], each["p_filesz"], each["p_vaddr"])
            for each in elf.iter_segments("PT_LOAD")
        )
        full = elf.get_section_by_name(".symtab")
        section = full or elf.get_section_by_name(".dynsym")
        symbols = _functions(elf, section) if section is not None else iter(())
        return ElfSymbols(
            SymbolTable(symbols, REACH), segments, _build_id(elf), complete=full is not None
        )
    except (ELFError, ConstructError, ValueError, KeyError, struct.error, OSError):
        return None


def _functions(elf: Any, section: Any) -> Iterator[tuple[int, int, bytes]]:  # noqa: ANN401
    """
    Yield address, size and name; an object per symbol would take minutes for some files.
    """
    strings = elf.get_section(section["sh_link"])
    if section["sh_size"] + strings["sh_size"] > MAX_BYTES:
        return
    names = strings.data()
    order = "<" if elf.little_endian else ">"
    layout = _SYMBOL_64 if elf.elfclass == 64 else _SYMBOL_32  # noqa: PLR2004
    for symbol in struct.Struct(order + layout.format).iter_unpack(section.data()):
        if layout is _SYMBOL_64:
            at, info, _, index, value, size = symbol
        else:
            at, value, size, info, _, index = symbol
        if info & 0xF in (_STT_FUNC, _STT_GNU_IFUNC) and index and value:
            yield value, size, names[at : names.index(b"\0", at)]


def _build_id(elf: Any) -> str:  # noqa: ANN401 - pyelftools has no types
    for segment in elf.iter_segments("PT_NOTE"):
        for note in segment.iter_notes():
            if note["n_type"] in ("NT_GNU_BUILD_ID", _BUILD_ID) and note["n_name"] == "GNU":
                return str(note["n_desc"])
    return ""
