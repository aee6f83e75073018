# SPDX-License-Identifier: Apache-2.0
"""
Captures of synthetic workloads, small enough to be committed.

::

    python -m tests.support.captures make FOLDER NAME [MODULE …]
    python -m tests.support.captures expect

The first attaches each module that is named, or that has a workload here, captures it, and
writes ``<module>-<NAME>.kmc``, from which everything that is not of the workload has been
taken out, and ``.json``, the records that the handler makes of it today.  The second only
writes the latter, for the captures that are committed.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic_ns
from typing import TYPE_CHECKING

import attrs
from kprobe_modules.rings import Drained, Tails

from kprobe_modules import Collector
from kprobe_modules.capture import Capture, Replay, drains, steps
from kprobe_modules.capture.drains import batch
from kprobe_modules.capture.series import Series
from kprobe_modules.sinks.jsonl import JsonLines
from kprobe_modules.specjson import from_plain
from tests.support.churn import churn_command
from tests.support.container_workload import container_workload
from tests.support.dns_workload import dns_workload
from tests.support.nat_workload import nat_workload
from tests.support.tcp_workload import tcp_workload
from tests.support.udp_workload import udp_workload
from tests.support.watch import record_workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from kprobe_modules import Record
    from kprobe_modules.capture.steps import Observation
    from kprobe_modules.layout import Layout

__all__ = ["GOLDEN", "Selection", "golden", "replayed_json", "rewrite"]

GOLDEN = Path(__file__).parents[1] / "unit" / "captures"


def golden() -> list[Path]:
    """
    Return the captures that are committed.
    """
    return sorted(GOLDEN.glob("*.kmc"))


def replayed_json(path: Path) -> bytes:
    """
    Return what ``replay -o json`` prints.
    """
    stream = BytesIO()
    sink = JsonLines(stream)
    for records in Replay(path).records():
        for record in records:
            sink(record)
    return stream.getvalue()


# -- taking out what is not wanted -----------------------------------------------


@attrs.frozen
class Selection:
    """
    What of a capture is kept.
    """

    row: Callable[[str, Mapping[str, object]], bool]
    """Takes a message's name and its fields by name."""
    observation: Callable[[Observation], Observation | None]
    """Returns what of an observation is kept, or None for nothing."""


def rewrite(source: Path, target: Path, selection: Selection) -> None:
    """
    Write a capture with part of another's content; totals and late counts are left out.
    """
    replay = Replay(source)
    # The same from the same source, so that a file changes only if its content does.
    heading = {**replay.heading, "series": "0" * 16}
    series = Series(target, heading, max_size=1 << 30, rotate=0)
    known: dict[int, tuple[str, Layout]] = {}
    for step in replay.steps():
        if step.kind == "module":
            for message in from_plain(step.facts["object"]).messages:
                known[int(step.facts["id"]) | message.id << 16] = message.name, message.layout
        if step.kind == "totals":
            continue
        seen = map(selection.observation, step.observed)
        step.observed = [each for each in seen if each is not None]
        if step.kind == "drained":
            drained = _selected(drains.from_plain(step.facts, step.body), known, selection)
            if not drained.records:
                continue
            step.facts, step.body = drains.to_plain(drained)
        series.write(steps.encode(step), monotonic_ns())
    series.close()


def _selected(
    drained: Drained, known: Mapping[int, tuple[str, Layout]], selection: Selection
) -> Drained:
    rows = [
        (each.key, each.stride, *_row(each, number))
        for each, number in _in_order(drained)
        if each.key in known
    ]
    kept = [row for row in rows if _is_kept(*known[row[0]], row[2], selection)]
    return gathered(kept, newest=drained.newest)


def _in_order(drained: Drained) -> Iterator[tuple[drains.Batch, int]]:
    taken = [0] * len(drained.batches)
    for index in drained.sequence:
        yield drained.batches[index], taken[index]  # type: ignore[misc]
        taken[index] += 1


def _row(each: drains.Batch, number: int) -> tuple[bytes, bytes | None]:
    raw = bytes(each)[number * each.stride : (number + 1) * each.stride]
    return raw, None if each.tails is None else bytes(each.tails.tail(number))


def _is_kept(name: str, layout: Layout, raw: bytes, selection: Selection) -> bool:
    values = dict(zip(layout.names, layout.struct.unpack(raw), strict=True))
    return selection.row(name, values)


def messages_of(drained: Drained) -> list[tuple[int, int, bytes, bytes | None]]:
    """
    Return key, stride, row and tail of each message in order.
    """
    return [(each.key, each.stride, *_row(each, number)) for each, number in _in_order(drained)]


def gathered(messages: Sequence[tuple[int, int, bytes, bytes | None]], newest: int = 0) -> Drained:
    """
    Make a drain of messages, as `messages_of` gives them.
    """
    by_key: dict[int, list[tuple[int, int, bytes, bytes | None]]] = {}
    for message in messages:
        by_key.setdefault(message[0], []).append(message)
    numbers = {key: index for index, key in enumerate(by_key)}
    sequence = memoryview(
        b"".join(numbers[key].to_bytes(2, sys.byteorder) for key, *_ in messages)
    ).cast("H")
    batches = []
    for key, same in by_key.items():
        tails = None
        if any(tail is not None for *_, tail in same):
            blobs = [tail or b"" for *_, tail in same]
            ends = [sum(map(len, blobs[:count])) for count in range(len(blobs) + 1)]
            offsets = memoryview(b"".join(end.to_bytes(4, sys.byteorder) for end in ends))
            tails = Tails(offsets.cast("I"), memoryview(b"".join(blobs)))
        batches.append(batch(key, same[0][1], b"".join(row for _, _, row, _ in same), tails))
    return Drained(
        batches=batches,  # type: ignore[arg-type]
        sequence=sequence,
        lost=[],
        unknown=0,
        malformed=0,
        skipped=0,
        late=[],
        newest=newest,
        records=len(sequence),
        more=False,
    )


# -- workloads ---------------------------------------------------------------------


@contextmanager
def _cgroup() -> Iterator[Path]:
    base = Path("/sys/fs/cgroup/memory")
    if not (base / "cgroup.procs").exists():
        base = Path("/sys/fs/cgroup")
    folder = base / "captured"
    folder.mkdir()
    try:
        yield folder
    finally:
        folder.rmdir()


def _processes(path: Path) -> Selection:
    """
    Capture processes that were there, come, change and go.
    """
    command = churn_command(11)
    with (
        _cgroup() as cgroup,
        subprocess.Popen(["/bin/sleep", "1000"]) as sleeper,
        Capture(path) as capture,
        Collector(journal=capture) as collector,
    ):
        collector.attach("processes", thread_exits=1)
        (cgroup / "cgroup.procs").write_text(str(sleeper.pid))
        records, _ = record_workload(collector, command)
        sleeper.send_signal(signal.SIGTERM)
        sleeper.wait()
        records += collector.flush()
    pids = _descendants(records) | {sleeper.pid}

    def row(_message: str, fields: Mapping[str, object]) -> bool:
        return fields["pid"] in pids

    def observation(each: Observation) -> Observation | None:
        first = each.what.partition("/")[0]
        return each if not first.isdigit() or int(first) in pids else None

    return Selection(row, observation)


def _descendants(records: Sequence[Record]) -> set[int]:
    """
    Return the workload's processes: the first that runs churn, and all below.
    """
    found: set[int] = set()
    for record in records:
        pid, parent = getattr(record, "pid", 0), getattr(record, "parent_pid", 0)
        begins = record.record == "process_executed" and getattr(record, "comm", "") == "churn"
        if parent in found or begins:
            found.add(pid)
    return found


def _containers(path: Path) -> Selection:
    """
    Capture cgroups and containers that were there, come, change and go, and their metadata.
    """
    with (
        container_workload() as work,
        Capture(path) as capture,
        Collector(journal=capture) as collector,
    ):
        collector.attach("containers")
        work.run(collector)
    return Selection(lambda _message, fields: work.row(fields), work.observation)


def _tcp(path: Path) -> Selection:
    """
    Capture sockets that were there, that open, talk, fail, are reset and close.
    """
    with (
        tcp_workload() as work,
        Capture(path) as capture,
        Collector(journal=capture) as collector,
    ):
        work.run(collector)
    return Selection(lambda _message, fields: work.row(fields), work.observation)


def _udp(path: Path) -> Selection:
    """
    Capture sockets that were there, that get ports, talk with peers, drop and close.
    """
    with (
        udp_workload() as work,
        Capture(path) as capture,
        Collector(journal=capture) as collector,
    ):
        work.run(collector)
    return Selection(lambda _message, fields: work.row(fields), work.observation)


def _dns(path: Path) -> Selection:
    """
    Capture queries that are answered, repeated, asked again over TCP and not answered.
    """
    with (
        dns_workload() as work,
        Capture(path) as capture,
        Collector(journal=capture) as collector,
    ):
        work.run(collector)
    # Its handler looks at nothing but messages.
    return Selection(lambda _message, fields: work.row(fields), lambda each: each)


def _nat(path: Path) -> Selection:
    """
    Capture connections that were there, that begin, are translated in every way, and end.
    """
    with (
        nat_workload() as work,
        Capture(path) as capture,
        Collector(journal=capture) as collector,
    ):
        work.run(collector)
    return Selection(lambda _message, fields: work.row(fields), work.observation)


WORKLOADS: Mapping[str, Callable[[Path], Selection]] = {
    "processes": _processes,
    "containers": _containers,
    "tcp": _tcp,
    "udp": _udp,
    "dns": _dns,
    "nat": _nat,
}


def make(folder: Path, kernel: str, modules: Iterable[str]) -> None:
    """
    Write the captures of the modules' workloads.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for module in modules:
        work = WORKLOADS[module]
        target = folder / f"{module}-{kernel}.kmc"
        with TemporaryDirectory() as scratch:
            whole = Path(scratch) / "whole.kmc"
            rewrite(whole, target, work(whole))
        expect(target)
        print(target, target.stat().st_size, "bytes")


def expect(path: Path) -> None:
    """
    Write what a capture gives today.
    """
    path.with_suffix(".json").write_bytes(replayed_json(path))


def main(arguments: Sequence[str]) -> int:
    """
    Do what the arguments say.
    """
    match list(arguments):
        case ["make", folder, kernel, *modules]:
            make(Path(folder), kernel, modules or WORKLOADS)
        case ["expect"]:
            for path in golden():
                expect(path)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
