# SPDX-License-Identifier: Apache-2.0
"""
The common maps: what they are, who creates them, and when a module may have them.

They are declared once, in ``bpf/collector.bpf.c``.  Loading that object creates
them with the BTF of their keys and values; a module's object declares the ones it
wants through the same header, and is given ours in their place.  libbpf's
``bpf_map__reuse_fd`` compares nothing, so this file does, before.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from kprobe_modules import specfile
from kprobe_modules.architecture import machine_arch
from kprobe_modules.errors import ModuleStateError
from kprobe_modules.libbpf import BpfObject
from kprobe_modules.libbpf import map as bpf_map

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from kprobe_modules.libbpf import Library
    from kprobe_modules.spec import MapSpec, ObjectSpec

__all__ = [
    "COMPARED",
    "FENCE",
    "MAP_TYPE_RINGBUF",
    "CommonMaps",
    "collector_spec",
    "machine_arch",
    "map_differences",
]

FENCE = "km_fence"
"""The program that is run on a CPU to know that nothing older will come from it."""

MAP_TYPE_RINGBUF = 27
"""BPF_MAP_TYPE_RINGBUF of ``enum bpf_map_type`` in <linux/bpf.h>, since 5.8."""


def _collector_file(suffix: str) -> bytes:
    name = f"collector.{machine_arch()}.{suffix}"
    return (Path(__file__).parent / "bpf" / name).read_bytes()


def collector_spec() -> ObjectSpec:
    """
    Return the spec of the object that declares the common maps.
    """
    data = _collector_file("bpf.o")
    return specfile.read(data, "collector", _collector_file("spec.json"))


COMPARED: Final = ("type_name", "key_size", "value_size", "flags")


def map_differences(
    label: str, theirs: MapSpec, ours: MapSpec, owner: str, compared: Iterable[str] = COMPARED
) -> list[str]:
    """
    Name everything in which one declaration of a map differs from its owner's.

    Args:
        label: what the map is called, at the beginning of each sentence.
        theirs: what was found.
        ours: what was expected.
        owner: whose declaration that is.
        compared: attributes that must be equal, besides the types of key and value.
    """
    different = [
        f"{label}: {what.replace('_', ' ')} is {getattr(theirs, what)}, "
        f"{owner} has {getattr(ours, what)}"
        for what in compared
        if getattr(theirs, what) != getattr(ours, what)
    ]
    for what in ("key", "value"):
        their_shape, our_shape = getattr(theirs, what), getattr(ours, what)
        if their_shape is not None and our_shape is not None:
            found = their_shape.differences(our_shape, what)
            different += [f"{label}: {difference}" for difference in found]
        elif their_shape != our_shape:
            different.append(f"{label}: {what} is {their_shape}, not {our_shape}")
    return different


class CommonMaps:
    """
    The loaded collector object: owns the common maps and the fence program.

    Args:
        library: the libbpf to load it with.
        ring_bytes: when given, ``events`` becomes one BPF ring buffer of that many
            bytes instead of an array of perf rings.

    Raises:
        LoadError: when the kernel refuses it.
    """

    def __init__(self, library: Library, *, ring_bytes: int | None = None) -> None:
        self.spec = collector_spec()
        self._object = BpfObject.open(_collector_file("bpf.o"), "km_collector", library)
        self._slots: dict[str, int] = {}
        self._slot_of: dict[str, str] = {}
        try:
            if ring_bytes is not None:
                events = self._object.maps["events"]
                events.set_type(MAP_TYPE_RINGBUF)
                events.set_key_size(0)
                events.set_value_size(0)
                events.set_max_entries(ring_bytes)
            self._object.load()
        except BaseException:
            self._object.close()
            raise

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
        Give the maps up; the kernel frees them when the last module's are gone too.
        """
        self._object.close()

    @property
    def names(self) -> frozenset[str]:
        """
        The names reserved for common maps.
        """
        return frozenset(spec.name for spec in self.spec.maps)

    @property
    def fence_fd(self) -> int:
        """
        Descriptor of the fence program.
        """
        return self._object.programs[FENCE].fd

    def fd(self, name: str) -> int:
        """
        Return the descriptor of a common map; it stays ours.
        """
        return self._object.maps[name].fd

    def fds(self) -> dict[str, int]:
        """
        Return the descriptors of all common maps, by name; they stay ours.
        """
        return {spec.name: self.fd(spec.name) for spec in self.spec.maps}

    def declared(self, spec: ObjectSpec) -> tuple[str, ...]:
        """
        Return the names of the common maps that a module's object declares.
        """
        return tuple(sorted({item.name for item in spec.maps} & self.names))

    def differences(self, spec: ObjectSpec, expected: Iterable[str]) -> list[str]:
        """
        Compare the common maps of a module's object with ours.

        Args:
            spec: the object.
            expected: what its manifest lists.

        Returns:
            A sentence for each difference.
        """
        ours = {item.name: item for item in self.spec.maps}
        theirs = {item.name: item for item in spec.maps if item.name in ours}
        expected = set(expected)
        problems = [
            f"common map {name}: the manifest lists it, the object does not declare it"
            for name in sorted(expected - theirs.keys())
        ]
        problems += [
            f"common map {name}: the object declares it, the manifest does not list it"
            for name in sorted(theirs.keys() - expected)
        ]
        for name in sorted(theirs.keys() & expected):
            problems += map_differences(
                f"common map {name}", theirs[name], ours[name], "the collector"
            )
        return problems

    def clear(self, name: str) -> None:
        """
        Delete all entries of a common hash map.
        """
        bpf_map.clear(self.fd(name))

    def slot(self, name: str) -> int:
        """
        Return the number of a tail-call slot, handing one out on first use.

        Raises:
            ModuleStateError: when all slots are taken.
        """
        if name not in self._slots:
            size = self.spec.map("tail_calls").max_entries
            if len(self._slots) >= size:
                msg = f"tail-call slot {name}: all {size} slots are taken"
                raise ModuleStateError(msg)
            self._slots[name] = len(self._slots)
        return self._slots[name]

    def fill_slot(self, name: str, module: str, program_fd: int) -> None:
        """
        Let a module's program serve a slot.

        Raises:
            ModuleStateError: when another module serves it already.
        """
        owner = self._slot_of.setdefault(name, module)
        if owner != module:
            msg = f"tail-call slot {name}: module {module} offers it, {owner} already serves it"
            raise ModuleStateError(msg)
        key = self.slot(name).to_bytes(4, "little")
        bpf_map.update(self.fd("tail_calls"), key, program_fd.to_bytes(4, "little"))

    def empty_slots(self, module: str) -> None:
        """
        Empty the slots that a module serves, so that callers fall through.
        """
        for name in [name for name, owner in self._slot_of.items() if owner == module]:
            bpf_map.delete(self.fd("tail_calls"), self.slot(name).to_bytes(4, "little"))
            del self._slot_of[name]
