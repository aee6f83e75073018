# SPDX-License-Identifier: Apache-2.0
"""
What an object file holds, as immutable values.

`kprobe_modules.objectfile.read` makes them; no privileges and no kernel are
needed, and the same bytes give the same spec on every machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import attrs

from kprobe_modules.byfields import ByFields
from kprobe_modules.errors import MissingMessageError, ObjectError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kprobe_modules.codes import Code, Site
    from kprobe_modules.layout import Layout
    from kprobe_modules.shape import TypeShape

__all__ = ["MapSpec", "MessageSpec", "ObjectSpec", "ProgramSpec", "Tunable", "check_arch"]

#: `platform.machine` has the kernel's names, of which some differ from ours.
_MACHINES: Final = {"aarch64": "arm64", "amd64": "x86_64"}


@attrs.frozen(eq=False, repr=False)
class ProgramSpec(ByFields):
    """
    One BPF program.

    Attributes:
        name: of its C function.
        section: as in the file: ``?fentry/cgroup_exit``.
        kind: ``kprobe``, ``kretprobe``, ``fentry``, ``fexit``, ``tp_btf``, ``raw_tp``,
            ``tracepoint``, ``iter`` and so on.
        target: what it attaches to: ``cgroup_exit``, ``sched/sched_switch``;
            empty if the section does not say.
        hook: name of the hook it serves, or None.
        tag: ``START``, ``END``, ``EXISTING`` or ``TELEMETRY``; None without a hook.
        autoload: False if its section starts with ``?``.
        sleepable: True if its section says so (``fentry.s``, ``iter.s``).
    """

    name: str
    section: str
    kind: str
    target: str
    hook: str | None = None
    tag: str | None = None
    autoload: bool = True
    sleepable: bool = False


@attrs.frozen(eq=False, repr=False)
class MapSpec(ByFields):
    """
    One map, as the object declares it.

    Attributes:
        name: as declared.
        type: BPF_MAP_TYPE_* as a number.
        type_name: the same as a lower-case word: ``percpu_array``.
        key_size: bytes.
        value_size: bytes.
        max_entries: 0 where the loader fills it in.
        flags: BPF_F_*.
        key: shape of the key, None if only a size is given.
        value: shape of the value, None if only a size is given.
    """

    name: str
    type: int
    type_name: str
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    key: TypeShape | None = None
    value: TypeShape | None = None


@attrs.frozen(eq=False, repr=False)
class MessageSpec(ByFields):
    """
    One message: its name, its id within the module, its layout.
    """

    name: str
    id: int
    layout: Layout


@attrs.frozen(eq=False, repr=False)
class Tunable(ByFields):
    """
    One constant that can be set before the object is loaded.

    Attributes:
        name: of the C variable.
        kind: as `kprobe_modules.layout.Field.kind`, or ``bytes``.
        size: bytes.
        offset: bytes from the start of ``.rodata``.
        default: int, bool or bytes, as the file has it.
        unit: what it means, from its typedef.
        doc: the text of its ``km_doc`` tag.
    """

    name: str
    kind: str
    size: int
    offset: int
    default: int | bool | bytes
    unit: str | None = None
    doc: str | None = None

    @property
    def framework(self) -> bool:
        """
        Whether the framework sets it, rather than who attaches the module.
        """
        return self.name.startswith("km_")


@attrs.frozen(eq=False, repr=False)
class ObjectSpec(ByFields):
    """
    One object file.

    Attributes:
        name: as given to ``read``.
        arch: ``x86_64``, ``arm64``, or None if the object does not say.
        license: of its programs.
        programs: in order of the file.
        maps: in order of declaration.
        messages: by id.
        tunables: by offset, the framework's among them.
        rodata: bytes of ``.rodata``, which hold the tunables' defaults.
        diagnostics: the framework's own messages (bpf/km/diagnostic.h), by id; none
            if no program can write them.
        codes: what its programs may log, the framework's codes among them.
        sites: the lines of the source that log, by the number on the wire.
    """

    name: str
    arch: str | None
    license: str
    programs: tuple[ProgramSpec, ...] = ()
    maps: tuple[MapSpec, ...] = ()
    messages: tuple[MessageSpec, ...] = ()
    tunables: tuple[Tunable, ...] = ()
    rodata: bytes = attrs.field(default=b"", repr=False)
    diagnostics: tuple[MessageSpec, ...] = ()
    codes: tuple[Code, ...] = ()
    sites: Mapping[int, Site] = attrs.field(factory=dict, hash=False)

    def program(self, name: str) -> ProgramSpec:
        """
        Return a program by name.

        Raises:
            ObjectError: there is none; lists those that exist.
        """
        return _named(self.programs, name, self.name, "program", ObjectError)

    def map(self, name: str) -> MapSpec:
        """
        Return a map by name.

        Raises:
            ObjectError: there is none; lists those that exist.
        """
        return _named(self.maps, name, self.name, "map", ObjectError)

    def message(self, name: str) -> MessageSpec:
        """
        Return a message by name.

        Raises:
            MissingMessageError: there is none; lists those that exist.
        """
        return _named(self.messages, name, self.name, "message", MissingMessageError)

    def tunable(self, name: str) -> Tunable:
        """
        Return a tunable by name.

        Raises:
            ObjectError: there is none; lists those that exist.
        """
        return _named(self.tunables, name, self.name, "tunable", ObjectError)

    def hook_programs(self, hook: str) -> tuple[ProgramSpec, ...]:
        """
        Return the programs tagged with a hook, in order of the file.
        """
        return tuple(program for program in self.programs if program.hook == hook)


def check_arch(spec: ObjectSpec, machine: str) -> None:
    """
    Refuse an object built for another architecture.

    *machine* is what ``platform.machine()`` gives.  An object that does not
    say is accepted: one without kprobes may run anywhere.

    Raises:
        ObjectError: names both.
    """
    expected = _MACHINES.get(machine.lower(), machine.lower())
    if spec.arch is not None and spec.arch != expected:
        msg = (
            f"{spec.name}: object is for {spec.arch}, this machine is {expected};"
            " use the object built for it"
        )
        raise ObjectError(msg)


_Named = TypeVar("_Named", ProgramSpec, MapSpec, MessageSpec, Tunable)


def _named(
    values: Sequence[_Named], name: str, owner: str, what: str, error: type[ObjectError]
) -> _Named:
    for value in values:
        if value.name == name:
            return value
    known = ", ".join(value.name for value in values) or "none"
    msg = f"{owner}: has no {what} {name}; it has {known}"
    raise error(msg)
