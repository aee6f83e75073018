# SPDX-License-Identifier: Apache-2.0
"""
Write seeds for fuzz_objectfile.py: ``python seeds.py FOLDER OBJECT...``.

Each object file gives two seeds, itself and its ``.BTF``, each behind the byte
that chooses the door.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kprobe_modules.elf import read_elf


def main(folder: Path, objects: list[Path]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in objects:
        data = path.read_bytes()
        elf = read_elf(data, path.name)
        (folder / path.name).write_bytes(b"E" + data)
        section = elf.section(".BTF")
        if section is not None:
            (folder / f"{path.name}.btf").write_bytes(b"B" + elf.content(section))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(each) for each in sys.argv[2:]])
