# SPDX-License-Identifier: Apache-2.0
"""
What the programs of one module say about themselves, as records.

The framework's counterpart of a handler: the messages are those of
bpf/km/diagnostic.h, which any program of any module may write.
"""

from __future__ import annotations

import os
from array import array
from typing import TYPE_CHECKING

from kprobe_modules.decode import text
from kprobe_modules.records import Log, StackTrace

if TYPE_CHECKING:
    from collections.abc import Callable

    from kprobe_modules.spec import ObjectSpec
    from kprobe_modules.stacks import Frame, ObservedResolver

__all__ = ["Diagnostics"]


class Diagnostics:
    """
    Turns a module's ``bpf_log`` and ``stack_trace`` messages into records.

    Args:
        module: its name.
        spec: its object, which knows codes and lines.
        resolver: gives what names the frames of stacks; called when there is one.
            None leaves them numbers.
    """

    def __init__(
        self, module: str, spec: ObjectSpec, resolver: Callable[[], ObservedResolver] | None = None
    ) -> None:
        self._module = module
        self._resolver = resolver
        self._messages = {each.id: each.name for each in (*spec.messages, *spec.diagnostics)}
        self._codes = {code.id: code for code in spec.codes}
        self._sites = spec.sites

    def on_bpf_log(
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
            name = f"code_{code}"
            arguments: dict[str, int | bool | str]
            arguments = {f"argument_{place}": word for place, word in enumerate(words)}
        else:
            name = known.name
            pairs = zip(known.arguments, words, strict=False)
            arguments = {argument.name: argument.read(word) for argument, word in pairs}
        file, line = (place.file, place.line) if place else ("", 0)
        return Log(time, self._module, name, file, line, cpu, arguments)

    def on_stack_trace(  # noqa: PLR0913, PLR0917 - one per field of the message
        self,
        time: int,
        cpu: int,
        delay: int,
        pid: int,
        tid: int,
        kernel_size: int,
        user_size: int,
        comm: bytes,
        of_message: int,
        frames: bytes,
    ) -> StackTrace:
        """
        Return the record of one stack trace, its frames named while the process may live.
        """
        addresses = array("Q", frames)
        split = max(kernel_size, 0) // addresses.itemsize
        errors = [
            f"no {what} stack: {os.strerror(-size)}"
            for what, size in (("kernel", kernel_size), ("user", user_size))
            if size < 0
        ]
        return StackTrace(
            time,
            self._module,
            self._messages.get(of_message, str(of_message)),
            time - delay,
            cpu,
            pid,
            tid,
            text(comm),
            *self._frames(pid, addresses[:split], addresses[split:]),
            "; ".join(errors) or None,
        )

    def _frames(
        self, pid: int, kernel: array[int], user: array[int]
    ) -> tuple[tuple[Frame, ...], tuple[Frame, ...]]:
        from kprobe_modules.stacks import Frame

        if self._resolver is None:
            return tuple(Frame("", each) for each in kernel), tuple(
                Frame("", each) for each in user
            )
        resolver = self._resolver()
        return resolver.kernel(kernel), resolver.user(pid, user) if user else ()
