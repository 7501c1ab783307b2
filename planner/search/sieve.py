"""Which combinations of free rungs the rules leave to a setup, without asking every rule about every combination."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

from planner.search.constraints import Rule, refusing_rules
from planner.search.desk import Desk
from planner.search.facts import Facts
from planner.training import TrainingSetup

Values = tuple[Any, ...]


@dataclass(eq=False, repr=False)
class Sieve:
    """``knobs`` are the fields that free rungs change. Rules that read none of them do not tell combinations apart."""

    desk: Desk
    engine: str
    knobs: tuple[str, ...]
    _known: dict[Values, frozenset[Values]] = field(default_factory=dict)
    _rules: tuple[Rule, ...] = field(init=False)
    _read: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._rules = tuple(rule for rule in refusing_rules(self.engine) if rule.reads & set(self.knobs))
        self._read = tuple(sorted({name for rule in self._rules for name in rule.reads} - set(self.knobs)))

    def values(self, setup: TrainingSetup) -> Values:
        """The knobs of a setup."""
        return tuple(getattr(setup, name) for name in self.knobs)

    def left(self, held: TrainingSetup, choices: tuple[Values, ...]) -> frozenset[Values]:
        """Of all combinations of ``choices`` (values of each knob), those that a setup held like this may have.

        What the engine would drop of ``held`` too tells nothing apart, and what was asked for is tolerated.
        """
        facts = self._facts(held)
        key = (choices, self.values(held), *(facts.get(name) for name in self._read))
        if key not in self._known:
            rules = [rule for rule in self._rules if not self._is_tolerated(rule, facts)]
            found = (each for each in product(*choices) if not self._is_refused(held, each, rules))
            self._known[key] = frozenset(found)
        return self._known[key]

    def _is_tolerated(self, rule: Rule, facts: Facts) -> bool:
        asked = rule.effect == "unproven" and rule.id in self.desk.tolerated
        return asked or (rule.effect == "ignored" and rule.met(facts))

    def _is_refused(self, held: TrainingSetup, values: Values, rules: list[Rule]) -> bool:
        facts = self._facts(held.but(**dict(zip(self.knobs, values, strict=True))))
        return any(rule.met(facts) for rule in rules)

    def _facts(self, setup: TrainingSetup) -> Facts:
        return Facts(setup, self.desk.spec, self.desk.machine)
