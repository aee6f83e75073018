# SPDX-License-Identifier: Apache-2.0
"""
Modules come and go in any order, and nothing of them is left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from itertools import permutations
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import attrs
import pytest

from kprobe_modules import Collector, RingOptions, Steady
from kprobe_modules.errors import ModuleStateError
from kprobe_modules.libbpf import map_ids, program_ids
from kprobe_modules.registry import Registry
from tests.support import generator, hooked
from tests.support.footprint import assert_gone, held, left
from tests.support.generator import assert_closed, generate
from tests.support.libbpfs import descriptors
from tests.support.requirements import needs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kprobe_modules import Record
    from kprobe_modules.libbpf import Library

NAMES = ("alpha", "beta", "gamma")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def modules() -> dict[str, object]:
    return {name: generator.renamed(name) for name in NAMES}


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """
    Check that the body gives all descriptors back.
    """
    before = descriptors()
    yield
    assert descriptors() - before == set()


def of(records: list[Record], name: str) -> list[int]:
    return [
        each.sequence for each in records if each.module == name and not isinstance(each, Steady)
    ]


ORDERS = list(permutations(NAMES))


@pytest.mark.parametrize("order", range(len(ORDERS)))
def test_any_order(order: int, modules: dict[str, object]) -> None:
    needs.root()
    with nothing_left(), Collector() as collector:
        alone = held()
        # Twice, and all orders of leaving occur, with different orders of coming.
        for leaving in (ORDERS[-order], ORDERS[(2 * order + 1) % len(ORDERS)]):
            for name in ORDERS[order]:
                collector.attach(modules[name])
                generate(collector, 5, name=name)
            both = held()
            assert len(both - alone) > 3 * len(NAMES)
            for gone, name in enumerate(leaving):
                for other in leaving[gone:]:
                    generate(collector, 3, name=other)
                last = collector.detach(name)
                # 5 at first, and 3 for each round: all of them, and nobody else's.
                assert len(of(last, name)) == 5 + 3 * (gone + 1)
                assert {each.module for each in last} == {name}
                totals = assert_closed(collector, name)
                assert totals["received"] == 5 + 3 * (gone + 1)
                assert totals["lost"] == 0
            assert collector.poll(timeout=0.02) == []
            assert held() == alone
        everything = both
    assert_gone(everything)


def test_closing_frees_everything(library: Library) -> None:
    needs.root()
    with nothing_left():
        with Collector(library=library) as collector:
            collector.attach(generator.MODULE)
            collector.attach(hooked.MODULE, quiet=True)
            ids = held()
            assert {kind for kind, _ in ids} == {"prog", "map", "link"}
            assert left(ids) == ids
            assert {number for kind, number in ids if kind == "prog"} <= set(program_ids())
            assert {number for kind, number in ids if kind == "map"} <= set(map_ids())
        assert_gone(ids)


@pytest.mark.parametrize("transport", ["perf", "ringbuf"])
def test_detach_while_another_thread_iterates(transport: str, modules: dict[str, object]) -> None:
    """
    After detach returns, no record of that module comes; and no other module misses one.
    """
    needs.root()
    rings = RingOptions(transport=transport, pages=64)
    with Collector(rings=rings, interval=0.002) as collector:
        taken: list[Record] = []
        ended: list[BaseException | None] = []

        def consume() -> None:
            try:
                for record in collector:
                    taken.append(record)  # noqa: PERF402 - the length is looked at meanwhile
            except BaseException as error:  # noqa: BLE001 - told by the test
                ended.append(error)
            else:
                ended.append(None)

        collector.attach(modules["beta"])
        consumer = threading.Thread(target=consume)
        consumer.start()
        emitted = 0
        for _ in range(17):
            collector.attach(modules["alpha"])
            generate(collector, 61, name="alpha")
            generate(collector, 31, name="beta")
            emitted += 31
            before = len(taken)
            last = collector.detach("alpha")
            # The consumer may be about to store the one that it took before.
            barrier = monotonic() + 10
            while len(of(taken[before:], "beta")) < 1 and len(of(taken, "beta")) < emitted:
                assert monotonic() < barrier
            mark = len(taken)
            generate(collector, 17, name="beta")
            emitted += 17
            assert len(of(last, "alpha")) + len(of(taken, "alpha")) == 61
            deadline = monotonic() + 10
            while len(of(taken, "beta")) < emitted:
                assert monotonic() < deadline, "a record of the other module is missing"
            assert of(taken[mark:], "alpha") == []
            sequences = sorted(of(taken, "alpha") + of(last, "alpha"))
            assert sequences == list(range(61))
            del taken[: len(taken)]
            emitted = 0
        collector.close()
        consumer.join(10)
        assert not consumer.is_alive()
        assert ended == [None]


def test_attach_twice_and_detach_twice() -> None:
    needs.root()
    with Collector() as collector:
        collector.attach(generator.MODULE)
        with pytest.raises(ModuleStateError, match="generator is attached already"):
            collector.attach(generator.MODULE)
        assert collector.modules == ("generator",)
        collector.detach("generator")
        with pytest.raises(ModuleStateError, match="generator is not attached; attached: none"):
            collector.detach("generator")
        with pytest.raises(ModuleStateError):
            collector.status("generator")
        with pytest.raises(ModuleStateError):
            collector.resync("generator")


def test_ids_are_not_given_twice() -> None:
    needs.root()
    with Collector() as collector:
        collector._ensemble._last_id = 0xFFFF - 1
        for name in NAMES:
            collector.attach(generator.renamed(name))
        ids = [item.binding.module_id for item in collector._ensemble.attached.values()]
        assert ids == [0xFFFF, 1, 2]
        collector.detach("beta")
        collector._ensemble._last_id = 0xFFFF - 1
        collector.attach(generator.renamed("beta"))
        assert collector._ensemble.attached["beta"].binding.module_id == 1
        for name in NAMES:
            generate(collector, 7, name=name)
        records = collector.flush()
        assert [len(of(records, name)) for name in NAMES] == [7, 7, 7]


class FailsWhenAttached(generator.GeneratorHandler):
    def attached(self) -> None:
        msg = "not today"
        raise RuntimeError(msg)


class FailsWhileMade(generator.GeneratorHandler):
    def __init__(self, context: object) -> None:
        super().__init__(context)  # type: ignore[arg-type]
        msg = "not ever"
        raise RuntimeError(msg)


class WantsWhatIsNot(generator.GeneratorHandler):
    def on_size_40(self, time: int, colour: int) -> None:  # type: ignore[override]
        raise NotImplementedError


class FailsWhileScanned(hooked.HookedHandler):
    def surroundings(self, hook: str) -> list[contextlib.AbstractContextManager[object]]:
        msg = f"not {hook}"
        raise RuntimeError(msg)


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (attrs.evolve(generator.MODULE, handler=FailsWhenAttached), "not today"),
        (attrs.evolve(generator.MODULE, handler=FailsWhileMade), "not ever"),
        (attrs.evolve(generator.MODULE, handler=WantsWhatIsNot), "colour"),
        (attrs.evolve(hooked.MODULE, handler=FailsWhileScanned), "not existing"),
        (attrs.evolve(generator.MODULE, handler="tests.nowhere:Handler"), "tests.nowhere"),
    ],
)
def test_a_module_that_fails_to_attach_leaves_nothing(
    manifest: generator.Manifest, words: str
) -> None:
    needs.root()
    with Collector() as collector:
        collector.attach(generator.renamed("bystander"))
        collector.flush()
        before, ids = descriptors(), held()
        with pytest.raises(Exception, match=words):
            collector.attach(manifest)
        assert collector.modules == ("bystander",)
        assert descriptors() == before
        assert held() == ids
        assert collector.find("generator") is None
        generate(collector, 5, name="bystander")
        records = collector.flush()
        assert {each.module for each in records} == {"bystander"}
        assert len(records) == 5
        # And nothing stands in the way of the module in good health.
        collector.attach(
            attrs.evolve(manifest, handler=generator.GeneratorHandler)
            if manifest.name == "generator"
            else hooked.MODULE
        )


def test_a_module_that_fails_at_start_undoes_the_others() -> None:
    needs.root()
    with nothing_left(), pytest.raises(RuntimeError, match="not today"):
        Collector(
            [
                generator.renamed("alpha"),
                attrs.evolve(generator.MODULE, handler=FailsWhenAttached),
            ]
        )


def test_two_collectors_in_one_process(modules: dict[str, object]) -> None:
    """
    Each has its own rings and maps, and its full stream.
    """
    needs.root()
    with Collector() as one, Collector() as other:
        for collector in (one, other):
            collector.attach(modules["alpha"])
            collector.attach(hooked.MODULE, watched=os.getpid())
            collector.flush()
        children = [spawn() for _ in range(13)]
        generate(one, 101, name="alpha")
        generate(other, 53, name="alpha")
        records = {collector: collector.flush() for collector in (one, other)}
        assert len(of_kind(records[one], "alpha")) == 101
        assert len(of_kind(records[other], "alpha")) == 53
        for collector in (one, other):
            started = [
                each.pid
                for each in records[collector]
                if isinstance(each, hooked.Seen) and each.how in hooked.STARTS
            ]
            assert started == children
        one.close()
        generate(other, 7, name="alpha")
        assert len(of_kind(other.flush(), "alpha")) == 7


def of_kind(records: list[Record], name: str) -> list[Record]:
    return [each for each in records if each.module == name]


def spawn() -> int:
    with subprocess.Popen(["/bin/true"]) as child:
        return child.pid


CHILD = """
import sys
from kprobe_modules import Collector
from tests.support import generator, hooked

with Collector() as collector:
    collector.attach(generator.MODULE)
    collector.attach(hooked.MODULE, watched=int(sys.argv[1]))
    collector.flush()
    print("ready", flush=True)
    seen = 0
    for record in collector.records(timeout=60):
        if isinstance(record, hooked.Seen) and record.how in hooked.STARTS:
            print(record.pid, flush=True)
"""


@contextlib.contextmanager
def other_process() -> Iterator[subprocess.Popen[str]]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(os.getpid())],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_two_processes_have_the_full_stream_each() -> None:
    needs.root()
    with Collector() as collector, other_process() as process:
        collector.attach(hooked.MODULE, watched=os.getpid())
        collector.flush()
        children = [spawn() for _ in range(17)]
        mine = [
            each.pid
            for each in collector.flush()
            if isinstance(each, hooked.Seen) and each.how in hooked.STARTS
        ]
        assert mine == children
        assert process.stdout is not None
        assert [int(process.stdout.readline()) for _ in children] == children


def test_kill_9_leaves_nothing() -> None:
    needs.root()
    with other_process() as process:
        ids = held(process.pid)
        assert {kind for kind, _ in ids} == {"prog", "map", "link"}
        assert left(ids) == ids
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert_gone(ids)


def test_close_twice_and_from_several_threads() -> None:
    needs.root()
    with nothing_left():
        collector = Collector([generator.MODULE])
        threads = [threading.Thread(target=collector.close) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)
        collector.close()
        assert collector.modules == ()
        assert collector.stats().modules["generator"]["emitted"] == 0
        for refused in (
            collector.flush,
            lambda: collector.attach(generator.MODULE),
            lambda: collector.detach("generator"),
            lambda: collector.resync("generator"),
            lambda: collector.subscribe(print),
        ):
            with pytest.raises(ModuleStateError, match="closed"):
                refused()
        assert [each.record for each in collector.poll()] == ["steady"]
        assert list(collector.records(timeout=5)) == []


@pytest.mark.parametrize(
    "waiting",
    [
        list,
        lambda collector: collector.poll(timeout=100),
        lambda collector: list(collector.batches()),
        Collector.run,
    ],
)
def test_close_while_others_wait(waiting: Callable[[Collector], object]) -> None:
    needs.root()
    with nothing_left():
        collector = Collector(interval=50)
        ended: list[object] = []
        threads = [
            threading.Thread(target=lambda: ended.append(waiting(collector))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        deadline = monotonic() + 10
        while len(collector._intake._sleepers) < 3:
            assert monotonic() < deadline
        collector.close()
        for thread in threads:
            thread.join(10)
        assert len(ended) == 3


def test_close_by_a_signal_in_the_midst() -> None:
    """
    A handler of the same thread closes while it sleeps, or while it drains.
    """
    needs.root()
    before = signal.signal(signal.SIGALRM, lambda *_: collector.close())
    try:
        for interval in (0.0001, 0.03, 50):
            with nothing_left():
                collector = Collector([generator.MODULE], interval=interval)
                signal.setitimer(signal.ITIMER_REAL, 0.1)
                records = list(collector.records(timeout=30))
                assert [each.record for each in records] == ["steady"]
                assert collector.modules == ()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_callback_may_close() -> None:
    needs.root()
    with nothing_left():
        collector = Collector()
        came: list[Record] = []

        def once(record: Record) -> None:
            came.append(record)
            collector.close()

        collector.subscribe(once)
        collector.attach(generator.MODULE)
        collector.run(timeout=30)
        assert [each.record for each in came] == ["steady"]
        assert collector.modules == ()


def test_only_what_is_enabled_is_imported() -> None:
    needs.root()
    script = (
        "import sys\n"
        "from kprobe_modules import Collector\n"
        "with Collector() as collector:\n"
        "    names = collector.modules\n"
        "loaded = [name for name in sys.modules if name.startswith('kprobe_modules.modules.')]\n"
        "assert names == () and loaded == [], loaded\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=60)


def test_a_registry_of_ones_own() -> None:
    needs.root()
    registry = Registry({"generator": generator.MODULE})
    with Collector(["generator"], registry=registry) as collector:
        assert collector.modules == ("generator",)
