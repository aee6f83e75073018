# SPDX-License-Identifier: Apache-2.0
"""
Which records a user wants to see, in terms of their fields.

Expressions are ``field OP value`` with the operators ``== != >= > <= < ~ !~``; the
last two search a regular expression.  A record that lacks the field does not match,
whatever the operator.
"""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Any

import attrs

from kprobe_modules.errors import ConfigError
from kprobe_modules.sinks.values import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kprobe_modules.records import Record

__all__ = ["Condition", "one_of", "parse", "pattern"]

_EXPRESSION = re.compile(r"\s*([A-Za-z_]\w*)\s*(==|!=|>=|<=|!~|>|<|~)\s*(.*?)\s*", re.DOTALL)

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}

_EQUALITY = (operator.eq, operator.ne)

_MISSING = object()


@attrs.frozen(eq=False, repr=False)
class Condition:
    """
    A test of one field.

    Attributes:
        field: the field's name.
        test: takes the field's value; must not raise.
    """

    field: str
    test: Callable[[Any], bool]

    def __call__(self, record: Record) -> bool:
        """
        Tell whether the record has the field and it passes.
        """
        value = getattr(record, self.field, _MISSING)
        return value is not _MISSING and self.test(value)


def one_of(field: str, values: Iterable[int]) -> Condition:
    """
    Match records whose field is one of the values.
    """
    wanted = frozenset(values)
    return Condition(field, lambda value: value in wanted)


def pattern(field: str, expression: str, *, negate: bool = False) -> Condition:
    """
    Match records whose field, as text, contains a regular expression.

    Raises:
        ConfigError: the expression is no regular expression.
    """
    try:
        search = re.compile(expression).search
    except re.error as error:
        msg = f"{field}: expected a regular expression, found {expression!r}: {error}"
        raise ConfigError(msg) from error
    return Condition(field, lambda value: (search(_text(value)) is None) is negate)


def parse(expression: str) -> Condition:
    """
    Parse ``field OP value``.

    Numbers compare as numbers where the record's value is one, else as text;
    ``true``, ``false`` and ``none`` mean what they say.

    Raises:
        ConfigError: it is no such expression.
    """
    found = _EXPRESSION.fullmatch(expression)
    if found is None:
        msg = f"--filter: expected FIELD OP VALUE with == != >= > <= < ~ !~, found {expression!r}"
        raise ConfigError(msg)
    field, symbol, value = found.groups()
    if symbol in ("~", "!~"):
        return pattern(field, value, negate=symbol == "!~")
    return Condition(field, _comparison(_COMPARE[symbol], value))


def _comparison(compare: Callable[[Any, Any], bool], wanted: str) -> Callable[[Any], bool]:
    try:
        number: int | float | None = int(wanted, 0)
    except ValueError:
        number = _float(wanted)

    def test(value: object) -> bool:
        if isinstance(value, bool) or value is None:
            # Truth and absence have no order.
            return compare in _EQUALITY and compare(_text(value), wanted.lower())
        if isinstance(value, (int, float)):
            # Text never equals a number, and has no order with one.
            return compare(value, number) if number is not None else compare is operator.ne
        return compare(_text(value), wanted)

    return test


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _text(value: object) -> str:
    value = plain(value)
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return str(value)
