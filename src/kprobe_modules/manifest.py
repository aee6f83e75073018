# SPDX-License-Identifier: Apache-2.0
"""
What a module says about itself that its object file cannot.

Programs, attach points, maps, messages and tunables are read from the object.
A manifest adds which hooks are required, in which order their alternatives are
preferred, which common maps are expected, and which class handles the messages.
Importing a manifest touches neither the kernel nor the object file.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import get_data
from typing import TYPE_CHECKING

import attrs

from kprobe_modules.byfields import ByFields
from kprobe_modules.errors import ManifestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kprobe_modules.handler import Handler
    from kprobe_modules.records import Record

__all__ = ["TAGS", "Alternative", "Hook", "Manifest"]

TAGS = ("START", "END", "EXISTING", "TELEMETRY")


@attrs.frozen(eq=False, repr=False)
class Alternative(ByFields):
    """
    One way to notice what a hook is for.
    """

    program: str = ""
    """Name of a program in the module's object."""

    source: str = ""
    """Instead of a program: what the handler itself reads, such as ``netlink``."""

    fields_missing: tuple[str, ...] = ()
    """What cannot be filled this way, as ``record.field``."""

    note: str = ""
    """What a person should know when this one is live."""

    companions: tuple[str, ...] = ()
    """Programs that belong to it and are attached before it, such as the return
    probe of a pair."""

    link_info: bytes = b""
    """For an iterator: ``union bpf_iter_link_info`` to attach it with."""

    calls: tuple[str, ...] = ()
    """Slots that its programs tail-call, as the last thing they do: where a slot is
    served, the call does not return.  Kprobe programs only, with a constant
    ``km_slot_<name>`` for each slot and the common map ``tail_calls``."""

    slot: str = ""
    """The slot that its program, a kprobe program too, serves instead of being attached.

    It is live exactly while the live alternative of an attached module calls the slot;
    the hook's other alternatives are not attached then.  When a caller comes or goes,
    one way is opened before the other is closed, so that the same event may come by
    both: whoever handles it drops the second.  None is missed if the other alternatives
    notice an event where the caller does, in the same function; one that passed the
    caller's place before it came, and theirs after they were closed, came by neither."""

    @property
    def name(self) -> str:
        """
        The program, or the source, by which it is chosen and reported.
        """
        return self.program or self.source

    @property
    def programs(self) -> tuple[str, ...]:
        """
        All its programs in the order of attaching.
        """
        return (*self.companions, self.program) if self.program else ()

    def __attrs_post_init__(self) -> None:
        if bool(self.program) == bool(self.source):
            msg = f"alternative {self.name!r}: expected a program or a source, not both or neither"
            raise ManifestError(msg)
        if self.slot and (self.source or self.companions or self.link_info):
            msg = f"alternative {self.name!r}: serves a slot, so that there is nothing to attach"
            raise ManifestError(msg)
        if self.calls and self.source:
            msg = f"alternative {self.name!r}: only programs call slots"
            raise ManifestError(msg)


def _alternatives(given: Sequence[Alternative | str]) -> tuple[Alternative, ...]:
    return tuple(Alternative(item) if isinstance(item, str) else item for item in given)


@attrs.frozen(eq=False, repr=False)
class Hook(ByFields):
    """
    A thing that the module must notice, and the ways to notice it in order.
    """

    name: str
    tag: str = attrs.field()
    alternatives: tuple[Alternative, ...] = attrs.field(converter=_alternatives)
    required: bool = True
    """A missing required hook fails the module; a missing optional one degrades it."""

    notices: str = ""
    """What it notices, for people."""

    awaits: str | None = None
    """Kernel module that holds the functions: wait for it when it is not loaded.  Until
    then a source has nothing to read, and is not opened either."""

    fields_missing: tuple[str, ...] = ()
    """What stays unfilled when no alternative is live, as ``record.field``."""

    @property
    def slot(self) -> str:
        """
        The slot through which it may be served, or nothing.
        """
        return next((item.slot for item in self.alternatives if item.slot), "")

    @property
    def calls(self) -> frozenset[str]:
        """
        The slots that its alternatives may call.
        """
        return frozenset(slot for item in self.alternatives for slot in item.calls)

    def __attrs_post_init__(self) -> None:
        slots = {item.slot for item in self.alternatives if item.slot}
        calls = self.calls
        problem = ""
        if len(slots) > 1:
            problem = f"is served through several slots: {', '.join(sorted(slots))}"
        elif slots & calls:
            problem = f"calls the slot that it is served through: {', '.join(slots)}"
        elif self.tag == "EXISTING" and slots | calls:
            problem = "is attached by scans only, and has no part in slots"
        if problem:
            msg = f"hook {self.name}: {problem}"
            raise ManifestError(msg)

    @tag.validator
    def _check_tag(self, _attribute: attrs.Attribute[str], value: str) -> None:
        if value not in TAGS:
            msg = f"hook {self.name}: tag is {value!r}, expected one of {', '.join(TAGS)}"
            raise ManifestError(msg)


def _names(given: Iterable[str]) -> tuple[str, ...]:
    return tuple(given)


def _hooks(given: Iterable[Hook]) -> tuple[Hook, ...]:
    return tuple(given)


def _imports(given: Mapping[str, str]) -> Mapping[str, str]:
    return dict(given)


def _records(given: Iterable[type[Record]]) -> tuple[type[Record], ...]:
    return tuple(given)


@attrs.frozen(eq=False, repr=False)
class Manifest(ByFields):
    """
    A module, as the registry and the loader know it.
    """

    name: str = attrs.field()
    package: str
    """Importable package that holds the object files."""

    handler: str | type[Handler]
    """The handler class, or ``package.module:Class`` to import when it is enabled."""

    hooks: tuple[Hook, ...] = attrs.field(converter=_hooks)
    common_maps: tuple[str, ...] = attrs.field(default=("events",), converter=_names)
    """Names of the common maps that the object expects to be injected."""

    records: tuple[type[Record], ...] = attrs.field(default=(), converter=_records)
    """The record classes that the handler may produce, for listings."""

    fills: tuple[str, ...] = attrs.field(default=(), converter=_names)
    """Common maps whose entries are this module's: emptied when it leaves."""

    exports: tuple[str, ...] = attrs.field(default=(), converter=_names)
    """Hash or array maps of the object that other modules may import.  Their shape is
    this module's to decide, and so are their entries: they are emptied when it leaves
    while importers stay."""

    imports: Mapping[str, str] = attrs.field(factory=dict, converter=_imports)
    """Map name to the module that exports it.  The object declares the map as the
    exporter does, to the last field; both then use one map in the kernel, whichever
    comes first.  Without the exporter it is there, and empty."""

    tail_calls: Mapping[str, str] = attrs.field(factory=dict)
    """Slot name to the program that serves it for as long as the module is attached,
    for slots that are no alternative of a hook (`Alternative.slot`).  A caller, of any
    module, reads the slot's number from its constant ``km_slot_<name>``."""

    own_programs: tuple[str, ...] = attrs.field(default=(), converter=_names)
    """Programs that no hook attaches: the handler runs them itself."""

    summary: str = ""
    version: str = "0"
    object_name: str = attrs.field()
    """Object files are ``<object_name>.<arch>.bpf.o`` in the package; default the name."""

    @object_name.default
    def _default_object_name(self) -> str:
        return self.name

    @name.validator
    def _check_name(self, _attribute: attrs.Attribute[str], value: str) -> None:
        if not value.isidentifier() or value != value.lower():
            msg = f"module name is {value!r}, expected a lower-case identifier"
            raise ManifestError(msg)

    @hooks.validator
    def _check_hooks(
        self, _attribute: attrs.Attribute[tuple[Hook, ...]], value: tuple[Hook, ...]
    ) -> None:
        names = [hook.name for hook in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            msg = f"{self.name}: hooks named twice: {', '.join(twice)}"
            raise ManifestError(msg)

    @tail_calls.validator
    def _check_slots(
        self, _attribute: attrs.Attribute[Mapping[str, str]], value: Mapping[str, str]
    ) -> None:
        slots = [*value, *(hook.slot for hook in self.hooks if hook.slot)]
        twice = sorted({slot for slot in slots if slots.count(slot) > 1})
        if twice:
            msg = f"{self.name}: slots served twice: {', '.join(twice)}"
            raise ManifestError(msg)

    @imports.validator
    def _check_imports(
        self, _attribute: attrs.Attribute[Mapping[str, str]], value: Mapping[str, str]
    ) -> None:
        wrong = sorted(
            name
            for name, exporter in value.items()
            if exporter == self.name or name in self.exports or name in self.common_maps
        )
        if wrong:
            msg = f"{self.name}: imports what is its own or common: {', '.join(wrong)}"
            raise ManifestError(msg)

    def hook(self, name: str) -> Hook:
        """
        Return the hook of that name.

        Raises:
            ManifestError: when there is none.
        """
        for hook in self.hooks:
            if hook.name == name:
                return hook
        known = ", ".join(hook.name for hook in self.hooks)
        msg = f"{self.name}: no hook named {name!r}; there are {known}"
        raise ManifestError(msg)

    def object_bytes(self, arch: str) -> bytes:
        """
        Return the object file for *arch* (``x86_64`` or ``arm64``).

        Raises:
            ManifestError: when the package does not ship it.
        """
        name = f"{self.object_name}.{arch}.bpf.o"
        msg = f"{self.name}: package {self.package} holds no object file {name}"
        try:
            data = get_data(self.package, name)
        except (OSError, ImportError) as error:
            msg = f"{msg} ({error})"
            raise ManifestError(msg) from error
        if data is None:
            raise ManifestError(msg)
        return data

    def spec_bytes(self, arch: str) -> bytes | None:
        """
        Return what lies beside the object file for `kprobe_modules.specfile`, if anything.
        """
        try:
            return get_data(self.package, f"{self.object_name}.{arch}.spec.json")
        except (OSError, ImportError):
            return None

    def handler_class(self) -> type[Handler]:
        """
        Return the handler class, importing it if it was given by name.

        Raises:
            ManifestError: when the name cannot be imported.
        """
        if not isinstance(self.handler, str):
            return self.handler
        module_name, _, class_name = self.handler.partition(":")
        try:
            found: type[Handler] = getattr(import_module(module_name), class_name)
        except (ImportError, AttributeError) as error:
            msg = f"{self.name}: handler {self.handler!r} cannot be imported: {error}"
            raise ManifestError(msg) from error
        return found
