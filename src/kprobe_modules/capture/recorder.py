# SPDX-License-Identifier: Apache-2.0
"""
Writing a capture, while a collector runs.
"""

from __future__ import annotations

import os
import platform
import threading
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Self

from kprobe_modules import specjson
from kprobe_modules.capture import drains, steps
from kprobe_modules.capture.observing import observed
from kprobe_modules.capture.series import Series
from kprobe_modules.capture.steps import Observation, Step
from kprobe_modules.journal import Journal, Told
from kprobe_modules.records import Failure
from kprobe_modules.rings import Drained

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from kprobe_modules.attached import AttachedModule
    from kprobe_modules.dispatch import Faults
    from kprobe_modules.handler import Context
    from kprobe_modules.records import Record, Stats

__all__ = ["Capture"]


class Capture(Journal):
    """
    A journal that is kept in files.

    What is in memory reaches the file once a second, or when there is much of it.  A
    file that cannot be written ends the capture and nothing else: `error` says why, and
    a `Failure` among the records.  What `Collector.batches` takes reaches no handler and
    is not in it.

    Args:
        path: the newest file; what was there is lost.
        max_size: bytes of a file at which the next is begun.
        rotate: how many older files are kept, as ``path.1`` and so on.

    Raises:
        OSError: the file cannot be made.

    Attributes:
        error: what ended the capture before `close`.
    """

    def __init__(self, path: Path | str, *, max_size: int = 64 << 20, rotate: int = 4) -> None:
        self.error: OSError | None = None
        self._series = Series(path, _heading(), max_size=max_size, rotate=rotate)
        self._trouble: list[Record] = []
        """What to report with the next records."""
        self._step: Step | None = None
        self._thread = 0
        self._now: Callable[[], int] = int
        self._faults: Faults | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """
        Write what is left and close the file.  Safe to call twice.

        Raises:
            OSError: it cannot be written.
        """
        self._series.close()

    @property
    def written(self) -> int:
        """
        Bytes in files, also those that rotation has deleted.
        """
        return self._series.written

    # -- what a collector tells -----------------------------------------------

    def opened(self, now: Callable[[], int], faults: Faults) -> None:
        """
        Begin with a collector.
        """
        self._now, self._faults = now, faults

    def context(self, context: Context) -> Context:
        """
        Return a context that notes what is seen through it.
        """
        return observed(context, partial(self._observe, context.name))

    def _observe(self, module: str, what: str, look: Callable[[], bytes]) -> bytes:
        step = self._step
        if step is None or threading.get_ident() != self._thread:
            # Such as a poke, whose only effect is in the kernel.
            return look()
        seen: bytes | int
        try:
            seen = look()
        except OSError as error:
            step.observed.append(Observation(module, what, error.errno or 0))
            raise
        step.observed.append(Observation(module, what, seen))
        return seen

    def join(self, name: str, function: Callable[[], AttachedModule]) -> AttachedModule:
        """
        Note a module with its layouts, and what its handler saw while it was made.
        """
        step = self._begin("module", name)
        try:
            attached = function()
        finally:
            self._step = None
        binding = attached.binding
        step.facts = {
            "id": binding.module_id,
            "version": attached.manifest.version,
            "tunables": dict(binding.handler.context.tunables),
            "live": dict(attached.live),
            "object": specjson.messages_to_plain(binding.spec),
        }
        self._write(step, preamble=True)
        return attached

    def carry(
        self, kind: str, module: str, function: Callable[[], list[Record]], **facts: object
    ) -> list[Record]:
        """
        Note what handlers are given, and what they see meanwhile.
        """
        step = self._begin(kind, module)
        before = self._errors()
        records: list[Record] = []
        try:
            records = function()
        except Exception:
            self._end(step, records, before, {**facts, "raised": True})
            raise
        finally:
            self._step = None
        self._end(step, records, before, facts)
        trouble, self._trouble = self._trouble, []
        return records + trouble if trouble else records

    def note(self, kind: str, module: str, **facts: object) -> None:
        """
        Note what concerns a module.
        """
        step = Step(kind, module, self._now(), dict(facts))
        self._write(step, preamble=kind in {"admitted", "live"})
        if kind == "refused":
            self._series.forget(module)

    def told(self, records: Told) -> Told:
        """
        Note records of the framework.
        """
        if records:
            told = list(enumerate(records))
            self._write(Step("told", now=self._now(), told=told))
        return records

    def totals(self, stats: Stats) -> None:
        """
        Note totals.
        """
        self._write(Step("totals", now=self._now(), told=[(0, stats)]))

    # -- writing ----------------------------------------------------------------

    def _begin(self, kind: str, module: str) -> Step:
        self._thread = threading.get_ident()
        self._step = Step(kind, module, self._now())
        return self._step

    def _errors(self) -> int:
        return sum(self._faults.errors.values()) if self._faults is not None else 0

    def _end(
        self, step: Step, records: list[Record], errors: int, facts: dict[str, object]
    ) -> None:
        drained = facts.pop("drained", None)
        if isinstance(drained, Drained):
            if not (drained.records or drained.late or records):
                return
            facts, step.body = drains.to_plain(drained)
        step.facts = facts
        step.errors = self._errors() - errors
        step.told = [
            (place, record) for place, record in enumerate(records) if isinstance(record, Failure)
        ]
        self._write(step, preamble=step.kind == "attached")
        if step.kind == "detached":
            self._series.forget(step.module)

    def _write(self, step: Step, *, preamble: bool = False) -> None:
        """
        Write a step, or end the capture.
        """
        if self.error is not None:
            return
        raw = steps.encode(step)
        try:
            self._series.write(raw, monotonic_ns())
        except OSError as error:
            self.error = error
            self._series.abandon()
            text = f"the capture ends here: {error}"
            self._trouble.append(Failure(self._now(), "collector", "capture", text))
            return
        if preamble:
            self._series.remember(step.module, raw)


def _heading() -> dict[str, Any]:
    """
    Return what a capture says about where it was made; no name of a host is in it.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        ours = version("kprobe_modules")
    except PackageNotFoundError:
        ours = ""
    return {
        "kernel": platform.release(),
        "arch": platform.machine(),
        "kprobe_modules": ours,
        "series": os.urandom(8).hex(),
    }
