# SPDX-License-Identifier: Apache-2.0
"""
Leading the lives of handlers again, as a capture tells them.

Handlers are bound and called by the same `Dispatcher` as in a collector.  Neither the
kernel nor libbpf is asked for anything, nor is a clock.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import attrs

from kprobe_modules import specjson
from kprobe_modules.capture import drains, steps
from kprobe_modules.capture.blocks import HEADING, PREAMBLE
from kprobe_modules.capture.observing import UnansweredError, observed
from kprobe_modules.capture.series import read_series
from kprobe_modules.dispatch import Binding, Dispatcher, Faults
from kprobe_modules.errors import CaptureError, KprobeModulesError, LayoutError, ModuleStateError
from kprobe_modules.handler import Context
from kprobe_modules.records import Failure, Stats
from kprobe_modules.registry import Registry
from kprobe_modules.resources import Offers
from kprobe_modules.stacks import ObservedResolver

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from kprobe_modules.capture.blocks import Part
    from kprobe_modules.capture.steps import Step
    from kprobe_modules.records import Record

__all__ = ["CapturedModule", "Replay"]

NOWHERE = Path("/nonexistent")
"""Where procfs is for a handler that is replayed: what it reads there directly, and not
through `Context.observe`, must not be of the machine that it is replayed on."""


@attrs.frozen
class CapturedModule:
    """
    A module as the capture has it.
    """

    name: str
    version: str
    """Of the module that made the capture."""
    live: dict[str, str]
    """Hook name to the program or source that was live."""


class Replay:
    """
    Gives handlers what a capture holds.

    Args:
        path: the newest file of the capture; older ones beside it are read first.
        registry: where modules are found; default, the installed entry points.
        modules: replay no others; None means all of them.
        announce: called with each module when its handler is made.

    Raises:
        CaptureError: it is no capture, or of a newer version.
        OSError: it cannot be read.

    Attributes:
        heading: ``kernel`` release, ``arch``, version of ``kprobe_modules``.
        faults: what handlers raised, per module.
        totals: the last `Stats` that the capture holds, or None.
        cuts: for each file that does not end as it should, where and why.
        unanswered: how often a handler asked for what the capture does not have.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        registry: Registry | None = None,
        modules: Collection[str] | None = None,
        announce: Callable[[CapturedModule], object] | None = None,
    ) -> None:
        self._path = Path(path)
        self._parts = read_series(self._path)
        self.heading = self._parts[-1].heading
        self._wanted = modules
        self._registry = registry or Registry()
        self._announce = announce
        self._now = 0
        self._bindings: dict[str, Binding] = {}
        self._live: dict[str, dict[str, str]] = {}
        self._offers = Offers()
        self._answers: dict[tuple[str, str], deque[bytes | int]] = {}
        self.faults = Faults(lambda: self._now)
        self.dispatcher = Dispatcher(self.faults, lambda: self._now)
        self.totals: Stats | None = None
        self.unanswered = 0

    @property
    def cuts(self) -> list[str]:
        """
        Where and why files end before their end, as far as they were read.
        """
        return [f"{part.path}: {part.cut}" for part in self._parts if part.cut is not None]

    @property
    def handlers(self) -> dict[str, object]:
        """
        The handlers that live at the moment, by their modules' names.
        """
        return {name: binding.handler for name, binding in self._bindings.items()}

    @property
    def missing(self) -> int:
        """
        How many files at the beginning of the capture rotation has deleted.
        """
        return self._parts[0].number

    def steps(self) -> Iterator[Step]:
        """
        Iterate over what the capture holds, without giving it to anybody.

        Raises:
            CaptureError: what a checksum vouches for makes no sense.
        """
        for part in self._parts:
            yield from self._steps_of(part)

    def _steps_of(self, part: Part) -> Iterator[Step]:
        for block in part.blocks():
            if block.kind == HEADING or (block.kind == PREAMBLE and part is not self._parts[0]):
                continue
            try:
                yield from steps.decode(block.content)
            except CaptureError as error:
                msg = f"{part.path}: {error}"
                raise CaptureError(msg) from error

    def records(self) -> Iterator[list[Record]]:
        """
        Iterate over the records of one step after the other.

        Raises:
            CaptureError: a module asks for what the capture's layouts do not have, or
                the capture makes no sense.
            RegistryError: a module that was captured is not installed.
        """
        admitting: str | None = None
        held: list[Record] = []
        for step in self.steps():
            records = self.play(step)
            if step.kind == "module":
                admitting = step.module
            if admitting is None:
                if records:
                    yield records
                continue
            # What a module said that was refused in the end, nobody was given.
            held += records
            if step.module == admitting and step.kind in {"admitted", "refused"}:
                if step.kind == "refused":
                    held = [record for record in held if record.module != admitting]
                admitting = None
                if held:
                    yield held
                held = []
        if held:
            yield held

    # -- one step ---------------------------------------------------------------

    def play(self, step: Step) -> list[Record]:
        """
        Do again what was done in a step, and return the records of it.

        Raises:
            CaptureError, RegistryError: as `records` does.
        """
        self._now = step.now
        self._answers.clear()
        for each in step.observed:
            self._answers.setdefault((each.module, each.what), deque()).append(each.seen)
        before = sum(self.faults.errors.values())
        try:
            records = self._play(step)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, KprobeModulesError):
                raise
            msg = f"{self._path}: step {step.kind} is damaged: {type(error).__name__}: {error}"
            raise CaptureError(msg) from error
        if sum(self.faults.errors.values()) - before != step.errors:
            # Handlers fare otherwise than they did: that is what is to be told.
            return records
        # What is said of failures, and how often, depends on clocks: as it was said.
        records = [record for record in records if not isinstance(record, Failure)]
        for place, record in step.told:
            if self._wants(record.module) or record.module == "collector":
                records.insert(place, record)
        return records

    def _wants(self, module: str) -> bool:
        return self._wanted is None or module in self._wanted

    def _play(self, step: Step) -> list[Record]:
        if step.kind == "module":
            if self._wants(step.module):
                self._join(step)
            return []
        if step.kind == "drained":
            return self.dispatcher.dispatch(drains.from_plain(step.facts, step.body))
        if step.kind == "totals":
            self.totals = next(
                (record for _, record in step.told if isinstance(record, Stats)), None
            )
            step.told = []
            return []
        binding = self._bindings.get(step.module)
        if binding is None:
            # Told by the framework, or of a module that is not wanted.
            return []
        return self._live_on(step, binding)

    def _live_on(self, step: Step, binding: Binding) -> list[Record]:
        """
        Let one handler live through a step.
        """
        if step.kind == "steady":
            return self.dispatcher.steady(binding, resync=bool(step.facts["resync"]))
        if step.kind == "scanning":
            self.dispatcher.scanning(binding.name, on=bool(step.facts["on"]))
            return []
        if step.kind == "live":
            live = self._live[binding.name]
            live.clear()
            live.update(step.facts["live"])
            return []
        ask = partial(self._ask, step, binding)
        if step.facts.get("raised"):
            # It was refused then, and what came of that is told separately.
            with suppress(Exception):
                ask()
            return []
        records = self.dispatcher.call(binding, step.facts.get("source", step.kind), ask)
        if step.kind == "detached":
            self._leave(binding)
        return records

    def _ask(self, step: Step, binding: Binding) -> Iterable[Record] | None:
        """
        Call the method of a handler that a step is about.
        """
        handler = binding.handler
        match step.kind:
            case "attached":
                handler.attached()
            case "detached":
                handler.detached()
            case "tick":
                return handler.tick(step.now)
            case "source":
                return handler.read_source(str(step.facts["source"]))
            case "scan":
                return self.dispatcher.scan(binding, str(step.facts["hook"]))
        return None

    def _join(self, step: Step) -> None:
        """
        Make a module's handler, and bind it to the layouts of the capture.
        """
        name, facts = step.module, step.facts
        captured = CapturedModule(name, str(facts["version"]), dict(facts["live"]))
        try:
            spec = specjson.from_plain(facts["object"])
        except ValueError as error:
            msg = f"{self._path}: layouts of {name} are damaged: {error}"
            raise CaptureError(msg) from error
        manifest = self._registry.load(name)
        self._live[name] = captured.live
        context = Context(
            name=name,
            tunables=dict(facts["tunables"]),
            proc_root=NOWHERE,
            provide=partial(self._offers.provide, name),
            find=self._offers.find,
            data=_unanswered,
            live=captured.live,
            map=_NoMap,
            program_fd=partial(_no_program, name),
        )
        observe = partial(self._observe, name)
        try:
            handler = manifest.handler_class()(observed(context, observe))
        except Exception as error:
            msg = f"{self._path}: no handler of {name}: {type(error).__name__}: {error}"
            raise CaptureError(msg) from error
        try:
            stacks = partial(ObservedResolver, observe, _no_resolver)
            binding = Binding(name, int(facts["id"]), spec, handler, stacks, complete=False)
        except LayoutError as error:
            msg = (
                f"{self._path}: made with {name} {captured.version}, which has not what "
                f"{name} {manifest.version} wants: {error}"
            )
            raise CaptureError(msg) from error
        self._bindings[name] = binding
        self.dispatcher.add(binding)
        if self._announce is not None:
            self._announce(captured)

    def _leave(self, binding: Binding) -> None:
        del self._bindings[binding.name]
        self.dispatcher.remove(binding)
        self._offers.withdraw(binding.name)

    def _observe(self, module: str, what: str, _look: Callable[[], bytes]) -> bytes:
        answers = self._answers.get((module, what))
        if not answers:
            self.unanswered += 1
            raise UnansweredError(errno.ENODATA, "the capture does not say", what)
        seen = answers.popleft()
        if isinstance(seen, int):
            raise OSError(seen, os.strerror(seen), what)
        return seen


class _NoMap:
    """
    Stands for a map whose answers are in the capture.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def _refuse(self, *_: object) -> NoReturn:
        raise UnansweredError(errno.ENODATA, "a replay has no maps", self._name)

    lookup = lookup_percpu = update = delete = keys = values = _refuse


def _unanswered(*_: object) -> NoReturn:
    raise UnansweredError(errno.ENODATA, "a replay has no data channel")


def _no_resolver() -> NoReturn:
    msg = "a replay has no processes"
    raise ModuleStateError(msg)


def _no_program(module: str, name: str) -> int:
    msg = f"{module}: program {name}: a replay has no programs"
    raise ModuleStateError(msg)
