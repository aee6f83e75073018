# SPDX-License-Identifier: Apache-2.0
"""
Rows of a batch to tuples, or straight to records, with fields bound by name.

Binding happens once, when a module is attached, and complains about every
name that cannot be bound; decoding then runs in C from end to end
(``struct.iter_unpack``, ``map``, ``itertools.starmap``), as a Python frame per
row costs more than the decoding.  Where C alone cannot do it, one generated
loop does.  Records whose constructor only fills slots are filled by C itself,
where the compiled part is installed.
"""

from __future__ import annotations

import itertools
import re
from types import FunctionType, MemberDescriptorType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from kprobe_modules import rows as native
from kprobe_modules.errors import LayoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from typing import TypeGuard

    import attrs

    from kprobe_modules.layout import Field, Layout

    Rows = Callable[[Any], Iterator[tuple[Any, ...]]]

__all__ = ["bind", "record_decoder", "text"]

_Record = TypeVar("_Record")

_NETWORK_FORMATS = {"be16": "H", "be32": "I"}

_SINGLE = re.compile(r"[bBhHiIqQ?]|\d+s")
"""Formats of which one makes one value, as `rows.Maker` takes them."""


class _Tails(Protocol):
    @property
    def offsets(self) -> memoryview: ...
    @property
    def blob(self) -> memoryview: ...


class _Tailed(Protocol):
    """
    What is asked of a batch (`kprobe_modules.rings`) beside its buffer.
    """

    @property
    def tails(self) -> _Tails: ...


class _Texts(dict[bytes, str]):
    """
    Decoded texts: the few command names of a host come again and again.

    Only short ones are kept, and all are forgotten when there are many, so
    that memory stays under a megabyte.
    """

    def __missing__(self, raw: bytes) -> str:
        decoded = raw.partition(b"\0")[0].decode("utf-8", "replace")
        if len(raw) <= 16:  # noqa: PLR2004 - TASK_COMM_LEN
            if len(self) >= 4096:  # noqa: PLR2004 - entries of some 150 bytes
                self.clear()
            self[raw] = decoded
        return decoded


#: ``text(raw: bytes) -> str``: what stands before the first NUL, undecodable
#: bytes replaced.  A bound method of C, as a function would double its cost.
text: Callable[[bytes], str] = _Texts().__getitem__


def bind(
    layout: Layout,
    names: Sequence[str],
    owner: str,
    *,
    texts: Collection[str] = (),
    stride: int | None = None,
) -> Callable[[Any], Iterator[tuple[Any, ...]]]:
    """
    Make a decoder of some fields of a message, in the order of *names*.

    The result takes a buffer of rows of ``layout.size`` bytes (or *stride*, if
    larger) and yields a tuple per row.  A field of a nested struct is named
    ``inner.field`` or, where Python wants an identifier, ``inner_field``.
    Values in network order come out as numbers, char arrays as bytes, those
    named in *texts* as str.  If the layout's tail is among the names, the
    result takes a batch instead of a buffer: something with ``tails``, whose
    ``offsets`` and ``blob`` say what follows each row; tails are bytes.

    Raises:
        LayoutError: names *owner*, every name that the layout lacks, and what
            it has.
    """
    found = _lookup(layout, names, owner)
    source = _Source(layout, found, stride)
    values = [
        source.value(field, as_text=name in texts) for name, field in zip(names, found, strict=True)
    ]
    if source.only and source.fields == found and not texts:
        return source.only
    return source.generate(f"({''.join(f'{value}, ' for value in values)})", owner)


def record_decoder(
    layout: Layout,
    record_class: Callable[..., _Record],
    owner: str | None = None,
    *,
    stride: int | None = None,
) -> Callable[[Any], Iterator[_Record]]:
    """
    Make a decoder that yields an attrs record per row.

    The record's attributes are bound to fields of the same names; one that
    the message lacks needs a default.  A char array becomes a str where the
    attribute is annotated so.  Records whose attributes stand in the order of
    the message's fields and need no text are the cheapest.

    Raises:
        LayoutError: names *owner* (by default the class), every attribute
            that cannot be bound, and what the layout has.
    """
    import attrs

    owner = owner or str(getattr(record_class, "__qualname__", record_class))
    attributes: Sequence[attrs.Attribute[Any]] = attrs.fields(cast("Any", record_class))
    wanted = [each for each in attributes if each.init]
    bound = [
        each
        for each in wanted
        if each.default is attrs.NOTHING or _find(layout, each.name) is not None
    ]
    fields = _lookup(layout, [each.name for each in bound], owner)
    source = _Source(layout, fields, stride)
    as_text = [
        each.type in (str, "str") and field.kind == "char[]"
        for each, field in zip(bound, fields, strict=True)
    ]
    by_name = {each.name: field for each, field in zip(bound, fields, strict=True)}
    filled = _slot_filler(layout, record_class, by_name, stride)
    if filled is not None:
        return filled
    pairs = zip(wanted, bound, strict=False)
    plain = sum(1 for _ in itertools.takewhile(_is_positional, pairs))
    if plain == len(bound) and source.only and source.fields == fields and not any(as_text):
        rows, starmap = source.only, itertools.starmap
        return lambda buffer: starmap(record_class, rows(buffer))
    # A call with keywords costs 400 ns more than one without.
    arguments = [
        source.value(field, as_text=text_) for field, text_ in zip(fields, as_text, strict=True)
    ]
    arguments[plain:] = [
        f"{each.alias}={value}"
        for each, value in zip(bound[plain:], arguments[plain:], strict=True)
    ]
    return source.generate(f"make({', '.join(arguments)})", owner, make=record_class)


def _slot_filler(
    layout: Layout,
    record_class: Callable[..., _Record],
    bound: Mapping[str, Field],
    stride: int | None,
) -> Callable[[Any], Iterator[_Record]] | None:
    """
    Do in native code what the constructor would, if it only fills slots.

    That saves a third of what a record costs or more.  None: the constructor may
    do more than that, a field is not a single value, or there is no native code.
    """
    if native.Maker is None or not _only_fills_slots(record_class):
        return None
    import attrs

    filled: list[tuple[str, str | None, int, Any]] = []
    for each in attrs.fields(cast("Any", record_class)):
        field = bound.get(each.name)
        if field is None:
            filled.append((each.name, None, 0, each.default))
            continue
        as_text = each.type in (str, "str") and field.kind == "char[]"
        order = ">" if field.kind in _NETWORK_FORMATS else "<"
        letters = _NETWORK_FORMATS.get(field.kind, field.format)
        if field is layout.tail or not _SINGLE.fullmatch(letters):
            return None
        filled.append((each.name, order + letters, field.offset, text if as_text else None))
    try:
        return native.Maker(record_class, max(layout.size, stride or 0), tuple(filled))
    except TypeError:  # an interpreter that keeps slots elsewhere
        return None


def _only_fills_slots(record_class: Callable[..., _Record]) -> TypeGuard[type[_Record]]:
    """
    Tell whether calling an attrs class does nothing but fill its slots.

    What attrs generated names each attribute and nothing else: a default that
    is made anew, a converter, a validator, a hook would be further names.
    """
    import attrs

    if type(record_class) is not type:
        return False
    made: Any = record_class
    start = getattr(made, "__init__", None)
    fields = attrs.fields(made)
    return (
        isinstance(start, FunctionType)
        and start.__code__.co_filename.startswith("<attrs generated")
        and sorted(start.__code__.co_names) == sorted(each.name for each in fields)
        and _is_objects(made, "__new__")
        and _is_objects(made, "__setattr__")
        and all(isinstance(getattr(made, each.name, None), MemberDescriptorType) for each in fields)
    )


def _is_objects(made: object, name: str) -> bool:
    """
    Tell whether a class has left a method as ``object`` has it.
    """
    return getattr(made, name) is getattr(object, name)


class _Source:
    """
    The iterators that together hold some fields, and a generator over them.

    ``struct`` has one byte order, and tails stand elsewhere, so that up to
    three iterators run side by side.
    """

    def __init__(self, layout: Layout, wanted: Sequence[Field], stride: int | None) -> None:
        unique = sorted(dict.fromkeys(wanted), key=lambda field: field.offset)
        tail = [field for field in unique if field is layout.tail]
        network = [field for field in unique if field.kind in _NETWORK_FORMATS]
        plain = [field for field in unique if field not in tail and field not in network]
        self.fields: list[Field] = []
        self.rows: list[Rows] = []
        self.targets: list[str] = []
        if plain or not unique:
            self.add(plain, layout.unpacker(plain, "<", stride).iter_unpack)
        if network:
            numbers = [_as_number(field) for field in network]
            self.add(network, layout.unpacker(numbers, ">", stride).iter_unpack)
        if tail:
            self.add(tail, _tails)

    def add(self, fields: list[Field], rows: Rows) -> None:
        start = len(self.fields)
        names = "".join(f"v{start + index}, " for index in range(len(fields)))
        self.targets.append(f"({names})")
        self.fields += fields
        self.rows.append(rows)

    @property
    def only(self) -> Rows | None:
        """
        The iterator, if there is but one.
        """
        return self.rows[0] if len(self.rows) == 1 else None

    def value(self, field: Field, *, as_text: bool) -> str:
        """
        Return the expression for a field within the generator.
        """
        value = f"v{self.fields.index(field)}"
        return f"text({value})" if as_text else value

    def generate(self, result: str, owner: str, **scope: object) -> Callable[[Any], Iterator[Any]]:
        """
        Make a generator function of a buffer that yields *result* for each row.

        Written as source, as attrs does for ``__init__``: reordering, text and
        the call then cost some 60 ns together, and 400 as a chain of maps.
        The source holds v0, v1 and the names of attributes, nothing else.
        """
        calls = [f"rows{index}(buffer)" for index in range(len(self.rows))]
        targets, rows = self.targets[0], calls[0]
        if len(calls) > 1:
            targets, rows = ", ".join(self.targets), f"zip({', '.join(calls)})"
        source = f"def decode(buffer):\n for {targets} in {rows}:\n  yield {result}\n"
        scope |= {f"rows{index}": rows_ for index, rows_ in enumerate(self.rows)}
        scope["text"] = text
        exec(compile(source, f"<decoder for {owner}>", "exec"), scope)  # noqa: S102
        return cast("Callable[[Any], Iterator[Any]]", scope["decode"])


def _is_positional(pair: tuple[Any, Any]) -> bool:
    return pair[0] is pair[1] and not pair[0].kw_only


def _lookup(layout: Layout, names: Sequence[str], owner: str) -> list[Field]:
    found = [_find(layout, name) for name in names]
    missing = [name for name, field in zip(names, found, strict=True) if field is None]
    if missing:
        has = ", ".join(layout.names) + (f", {layout.tail.name} (tail)" if layout.tail else "")
        plural = "s" if len(missing) > 1 else ""
        msg = f"{owner}: {layout.name} has no field{plural} {', '.join(missing)}; it has {has}"
        raise LayoutError(msg)
    return [field for field in found if field is not None]


def _find(layout: Layout, name: str) -> Field | None:
    field = layout.field(name)
    if field is not None:
        return field
    flat = [each for each in layout.fields if each.name.replace(".", "_") == name]
    return flat[0] if len(flat) == 1 else None


def _as_number(field: Field) -> Field:
    import attrs

    return attrs.evolve(field, format=_NETWORK_FORMATS[field.kind])


def _tails(batch: _Tailed) -> Iterator[tuple[bytes]]:
    offsets = batch.tails.offsets
    pieces = map(slice, offsets, offsets[1:])
    return zip(map(bytes, map(batch.tails.blob.__getitem__, pieces)))
