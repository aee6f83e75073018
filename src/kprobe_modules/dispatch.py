# SPDX-License-Identifier: Apache-2.0
"""
From drained batches to records: sample → message → handler → record.

A handler's methods are bound to layouts when its module is attached, so that a
field that does not exist is refused then and not at the ten-thousandth event.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from operator import attrgetter
from time import monotonic_ns, perf_counter_ns
from typing import TYPE_CHECKING, Any

import attrs

from kprobe_modules import decode
from kprobe_modules.diagnostics import Diagnostics
from kprobe_modules.errors import LayoutError, MissingMessageError
from kprobe_modules.records import Failure, Late, Record, Steady
from kprobe_modules.rows import interleave

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kprobe_modules.handler import Handler
    from kprobe_modules.layout import Layout
    from kprobe_modules.rings import Batch, Drained, Drainer
    from kprobe_modules.spec import MessageSpec, ObjectSpec
    from kprobe_modules.stacks import ObservedResolver

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


@attrs.frozen(eq=False, repr=False)
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

    Safe in any thread.

    Args:
        now: the time that reports bear, nanoseconds since the epoch.

    Attributes:
        errors: exceptions per module.
        stalls: calls that took too long, per module.
    """

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._last: dict[tuple[str, str], int] = {}
        self._held: dict[tuple[str, str], int] = {}
        self.errors: dict[str, int] = {}
        self.stalls: dict[str, int] = {}

    def failed(self, module: str, where: str, error: BaseException) -> list[Record]:
        """
        Count an exception and return the record to report, if it is time for one.
        """
        with self._lock:
            self.errors[module] = self.errors.get(module, 0) + 1
        return self.report(module, where, f"{type(error).__name__}: {error}")

    def stalled(self, module: str, where: str, duration_ns: int) -> list[Record]:
        """
        Count a stall and return the record to report, if it is time for one.
        """
        with self._lock:
            self.stalls[module] = self.stalls.get(module, 0) + 1
        return self.report(module, where, f"took {duration_ns // 1_000_000} ms")

    def report(self, module: str, where: str, text: str) -> list[Record]:
        """
        Return the record to report, if it is time for one, without counting anything.
        """
        key, now = (module, where), monotonic_ns()
        with self._lock:
            if now - self._last.get(key, -FAILURE_INTERVAL_NS) < FAILURE_INTERVAL_NS:
                self._held[key] = self._held.get(key, 0) + 1
                return []
            self._last[key] = now
            held = self._held.pop(key, 0)
        more = f" (and {held} more since the last report)" if held else ""
        return [Failure(self._now(), module, where, text + more)]

    def forget(self, module: str) -> None:
        """
        Start anew for a module that is attached again.
        """
        with self._lock:
            for counts in (self.errors, self.stalls):
                counts.pop(module, None)
            for key in [key for key in self._last if key[0] == module]:
                del self._last[key]
                self._held.pop(key, None)


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
    direct: type[Record] | None = None
    """What *start* makes when *call* is None."""
    own: bool = False
    """Whether it is the framework's message: a record for `poll`, also beside columns."""

    @property
    def where(self) -> str:
        """
        What failed, for a report.
        """
        if self.direct is not None:
            return f"record {self.direct.__qualname__}"
        return f"on_{self.message.name}"

    def careful(self) -> _Slot:
        """
        Return a slower slot for the same records, which survives one that cannot be made.
        """
        assert self.direct is not None  # noqa: S101 - only slots without a call come here
        start, call = _one_by_one(self.message.layout, self.direct)
        return _Slot(self.module, self.message, start, call, self.direct)


def _method_slot(module: str, message: MessageSpec, method: Callable[..., Any]) -> _Slot:
    owner = f"{module}: handler method {method.__name__}"
    names = list(inspect.signature(method).parameters)
    return _Slot(module, message, decode.bind(message.layout, names, owner), method)


def _one_by_one(
    layout: Layout, record_class: type[Record]
) -> tuple[Callable[[Batch], Iterator[Any]], Callable[..., Any]]:
    """
    Bind a record class as if its constructor were a handler's method.
    """
    known = {*layout.names, *(name.replace(".", "_") for name in layout.names)}
    if layout.tail is not None:
        known.add(layout.tail.name)
    bound = [each for each in attrs.fields(record_class) if each.init and each.name in known]
    names = [each.name for each in bound]
    texts = [
        each.name
        for each in bound
        if each.type in (str, "str")
        and (field := layout.field(each.name)) is not None
        and field.kind == "char[]"
    ]
    start = decode.bind(layout, names, record_class.__qualname__, texts=texts)
    keywords = [each.alias for each in bound]

    def call(*values: object) -> Record:
        return record_class(**dict(zip(keywords, values, strict=True)))

    return start, call


def _slots(module: str, spec: ObjectSpec, handler: Handler, *, complete: bool) -> Iterator[_Slot]:
    problems: list[str] = []
    for message in spec.messages:
        method = getattr(handler, f"on_{message.name}", None)
        direct = handler.direct.get(message.name)
        try:
            if method is not None:
                yield _method_slot(module, message, method)
            elif direct is not None:
                start = decode.record_decoder(message.layout, direct)
                yield _Slot(module, message, start, None, direct)
            else:
                yield _Slot(module, message, None, None)
        except LayoutError as error:
            problems.append(str(error))
    if problems:
        raise LayoutError("; ".join(problems))
    known = {message.name for message in spec.messages}
    wanted = {name[3:] for name in dir(handler) if name.startswith("on_")} | set(handler.direct)
    if complete and wanted - known:
        msg = (
            f"{module}: the handler wants messages {', '.join(sorted(wanted - known))}; "
            f"the object has {', '.join(sorted(known))}"
        )
        raise MissingMessageError(msg)


def _diagnostic_slots(
    module: str, spec: ObjectSpec, resolver: Callable[[], ObservedResolver] | None
) -> Iterator[_Slot]:
    """
    Bind the framework's own messages, for an object whose programs may write them.
    """
    if spec.diagnostics:
        diagnostics = Diagnostics(module, spec, resolver)
        for message in spec.diagnostics:
            method = getattr(diagnostics, f"on_{message.name}")
            slot = _method_slot(module, message, method)
            slot.own = True
            yield slot


class Binding:
    """
    One attached module as dispatch knows it: its handler, ids and slots.

    Args:
        name: the module's.
        module_id: what its messages bear.
        spec: its object.
        handler: takes its messages.
        resolver: gives what names the frames of its stacks; None leaves them numbers.
        complete: whether the object must have every message that the handler takes.

    Raises:
        LayoutError: naming every field a handler asks for that no layout has.
        MissingMessageError: when it asks for a message the object lacks.
    """

    def __init__(
        self,
        name: str,
        module_id: int,
        spec: ObjectSpec,
        handler: Handler,
        resolver: Callable[[], ObservedResolver] | None = None,
        *,
        complete: bool = True,
    ) -> None:
        self.name = name
        self.module_id = module_id
        self.spec = spec
        self.handler = handler
        self.slots = {
            message_key(module_id, slot.message.id): slot
            for slot in (
                *_slots(name, spec, handler, complete=complete),
                *_diagnostic_slots(name, spec, resolver),
            )
        }
        self.late = 0
        self.handler_time = 0
        """Nanoseconds spent on making records of its messages."""
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
            if slot is not None and not slot.own:
                message = slot.message
                named.append(MessageBatch(slot.module, message.name, message.layout, batch))
        return named

    def own_records(self, drained: Drained) -> list[Record]:
        """
        Return what programs say about themselves, beside the columns of the same drain.
        """
        records: list[Record] = []
        for batch in drained.batches:
            slot = self._slots.get(batch.key)
            if slot is None or not slot.own or slot.start is None or slot.call is None:
                continue
            for row in slot.start(batch):
                try:
                    _add(records, slot.call(*row))
                except Exception as error:  # noqa: BLE001 - it is one of many
                    records += self._faults.failed(slot.module, slot.where, error)
        return sorted(records, key=attrgetter("time"))

    def dispatch(self, drained: Drained) -> list[Record]:
        """
        Run the handlers over a merged drain and return records in order.
        """
        records: list[Record] = []
        calls = self._calls(drained)
        if not (_all_direct(calls) and self._make_records(calls, drained, records)):
            self._call_handlers(self._calls(drained), drained, records)
        self.note_existing(records)
        records += self._late(drained)
        return records

    def _calls(self, drained: Drained) -> list[_Call | None]:
        """
        Return, for each batch, its rows and what becomes of them; None: nobody listens.
        """
        calls: list[_Call | None] = []
        for batch in drained.batches:
            slot = self._slots.get(batch.key)
            if slot is None or slot.start is None:
                calls.append(None)
            else:
                calls.append((slot.start(batch), slot))
        return calls

    def _make_records(
        self, calls: Sequence[_Call | None], drained: Drained, records: list[Record]
    ) -> bool:
        """
        Do without handlers; False, and nothing is done, if a record cannot be made.
        """
        before = perf_counter_ns()
        try:
            records += _in_order([call[0] for call in calls if call is not None], drained.sequence)
        except Exception:  # noqa: BLE001 - who did it is found out one by one
            records.clear()
            return False
        took, count = perf_counter_ns() - before, max(1, len(records))
        self._charge(calls, [took * batch.count // count for batch in drained.batches])
        return True

    def _call_handlers(
        self, calls: list[_Call | None], drained: Drained, records: list[Record]
    ) -> None:
        sequence = drained.sequence
        # They bear the time of the last that is drained here, so they come behind it.
        faults: list[Record] = []
        spent = [0] * len(calls)
        before = perf_counter_ns()
        for place, index in enumerate(sequence):
            call = calls[index]
            if call is None:
                continue
            rows, slot = call
            try:
                row = next(rows)
                if slot.call is None:
                    records.append(row)
                    continue
                result = slot.call(*row)
                if isinstance(result, Record):
                    records.append(result)
                elif result is not None:
                    _add(records, result)
            except Exception as error:  # noqa: BLE001 - whatever a handler raises stays its own
                faults += self._faults.failed(slot.module, slot.where, error)
                if slot.call is None:
                    done = sum(1 for each in sequence[: place + 1] if each == index)
                    calls[index] = _resumed(slot, drained.batches[index], done)
            after = perf_counter_ns()
            if after - before > STALL_NS:
                faults += self._faults.stalled(slot.module, slot.where, after - before)
                after = perf_counter_ns()
            spent[index] += after - before
            before = after
        records += faults
        self._charge(calls, spent)

    def _charge(self, calls: Sequence[_Call | None], spent: Sequence[int]) -> None:
        """
        Add what each batch took, in nanoseconds, to its module's account.
        """
        for call, time in zip(calls, spent, strict=True):
            if call is not None:
                self._bindings[call[1].module].handler_time += time

    def call(
        self, binding: Binding, where: str, function: Callable[[], Iterable[Record] | None]
    ) -> list[Record]:
        """
        Run some other method of a handler, with the same isolation.
        """
        records: list[Record] = []
        before = perf_counter_ns()
        try:
            _add(records, function())
        except Exception as error:  # noqa: BLE001 - whatever a handler raises stays its own
            records += self._faults.failed(binding.name, where, error)
        took = perf_counter_ns() - before
        binding.handler_time += took
        if took > STALL_NS:
            records += self._faults.stalled(binding.name, where, took)
        return records

    def scanning(self, name: str, *, on: bool) -> None:
        """
        Count records of existing entities while a scan of that module runs.
        """
        if on:
            self._bindings[name].existing = 0
            self._scanning.add(name)
        else:
            self._scanning.discard(name)

    def note_existing(self, records: Iterable[Record]) -> None:
        """
        Count what a scan under way has found, for `steady`.
        """
        if not self._scanning:
            return
        for record in records:
            if record.module in self._scanning and getattr(record, "existing", False):
                self._bindings[record.module].existing += 1

    def scan(self, binding: Binding, hook: str) -> list[Record]:
        """
        Return what a handler finds by itself.

        Raises:
            Exception: whatever the handler raises.
        """
        records = list(binding.handler.scan(hook))
        self.note_existing(records)
        return records

    def steady(self, binding: Binding, *, resync: bool) -> list[Record]:
        """
        Return what a handler says at the end of a scan, and the record that ends it.
        """
        records = self.call(binding, "steady", partial(binding.handler.steady, resync=resync))
        records.append(Steady(self._now(), binding.name, binding.existing, resync))
        return records

    def _late(self, drained: Drained) -> list[Record]:
        records: list[Record] = []
        for key, cpu, count in drained.late:
            slot = self._slots.get(key)
            if slot is not None:
                self._bindings[slot.module].late += count
                records.append(Late(self._now(), slot.module, slot.message.name, cpu, count))
        return records


_Call = tuple[Iterator[Any], _Slot]
"""The rows of a batch that are left, and what becomes of them."""


def _all_direct(calls: Sequence[_Call | None]) -> bool:
    return all(call is not None and call[1].call is None for call in calls)


def _add(records: list[Record], result: object) -> None:
    """
    Add what a handler returned: a record, an iterable of records, or None.

    Raises:
        TypeError: when it is something else.
    """
    if result is None:
        return
    if isinstance(result, Record):
        records.append(result)
        return
    if not isinstance(result, Iterable):
        msg = f"the handler returned {result!r}, expected a record, records, or None"
        raise TypeError(msg)
    for item in result:
        if not isinstance(item, Record):
            msg = f"the handler returned {item!r} among its records"
            raise TypeError(msg)
        records.append(item)


def _resumed(slot: _Slot, batch: Batch, done: int) -> _Call:
    """
    Go on behind a row of which no record could be made.
    """
    careful = slot.careful()
    assert careful.start is not None  # noqa: S101 - it was made with one
    return islice(careful.start(batch), done, None), careful


def _in_order(iterators: list[Iterator[Record]], sequence: Sequence[int]) -> Iterable[Record]:
    """
    Interleave per-message records in the merged order.
    """
    if len(iterators) == 1:
        return iterators[0]
    return interleave(iterators, sequence)
