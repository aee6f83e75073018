# SPDX-License-Identifier: Apache-2.0
"""
Write a minimal relocatable BPF ELF file from Python values.
"""

from __future__ import annotations

import struct

EM_BPF = 247
SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_NOBITS = 1, 2, 3, 8
SHF_ALLOC, SHF_EXECINSTR, SHF_COMPRESSED = 2, 4, 0x800
STT_OBJECT, STT_FUNC = 1, 2

#: r0 = 0; exit
PROGRAM = bytes.fromhex("b700000000000000 9500000000000000")


class ElfWriter:
    """
    Sections and symbols, in order.
    """

    def __init__(self) -> None:
        self.sections: list[list] = []  # name, type, flags, content, link, entry size
        self.symbols: list[tuple[str, int, int, int, int]] = []

    def section(self, name, content=b"", type_=SHT_PROGBITS, flags=SHF_ALLOC) -> int:
        self.sections.append([name, type_, flags, content, 0, 0])
        return len(self.sections)

    def program(self, section: str, name: str, *, local=False) -> None:
        """
        Append an executable section with one function.
        """
        number = self.section(section, PROGRAM, flags=SHF_ALLOC | SHF_EXECINSTR)
        self.symbol(name, STT_FUNC, number, size=len(PROGRAM), local=local)

    def symbol(self, name, type_, section, value=0, *, size=0, local=False) -> None:
        info = (0 if local else 1) << 4 | type_
        self.symbols.append((name, info, section, value, size))

    def to_bytes(self, *, machine=EM_BPF, elf_class=2, encoding=1) -> bytes:
        strings = bytearray(1)

        def name(text: str) -> int:
            offset = len(strings)
            strings.extend(text.encode() + b"\0")
            return offset

        table = bytes(24) + b"".join(
            struct.pack("<IBBHQQ", name(text), info, 0, section, value, size)
            for text, info, section, value, size in self.symbols
        )
        names = len(self.sections) + 2
        every = [
            ["", 0, 0, b"", 0, 0],
            *self.sections,
            [".symtab", SHT_SYMTAB, 0, table, names, 24],
            [".strtab", SHT_STRTAB, 0, b"", 0, 0],
        ]
        name_offsets = [name(each[0]) for each in every]
        every[-1][3] = bytes(strings)
        body, headers = bytearray(), b""
        for (_, type_, flags, content, link, entry), at in zip(every, name_offsets, strict=True):
            headers += struct.pack(
                "<IIQQQQIIQQ", at, type_, flags, 0, 64 + len(body), len(content), link, 0, 8, entry
            )
            body += content.ljust(-(-len(content) // 8) * 8, b"\0")
        ident = bytes((0x7F, *b"ELF", elf_class, encoding, 1)).ljust(16, b"\0")
        head = struct.pack(
            "<HHIQQQIHHHHHH",
            1, machine, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, len(every), len(every) - 1,
        )  # fmt: skip
        return ident + head + bytes(body) + headers


def bpf_object(btf: bytes | None, *, license_=b"GPL\0", arch=b"x86_64\0", programs=()) -> ElfWriter:
    """
    Begin an object as modules have them; *programs* are (section, name).
    """
    writer = ElfWriter()
    for section, name in programs:
        writer.program(section, name)
    if license_ is not None:
        writer.section("license", license_)
    if arch is not None:
        writer.section("km.arch", arch)
    if btf is not None:
        writer.section(".BTF", btf, flags=0)
    return writer
