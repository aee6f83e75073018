# SPDX-License-Identifier: Apache-2.0
"""
Captures of a collector at work: a replay gives the same records, whatever happened.
"""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import attrs
import pytest

from kprobe_modules import Collector, Registry, RingOptions, ensemble
from kprobe_modules.api import Alternative, Hook, Record
from kprobe_modules.capture import Capture, Replay
from kprobe_modules.libbpf import test_run
from kprobe_modules.records import Failure, Log, Lost, Metrics, StackTrace, Steady, Suppressed
from kprobe_modules.sinks.jsonl import JsonLines
from tests.support import generator
from tests.support.generator import emit_one, generate, pinned
from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kprobe_modules.api import Context, Manifest

BULK = 8


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    needs.root()


def lines(records: Iterable[Record]) -> bytes:
    stream = BytesIO()
    sink = JsonLines(stream)
    for record in records:
        sink(record)
    return stream.getvalue()


def replayed(path: Path, *manifests: Manifest) -> tuple[Replay, list[Record]]:
    registry = Registry({manifest.name: manifest for manifest in manifests})
    replay = Replay(path, registry=registry)
    return replay, [record for records in replay.records() for record in records]


def check(path: Path, live: list[Record], *manifests: Manifest) -> Replay:
    replay, records = replayed(path, *manifests)
    assert lines(records) == lines(live)
    assert replay.cuts == []
    return replay


def variant(handler: type[generator.GeneratorHandler], **changes: object) -> Manifest:
    return attrs.evolve(generator.MODULE, handler=handler, **changes)


@pytest.mark.parametrize("transport", ["perf", "ringbuf"])
def test_the_same_records_of_many_messages(tmp_path: Path, transport: str) -> None:
    path = tmp_path / "c.kmc"
    other = generator.renamed("other")
    with (
        Capture(path) as capture,
        Collector(rings=RingOptions(transport=transport), journal=capture) as collector,
    ):
        collector.attach(generator.MODULE)
        collector.attach(other)
        for cpu in sorted(os.sched_getaffinity(0))[:2]:
            generate(collector, 3001, cpu)
            generate(collector, 307, cpu, "generate_ragged")
            generate(collector, 1009, cpu, name="other")
        records = collector.flush()
        stats = collector.stats()
    assert len(records) > 8000
    replay = check(path, records, generator.MODULE, other)
    assert replay.unanswered == 0
    assert replay.totals is not None
    assert lines([replay.totals]) == lines([stats])


def test_logs_and_metrics_are_in_it(tmp_path: Path) -> None:
    path = tmp_path / "c.kmc"
    with Capture(path) as capture, Collector(journal=capture, metrics=1) as collector:
        collector.attach(generator.MODULE, log_burst=5)
        handler = collector.find("generator")
        assert isinstance(handler, generator.GeneratorHandler)
        records: list[Record] = []
        deadline = monotonic() + 5
        for _ in range(17):
            test_run(handler.context.program_fd("log_one"), cpu=0)
        while not any(isinstance(record, Metrics) for record in records):
            assert monotonic() < deadline
            records += collector.poll(timeout=0.2)
        records += collector.flush()
    kinds = {type(record) for record in records}
    assert {Log, Metrics, Suppressed} <= kinds
    _, again = replayed(path, generator.MODULE)
    assert lines(again[-len(records) :]) == lines(records)


def test_frames_have_the_names_that_they_had(tmp_path: Path) -> None:
    path = tmp_path / "c.kmc"
    with Capture(path) as capture, Collector(journal=capture) as collector:
        collector.attach(generator.MODULE, stack_traces=3)
        records = collector.flush()
        handler = collector.find("generator")
        assert isinstance(handler, generator.GeneratorHandler)
        # What runs on that CPU is whose stack is taken.
        with pinned(cpu=min(os.sched_getaffinity(0))):
            for _ in range(3):
                test_run(handler.context.program_fd("emit_with_stack"))
        records += collector.flush()
    traces = [record for record in records if isinstance(record, StackTrace)]
    assert len(traces) == 3
    assert all(trace.kernel[0].symbol and trace.user[0].object for trace in traces)
    _, again = replayed(path, generator.MODULE)
    assert lines(again[-len(records) :]) == lines(records)


def test_payload_of_the_data_channel_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "c.kmc"
    with Capture(path) as capture, Collector(journal=capture) as collector:
        collector.attach(generator.MODULE, kind=BULK, tail_length=777)
        collector.flush()
        for _ in range(53):
            assert emit_one(collector, 0) == 0
        records = collector.flush()
    assert sum(record.record == "bulk" for record in records) == 53
    _, again = replayed(path, generator.MODULE)
    assert lines(again[1:]) == lines(records)
    assert [len(record.payloads[0]) for record in again[1:]] == [777] * 53  # type: ignore[attr-defined]


def test_what_is_lost_is_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensemble, "RESYNC_INTERVAL_NS", 0)
    path = tmp_path / "c.kmc"
    with (
        Capture(path) as capture,
        Collector(rings=RingOptions(pages=1), journal=capture) as collector,
    ):
        collector.attach(generator.MODULE)
        generate(collector, 3001)
        records: list[Record] = []
        deadline = monotonic() + 30
        while sum(isinstance(record, Steady) for record in records) < 2:
            assert monotonic() < deadline
            records += collector.poll(timeout=0.1)
        records += collector.flush()
    assert any(isinstance(record, Lost) for record in records)
    assert any(isinstance(record, Steady) and record.resync for record in records)
    check(path, records, generator.MODULE)


class Raising(generator.GeneratorHandler):
    """
    Fails in ways that repeat.
    """

    def on_size_40(self, time: int, cpu: int, sequence: int) -> Record:
        if sequence % 3:
            msg = f"sequence {sequence}"
            raise ValueError(msg)
        return super().on_size_40(time, cpu, sequence)

    def steady(self, *, resync: bool) -> Iterable[Record]:
        raise KeyError(resync)

    def tick(self, now: int) -> Iterable[Record]:
        raise OSError(now)


def test_failures_stand_where_they_stood(tmp_path: Path) -> None:
    path = tmp_path / "c.kmc"
    manifest = variant(Raising)
    with Capture(path) as capture, Collector(journal=capture) as collector:
        collector.attach(manifest)
        records = []
        for _ in range(5):
            generate(collector, 601)
            records += collector.poll(timeout=0.4)
        records += collector.flush()
    assert {record.where for record in records if isinstance(record, Failure)} >= {
        "on_size_40",
        "steady",
        "tick",
    }
    replay = check(path, records, manifest)
    assert replay.faults.errors["generator"] > 100


class Looking(generator.GeneratorHandler):
    """
    Sees more of the world than its messages.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.born = context.observe("uptime", self.look)

    look = staticmethod(Path("/proc/uptime").read_bytes)

    def seen(self, time: int, raw: bytes) -> Record:
        return self.tailed(time, 0, 0, raw)

    def attached(self) -> None:
        self.begun = self.context.observe("uptime", self.look)

    def scan(self, hook: str) -> Iterable[Record]:
        yield self.seen(1, hook.encode() + self.context.observe("uptime", self.look))

    def on_size_24(self, time: int) -> Record:  # type: ignore[override]
        try:
            self.context.observe("gone", Path("/nonexistent").read_bytes)
        except FileNotFoundError as error:
            missing = str(error.errno).encode()
        counters = self.context.map("km_counters")
        per_cpu = counters.lookup_percpu((1).to_bytes(4, "little")) or []
        keys = b"".join(counters.keys())
        raw = [self.born, self.begun, missing, *per_cpu, keys, self.look_twice()]
        return self.seen(time, b"|".join(raw))

    def look_twice(self) -> bytes:
        return b"".join(self.context.observe("uptime", self.look) for _ in range(2))

    def tick(self, now: int) -> Iterable[Record]:
        return (self.seen(now, self.context.observe("uptime", self.look)),)


def test_what_a_handler_sees_is_seen_again(tmp_path: Path) -> None:
    path = tmp_path / "c.kmc"
    hooks = (
        Hook("existing", "EXISTING", (Alternative(source="table"),)),
        Hook("changes", "TELEMETRY", (Alternative(source="uptime"),)),
    )

    class Source:
        """
        Readable once.
        """

        def __init__(self) -> None:
            self.fd = os.eventfd(4242)

        def fileno(self) -> int:
            return self.fd

        def close(self) -> None:
            os.close(self.fd)

    class Sourced(Looking):
        def open_source(self, source: str) -> Source:
            opened = Source()
            if source == "uptime":
                self.source = opened
            return opened

        def read_source(self, source: str) -> Iterable[Record]:
            if source == "table":
                return
            raw = self.context.observe(source, lambda: os.read(self.source.fd, 8))
            yield self.seen(2, b"source" + raw)

    manifest = variant(Sourced, hooks=hooks)
    with Capture(path) as capture, Collector(journal=capture) as collector:
        collector.attach(manifest)
        records = []
        for _ in range(3):
            generate(collector, 61)
            records += collector.poll(timeout=0.5)
        collector.resync("generator")
        records += collector.flush()
    tails = {record.tail for record in records if hasattr(record, "tail")}
    assert b"source" + (4242).to_bytes(8, "little") in tails
    assert len(tails) > 5
    assert check(path, records, manifest).unanswered == 0


def test_what_rotation_has_left_is_the_end(tmp_path: Path) -> None:
    path = tmp_path / "c.kmc"
    with (
        Capture(path, max_size=120_000, rotate=2) as capture,
        Collector(journal=capture) as collector,
    ):
        collector.attach(generator.MODULE)
        records = collector.flush()
        for _ in range(40):
            generate(collector, 3001)
            records += collector.flush()
        collector.detach("generator")
        assert capture.written > 480_000
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["c.kmc", "c.kmc.1", "c.kmc.2"]
    assert all(file.stat().st_size <= 120_000 for file in files)
    replay, again = replayed(path, generator.MODULE)
    assert replay.missing > 0
    assert len(again) > 3001
    assert lines(records).endswith(lines(again))


class Refused(generator.GeneratorHandler):
    """
    Emits, then finds that it cannot go on.
    """

    def attached(self) -> None:
        msg = "hinges are missing"
        raise RuntimeError(msg)


def test_modules_that_are_refused_and_that_leave(tmp_path: Path) -> None:
    path = tmp_path / "c.kmc"
    other = generator.renamed("other")
    refused = generator.renamed("refused", Refused)
    with Capture(path) as capture, Collector(journal=capture) as collector:
        collector.attach(generator.MODULE)
        records = collector.poll()
        with pytest.raises(RuntimeError, match="hinges"):
            collector.attach(refused)
        collector.attach(other)
        generate(collector, 307, name="other")
        generate(collector, 61)
        records += collector.flush()
        generate(collector, 11, name="other")
        records += collector.detach("other")
        collector.attach(other)
        generate(collector, 7, name="other")
        records += collector.flush()
    replay = check(path, records, generator.MODULE, other, refused)
    assert replay.faults.errors == {}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_ends_the_capture_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "c.kmc"
    with Capture(path) as capture, Collector(journal=capture) as collector:
        collector.attach(generator.MODULE)
        records = collector.flush()
        with largest_file(100_000):
            for _ in range(20):
                generate(collector, 3001)
                records += collector.flush()
    assert capture.error is not None
    told = [record for record in records if isinstance(record, Failure)]
    assert [(record.module, record.where) for record in told] == [("collector", "capture")]
    assert "the capture ends here: [Errno 27]" in told[0].error
    assert len(records) > 50_000
    replay, again = replayed(path, generator.MODULE)
    assert len(replay.cuts) <= 1
    assert lines(records).startswith(lines(again))
    assert again


def test_what_no_handler_gets_is_not_in_it(tmp_path: Path) -> None:
    path = tmp_path / "c.kmc"
    with Capture(path) as capture, Collector(journal=capture) as collector:
        collector.attach(generator.MODULE)
        records = collector.flush()
        generate(collector, 61)
        assert sum(len(batch) for batches in collector.batches(timeout=0) for batch in batches) > 0
        records += collector.flush()
    check(path, records, generator.MODULE)
