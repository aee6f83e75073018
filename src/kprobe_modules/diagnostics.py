# SPDX-License-Identifier: Apache-2.0
"""
What the programs of one module say about themselves, as records.

The framework's counterpart of a handler: the messages are those of
bpf/km/diagnostic.h, which any program of any module may write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kprobe_modules.records import Log

if TYPE_CHECKING:
    from kprobe_modules.spec import ObjectSpec

__all__ = ["Diagnostics"]


class Diagnostics:
    """
    Turns a module's ``bpf_log`` messages into records.

    Args:
        module: its name.
        spec: its object, which knows codes and lines.
    """

    def __init__(self, module: str, spec: ObjectSpec) -> None:
        self._module = module
        self._codes = {code.id: code for code in spec.codes}
        self._sites = spec.sites

    def on_bpf_log(  # noqa: PLR0913 - one per field of the message
        self,
        time: int,
        cpu: int,
        code: int,
        site: int,
        argument_0: int,
        argument_1: int,
        argument_2: int,
    ) -> Log:
        """
        Return the record of one log.
        """
        words = (argument_0, argument_1, argument_2)
        known = self._codes.get(code)
        place = self._sites.get(site)
        if known is None:
            name, arguments = f"code_{code}", {f"argument_{n}": w for n, w in enumerate(words)}
        else:
            name = known.name
            pairs = zip(known.arguments, words, strict=False)
            arguments = {argument.name: argument.read(word) for argument, word in pairs}
        file, line = (place.file, place.line) if place else ("", 0)
        return Log(time, self._module, name, file, line, cpu, arguments)
