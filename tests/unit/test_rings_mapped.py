# SPDX-License-Identifier: Apache-2.0
"""
Rings over descriptors: files stand in for the kernel's memory where that is enough.
"""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kprobe_modules.rings import BpfRing, BpfRings, Drainer, Framing, PerfRing, PerfRings
from kprobe_modules.rings.cpus import ONLINE, parse_cpus

from kprobe_modules import rings
from kprobe_modules.errors import RingError
from kprobe_modules.libbpf import BpfObject
from kprobe_modules.libbpf.perf import open_bpf_output
from tests.support.requirements import needs
from tests.support.ring_images import BpfImage, PerfImage, message

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = mmap.PAGESIZE
BPF_MAP_TYPE_RINGBUF = 27


@pytest.fixture
def memory() -> Iterator[int]:
    """
    A file in memory as large as any ring here.
    """
    fd = os.memfd_create("ring")
    os.ftruncate(fd, 8 * PAGE)
    yield fd
    os.close(fd)


def descriptors() -> set[str]:
    """
    Return what this process has open.
    """
    return {str(path) for path in Path("/proc/self/fd").iterdir()}


def put(fd: int, at: int, content: bytes) -> None:
    """
    Write into a ring's file as the kernel would.
    """
    assert os.pwrite(fd, content, at) == len(content)


def test_a_perf_ring_is_drained_where_the_kernel_keeps_it(memory: int) -> None:
    """
    data_head at 1024, data_tail at 1032, data from the second page on, wrapping.
    """
    content = message(77, 5, b"around the edge and on again....")
    record = PerfImage.sample(content)
    start = 2 * PAGE - 24
    put(memory, PAGE + start, record[:24])
    put(memory, PAGE, record[24:])
    put(memory, 1024, (start + len(record)).to_bytes(8, "little"))
    put(memory, 1032, start.to_bytes(8, "little"))
    with PerfRing(memory, 2) as ring:
        drainer = Drainer(Framing())
        drainer.register(5, len(content))
        drainer.add_ring(0, ring)
        drained = drainer.drain()
        assert bytes(memoryview(drained.batches[0])) == content
        with pytest.raises(RingError, match="still in a drainer"):
            ring.close()
        drainer.remove_ring(0)
    tail = os.pread(memory, 8, 1032)
    assert int.from_bytes(tail, "little") == start + len(record)


def test_a_bpf_ring_is_drained_where_the_kernel_keeps_it(memory: int) -> None:
    """
    Consumer in page 0, producer in page 1, then the data twice.
    """
    content = message(77, 5, b"once", cpu=6)
    record = BpfImage.record(content)
    start = 2 * PAGE - 16
    put(memory, 2 * PAGE + start, record)
    put(memory, PAGE, (start + len(record)).to_bytes(8, "little"))
    put(memory, 0, start.to_bytes(8, "little"))
    with BpfRing(memory, 2 * PAGE) as ring:
        drainer = Drainer(Framing())
        drainer.register(5, 20)
        drainer.add_ring(rings.SHARED, ring)
        assert bytes(memoryview(drainer.drain().batches[0])) == content
        assert drainer.received(5) == {6: 1}
        drainer.remove_ring(rings.SHARED)
    assert int.from_bytes(os.pread(memory, 8, 0), "little") == start + len(record)


def test_a_ring_closes_once_and_only_its_own(memory: int) -> None:
    """
    Closing twice is harmless; a descriptor that is not owned stays open.
    """
    ring = PerfRing(memory, 1)
    ring.close()
    ring.close()
    os.fstat(memory)
    copy = os.dup(memory)
    owned = PerfRing(copy, 1, own=True)
    assert owned.fileno() == copy
    owned.close()
    owned.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(copy)


def test_what_cannot_be_mapped_is_refused(memory: int) -> None:
    """
    With the size that was asked for, and the kernel's reason.
    """
    with pytest.raises(RingError, match="3 pages, expected a power of two"):
        PerfRing(memory, 3)
    with pytest.raises(RingError, match="5000 bytes, expected a power of two"):
        BpfRing(memory, 5000)
    with pytest.raises(RingError, match="cannot be mapped"):
        PerfRing(memory, 16)
    unmappable = os.eventfd(0)
    with pytest.raises(RingError, match="cannot be mapped") as raised:
        PerfRing(unmappable, 1)
    os.close(unmappable)
    assert raised.value.errno == errno.ENODEV


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0\n", (0,)), ("0-3\n", (0, 1, 2, 3)), ("0,2-3,8", (0, 2, 3, 8)), ("\n", ())],
)
def test_lists_of_cpus(text: str, cpus: tuple[int, ...]) -> None:
    """
    As /sys/devices/system/cpu/online writes them.
    """
    assert parse_cpus(text) == cpus


def test_a_bad_list_of_cpus_is_refused() -> None:
    """
    The text is in the error.
    """
    with pytest.raises(RingError, match="zero-three"):
        parse_cpus("zero-three")


class Events:
    """
    Real perf events, and a note of what was put into the array.
    """

    def __init__(self) -> None:
        needs.root()
        self.inserted: dict[int, int] = {}
        self.refuse: int | None = None

    def open(self, cpu: int) -> int:
        """
        Open the event of one CPU.
        """
        return open_bpf_output(cpu, wakeup_watermark=PAGE)

    def insert(self, cpu: int, fd: int) -> None:
        """
        Note an insertion, or refuse it.
        """
        if cpu == self.refuse:
            raise OSError(errno.E2BIG, "no room in the array")
        self.inserted[cpu] = fd

    def remove(self, cpu: int) -> None:
        """
        Note a removal.
        """
        del self.inserted[cpu]

    def rings(self, online: Path = ONLINE) -> PerfRings:
        """
        Return a set of rings over these events.
        """
        return PerfRings(
            pages=2,
            open_event=self.open,
            insert=self.insert,
            remove=self.remove,
            online=online,
        )


def test_one_ring_per_online_cpu() -> None:
    """
    All of them inserted, and every descriptor closed at the end.
    """
    events = Events()
    before = descriptors()
    with events.rings() as found:
        online = parse_cpus(ONLINE.read_text(encoding="ascii"))
        assert found.cpus == online
        assert tuple(events.inserted) == online
        assert found.refresh() == ((), ())
        assert found.read(online[0]) == []
    found.close()
    assert descriptors() == before


def test_an_empty_wait_costs_next_to_nothing() -> None:
    """
    It sleeps for its timeout, and says that nothing came.
    """
    events = Events()
    with events.rings() as found:
        cpu, started = time.process_time(), time.monotonic()
        assert not found.wait(0.2)
        assert time.monotonic() - started >= 0.19
        assert time.process_time() - cpu < 0.02
        assert not found.wait(0)


def pretend_written(found: PerfRings, cpu: int, size: int) -> None:
    """
    Move the kernel's position: the page that holds it may be written, the data may not.
    """
    head = found._rings[cpu].memory().produced
    head[:] = size.to_bytes(8, "little")


def test_data_below_the_watermark_is_seen_at_the_timeout() -> None:
    """
    Nobody wakes the waiter for it.
    """
    events = Events()
    with events.rings() as found:
        pretend_written(found, found.cpus[0], 8)
        started = time.monotonic()
        assert found.wait(0.05)
        assert time.monotonic() - started >= 0.04
        assert found.drainer.drain().malformed == 1
        assert not found.wait(0)


def test_cpus_come_and_go(tmp_path: Path) -> None:
    """
    The ring of a CPU that went is drained to its end before it is closed.
    """
    online = tmp_path / "online"
    everyone = ONLINE.read_text(encoding="ascii")
    cpus = parse_cpus(everyone)
    needs.cpus(2)
    events = Events()
    online.write_text(everyone, encoding="ascii")
    before = descriptors()
    with events.rings(online) as found:
        last = cpus[-1]
        pretend_written(found, last, 8)
        online.write_text(",".join(map(str, cpus[:-1])), encoding="ascii")
        with_it = descriptors()
        assert found.refresh() == ((), (last,))
        assert last not in events.inserted
        assert last not in found.cpus
        assert descriptors() == with_it
        assert found.refresh() == ((), ())
        assert found.drainer.drain().malformed == 1
        assert found.refresh() == ((), ())
        assert len(descriptors()) < len(with_it)
        online.write_text(everyone, encoding="ascii")
        assert found.refresh() == ((last,), ())
        assert found.cpus == cpus
    assert descriptors() == before


def test_a_cpu_that_has_just_gone_is_passed_over(tmp_path: Path) -> None:
    """
    The list says online, the kernel says ENODEV.
    """
    events = Events()
    online = tmp_path / "online"
    online.write_text("0,4000\n", encoding="ascii")

    def open_event(cpu: int) -> int:
        if cpu:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return events.open(cpu)

    with PerfRings(
        pages=1,
        open_event=open_event,
        insert=events.insert,
        remove=events.remove,
        online=online,
    ) as found:
        assert found.cpus == (0,)


def test_a_refused_insertion_leaves_nothing_open() -> None:
    """
    Whatever had been opened before it is closed again.
    """
    events = Events()
    events.refuse = parse_cpus(ONLINE.read_text(encoding="ascii"))[-1]
    before = descriptors()
    with pytest.raises(OSError, match="no room in the array"):
        events.rings()
    assert descriptors() == before


def test_the_kernels_own_bpf_ring_buffer() -> None:
    """
    Mapped with the rights that the kernel grants, watched, and closed.
    """
    needs.root()
    path = Path(__file__).parents[1] / "bpf" / "objects" / f"generator.{os.uname().machine}.bpf.o"
    with BpfObject.open(needs.file(path).read_bytes(), "generator") as found:
        for program in found.programs.values():
            program.set_autoload(False)
        events = found.maps["events"]
        events.set_type(BPF_MAP_TYPE_RINGBUF)
        events.set_key_size(0)
        events.set_value_size(0)
        events.set_max_entries(4 * PAGE)
        found.load()
        before = descriptors()
        with BpfRings(events.fd, 4 * PAGE) as buffer:
            assert buffer.cpus == parse_cpus(ONLINE.read_text(encoding="ascii"))
            assert buffer.refresh() == ((), ())
            assert not buffer.wait(0)
            assert buffer.drainer.drain().records == 0
            with pytest.raises(RingError, match="only a perf ring can be read in step"):
                buffer.read(0, 1)
        buffer.close()
        assert descriptors() == before


def test_the_room_has_one_name() -> None:
    """
    Under another name its classes would exist twice.
    """
    path = rings.__file__
    script = f"""
import importlib.util as u
spec = u.spec_from_file_location("rings", {path!r})
spec.loader.exec_module(u.module_from_spec(spec))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ImportError: import kprobe_modules.rings, not rings" in done.stderr


@pytest.mark.parametrize("value", ["1", "0"])
def test_the_pure_twin_can_be_asked_for(value: str) -> None:
    """
    KPROBE_MODULES_PURE=1 has the last word; 0 is the same as not set.
    """
    script = "from kprobe_modules import rings; print(rings.NATIVE, rings.Drainer.__module__)"
    environment = {**os.environ, "KPROBE_MODULES_PURE": value}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    if value == "1":
        assert done.stdout.split() == ["False", "kprobe_modules.rings._drain_py"]
    else:
        native, module = done.stdout.split()
        assert module.endswith("_drain" if native == "True" else "_drain_py")
