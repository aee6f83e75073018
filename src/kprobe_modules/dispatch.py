# SPDX-License-Identifier: Apache-2.0
"""
From drained batches to records: sample → message → handler → record.

A handler's methods are bound to layouts when its module is attached, so that a
field that does not exist is refused then and not at the ten-thousandth event.
"""

from __future__ import annotations

import inspect
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import attrs

from kprobe_modules import decode
from kprobe_modules.errors import LayoutError, MissingMessageError
from kprobe_modules.records import Failure, Late, Record, Steady

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from kprobe_modules.handler import Handler
    from kprobe_modules.layout import Layout
    from kprobe_modules.objectfile import MessageSpec, ObjectSpec
    from kprobe_modules.rings import Batch, Drained, Drainer

__all__ = ["Binding", "Dispatcher", "Faults", "MessageBatch", "message_key"]

STALL_NS = 250_000_000
"""A handler or callback that keeps the poll waiting for longer than this has stalled."""

FAILURE_INTERVAL_NS = 1_000_000_000
"""The same thing that fails over and over is reported once in this time."""


def message_key(module_id: int, message_id: int) -> int:
    """
    Return the u32 that rings read from a header: module below, message above.
    """
    return module_id | message_id << 16


@attrs.frozen(eq=False)
class MessageBatch:
    """
    Rows of one message as they came out of the rings, for those who want columns.

    ``numpy.frombuffer(batch.rows, dtype=batch.dtype)`` gives a structured array.
    """

    module: str
    message: str
    layout: Layout
    rows: Batch
    """Buffer of ``len(batch)`` rows of ``layout.size`` bytes; ``time`` in ns since the epoch."""

    def __len__(self) -> int:
        return self.rows.count

    @property
    def dtype(self) -> dict[str, Any]:
        """
        A description that ``numpy.dtype`` accepts.
        """
        return self.layout.dtype()

    def columns(self, *names: str) -> list[tuple[Any, ...]]:
        """
        Return the named fields as one tuple of values each.
        """
        decoder = decode.bind(self.layout, names, f"{self.module}.{self.message}")
        return list(zip(*decoder(self.rows), strict=True)) or [() for _ in names]


class Faults:
    """
    Counts what fails, and says so at most once a second for each thing.
    """

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._last: dict[tuple[str, str], int] = {}
        self._held: dict[tuple[str, str], int] = {}
        self.errors: dict[str, int] = {}
        self.stalls: dict[str, int] = {}

    def failed(self, module: str, where: str, error: BaseException) -> list[Record]:
        """
        Count an exception and return the record to report, if it is time for one.
        """
        self.errors[module] = self.errors.get(module, 0) + 1
        return self._report(module, where, f"{type(error).__name__}: {error}")

    def stalled(self, module: str, where: str, duration_ns: int) -> list[Record]:
        """
        Count a stall and return the record to report, if it is time for one.
        """
        self.stalls[module] = self.stalls.get(module, 0) + 1
        return self._report(module, where, f"took {duration_ns // 1_000_000} ms")

    def _report(self, module: str, where: str, text: str) -> list[Record]:
        key, now = (module, where), self._now()
        if now - self._last.get(key, -FAILURE_INTERVAL_NS) < FAILURE_INTERVAL_NS:
            self._held[key] = self._held.get(key, 0) + 1
            return []
        self._last[key] = now
        held = self._held.pop(key, 0)
        more = f" (and {held} more since the last report)" if held else ""
        return [Failure(now, module, where, text + more)]


@attrs.define(eq=False)
class _Slot:
    """
    How one message becomes records.
    """

    module: str
    message: MessageSpec
    start: Callable[[Batch], Iterator[Any]] | None
    """Rows as arguments for *call*, or records when *call* is None; None: nobody listens."""
    call: Callable[..., Any] | None


def _method_slot(module: str, message: MessageSpec, method: Callable[..., Any]) -> _Slot:
    owner = f"{module}: handler method {method.__name__}"
    names = list(inspect.signature(method).parameters)
    return _Slot(module, message, decode.bind(message.layout, names, owner), method)


def _slots(module: str, spec: ObjectSpec, handler: Handler) -> Iterator[_Slot]:
    problems: list[str] = []
    for message in spec.messages:
        method = getattr(handler, f"on_{message.name}", None)
        direct = handler.direct.get(message.name)
        try:
            if method is not None:
                yield _method_slot(module, message, method)
            elif direct is not None:
                yield _Slot(module, message, decode.record_decoder(message.layout, direct), None)
            else:
                yield _Slot(module, message, None, None)
        except LayoutError as error:
            problems.append(str(error))
    if problems:
        raise LayoutError("; ".join(problems))
    known = {message.name for message in spec.messages}
    wanted = {name[3:] for name in dir(handler) if name.startswith("on_")} | set(handler.direct)
    if wanted - known:
        msg = (
            f"{module}: the handler wants messages {', '.join(sorted(wanted - known))}; "
            f"the object has {', '.join(sorted(known))}"
        )
        raise MissingMessageError(msg)


class Binding:
    """
    One attached module as dispatch knows it: its handler, ids and slots.

    Raises:
        LayoutError: naming every field a handler asks for that no layout has.
        MissingMessageError: when it asks for a message the object lacks.
    """

    def __init__(self, name: str, module_id: int, spec: ObjectSpec, handler: Handler) -> None:
        self.name = name
        self.module_id = module_id
        self.spec = spec
        self.handler = handler
        self.slots = {
            message_key(module_id, slot.message.id): slot for slot in _slots(name, spec, handler)
        }
        self.late = 0
        self.existing = 0
        """Records with ``existing`` set that were seen since the last scan began."""

    def register(self, drainer: Drainer) -> None:
        """
        Tell the rings which rows to collect.
        """
        for key, slot in self.slots.items():
            layout = slot.message.layout
            drainer.register(key, layout.size, layout.tail is not None)

    def unregister(self, drainer: Drainer) -> None:
        """
        Tell the rings that this module is gone.
        """
        for key in self.slots:
            drainer.unregister(key)

    def received(self, drainer: Drainer) -> dict[str, dict[int, int]]:
        """
        Return how many of each message came out of the rings, per CPU.
        """
        return {slot.message.name: drainer.received(key) for key, slot in self.slots.items()}


class Dispatcher:
    """
    Turns what was drained into records, one module's failure at a time.
    """

    def __init__(self, faults: Faults, now: Callable[[], int]) -> None:
        self._faults = faults
        self._now = now
        self._slots: dict[int, _Slot] = {}
        self._bindings: dict[str, Binding] = {}
        self._scanning: set[str] = set()

    def add(self, binding: Binding) -> None:
        """
        Accept a module's messages from now on.
        """
        self._bindings[binding.name] = binding
        self._slots.update(binding.slots)

    def remove(self, binding: Binding) -> None:
        """
        Forget a module.
        """
        self._bindings.pop(binding.name, None)
        for key in binding.slots:
            self._slots.pop(key, None)

    def batches(self, drained: Drained) -> list[MessageBatch]:
        """
        Name the batches, for those who want columns.
        """
        named = []
        for batch in drained.batches:
            slot = self._slots.get(batch.key)
            if slot is not None:
                named.append(MessageBatch(slot.module, slot.message.name, slot.message.layout, batch))
        return named

    def dispatch(self, drained: Drained) -> list[Record]:
        """
        Run the handlers over a merged drain and return records in order.
        """
        records: list[Record] = []
        calls: list[tuple[Iterator[Any], _Slot] | None] = []
        direct = True
        for batch in drained.batches:
            slot = self._slots.get(batch.key)
            if slot is None or slot.start is None:
                calls.append(None)
                direct = False
            else:
                calls.append((slot.start(batch), slot))
                direct = direct and slot.call is None
        if direct:
            iterators = [call[0] for call in calls if call is not None]
            records += _in_order(iterators, drained.sequence)
        else:
            self._call_handlers(calls, drained.sequence, records)
        self._note_existing(records)
        records += self._late(drained)
        return records

    def _call_handlers(
        self,
        calls: list[tuple[Iterator[Any], _Slot] | None],
        sequence: Sequence[int],
        records: list[Record],
    ) -> None:
        before = perf_counter_ns()
        for index in sequence:
            call = calls[index]
            if call is None:
                continue
            rows, slot = call
            row = next(rows)
            if slot.call is None:
                records.append(row)
                continue
            try:
                result = slot.call(*row)
                if result is None:
                    pass
                elif isinstance(result, Record):
                    records.append(result)
                else:
                    records.extend(result)
            except Exception as error:  # noqa: BLE001 - whatever a handler raises stays its own
                where = f"on_{slot.message.name}"
                records += self._faults.failed(slot.module, where, error)
            after = perf_counter_ns()
            if after - before > STALL_NS:
                where = f"on_{slot.message.name}"
                records += self._faults.stalled(slot.module, where, after - before)
                after = perf_counter_ns()
            before = after

    def call(self, binding: Binding, where: str, function: Callable[[], Iterable[Record] | None]) -> list[Record]:
        """
        Run some other method of a handler, with the same isolation.
        """
        try:
            return list(function() or ())
        except Exception as error:  # noqa: BLE001 - whatever a handler raises stays its own
            return self._faults.failed(binding.name, where, error)

    def scanning(self, name: str, *, on: bool) -> None:
        """
        Count records of existing entities while a scan of that module runs.
        """
        if on:
            self._bindings[name].existing = 0
            self._scanning.add(name)
        else:
            self._scanning.discard(name)

    def _note_existing(self, records: list[Record]) -> None:
        if not self._scanning:
            return
        for record in records:
            if record.module in self._scanning and getattr(record, "existing", False):
                self._bindings[record.module].existing += 1

    def steady(self, name: str, *, resync: bool) -> Steady:
        """
        Return the record that ends a scan.
        """
        return Steady(self._now(), name, self._bindings[name].existing, resync)

    def _late(self, drained: Drained) -> list[Record]:
        records: list[Record] = []
        for key, cpu, count in drained.late:
            slot = self._slots.get(key)
            if slot is not None:
                self._bindings[slot.module].late += count
                records.append(Late(self._now(), slot.module, slot.message.name, cpu, count))
        return records


def _in_order(iterators: list[Iterator[Record]], sequence: Sequence[int]) -> Iterable[Record]:
    """
    Interleave per-message records in the merged order.
    """
    if len(iterators) == 1:
        return iterators[0]
    return [next(iterators[index]) for index in sequence]
