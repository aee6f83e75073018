# SPDX-License-Identifier: Apache-2.0
"""
Where records go.

A sink is any callable that takes a record; `Output` adds the flush that the
command line calls once per batch.  Sinks know nothing of BPF, and nothing of any
entity: they see the attrs fields of whatever record they are given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from kprobe_modules.records import Record

__all__ = ["Output", "discard"]


class Output(Protocol):
    """
    A sink that writes to a stream.
    """

    def __call__(self, record: Record) -> None:
        """
        Take one record; it may stay in the stream's buffer.
        """

    def flush(self) -> None:
        """
        Hand everything taken so far to the reader.

        Raises:
            BrokenPipeError: the reader is gone.
        """


class _Discard:
    def __call__(self, record: Record) -> None:
        pass

    def flush(self) -> None:
        pass


discard: Output = _Discard()
"""Takes everything and writes nothing, for measuring."""
