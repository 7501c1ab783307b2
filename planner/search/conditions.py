"""Conditions of rules/*.toml, compiled once: a field, an operator, a value. Nothing is evaluated as code."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from planner.search.facts import OF_THE_PLACE, Facts

_PLACEHOLDER = re.compile(r"\{([a-z_.0-9]+)(!r)?\}")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "in": lambda value, wanted: value in wanted,
    "not_in": lambda value, wanted: value not in wanted,
    "prefix": lambda value, wanted: str(value).startswith(wanted),
}
_WORDS = {
    "eq": "is",
    "ne": "is not",
    "lt": "below",
    "le": "at most",
    "gt": "above",
    "ge": "at least",
    "in": "is one of",
    "not_in": "is none of",
    "prefix": "starts with",
}
_BARE_WORDS = {"true": "on", "false": "off", "null": "absent", "not_null": "given"}


@dataclass(eq=False, repr=False, slots=True)
class Condition:
    """``field op value``. Holds only if the fact is known, ``null`` aside."""

    field: str
    op: str
    value: Any
    other: str | None

    @property
    def is_settled(self) -> bool:
        """True if it reads nothing of the setup: model and machine alone decide it."""
        return self.field in OF_THE_PLACE and (self.other is None or self.other in OF_THE_PLACE)

    def holds(self, facts: Facts) -> bool:
        """True if the condition is met."""
        value = facts.get(self.field)
        test = _COMPARE.get(self.op)
        if test is None:
            return _bare(self.op, value, absent_is_false=self.field.startswith("config."))
        wanted = self.value if self.other is None else facts.get(self.other)
        return value is not None and wanted is not None and test(value, wanted)

    def words(self) -> str:
        """``machine.has_bf16 is on``: for the reader of a skipped rung."""
        if self.op in _BARE_WORDS:
            return f"{self.field} {_BARE_WORDS[self.op]}"
        wanted = self.other or (", ".join(map(str, self.value)) if isinstance(self.value, tuple) else self.value)
        return f"{self.field} {_WORDS[self.op]} {wanted}"


def _bare(op: str, value: Any, *, absent_is_false: bool) -> bool:
    if op == "null":
        return value is None
    if op == "not_null":
        return value is not None
    if op == "true":
        return value is True
    return value is False or (absent_is_false and value is None)


def compile_conditions(rows: Iterable[Mapping[str, Any]]) -> tuple[Condition, ...]:
    """Conditions in an order that settles soonest: the setup's own fields first, machine and model last."""
    made = [Condition(row["field"], row["op"], _frozen(row.get("value")), row.get("other")) for row in rows]
    return tuple(sorted(made, key=lambda condition: "." in condition.field))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def first_unmet(conditions: Iterable[Condition], facts: Facts) -> Condition | None:
    """The first condition that does not hold, or None if all do."""
    return next((condition for condition in conditions if not condition.holds(facts)), None)


def fill(sentence: str, facts: Facts) -> str:
    """Put values in place of ``{field}``; ``{field!r}`` quotes them."""

    def put(found: re.Match[str]) -> str:
        value = facts.get(found[1])
        if found[2]:
            return repr(value)
        return ".".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return _PLACEHOLDER.sub(put, sentence)
