"""Which settings may live together, and why not: rules/constraints.toml applied to a setup."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

from planner.errors import InputError
from planner.hardware.machine import Machine
from planner.model.spec import ModelSpec
from planner.rulebook.load import read_rows
from planner.search.conditions import Condition, compile_conditions, fill
from planner.search.facts import Facts
from planner.training import TrainingSetup

Effect = Literal["forbid", "unproven", "warn", "ignored", "requires"]


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that a setup meets: its id, the sentence with the setup's values, and what follows."""

    rule_id: str
    sentence: str
    effect: Effect


@dataclass(eq=False, repr=False)
class Rule:
    """A compiled row of rules/constraints.toml."""

    id: str
    when: tuple[Condition, ...]
    effect: Effect
    reason: str
    engines: frozenset[str]
    packages: tuple[str, ...]

    @property
    def reads(self) -> frozenset[str]:
        """The facts that the rule looks at."""
        return frozenset(name for each in self.when for name in (each.field, each.other) if name)

    def met(self, facts: Facts) -> bool:
        """True if every condition holds."""
        for condition in self.when:  # noqa: SIM110 - called thousands of times: a generator costs as much as the test
            if not condition.holds(facts):
                return False
        return True


_OF_FILES = 'field = "config.'


@cache
def _rules(*, of_files: bool) -> tuple[Rule, ...]:
    """The rules about keys of an engine's own file, or those about setups alone."""
    if of_files:
        rows = read_rows("constraints", "constraint", with_text=_OF_FILES)
    else:
        rows = read_rows("constraints", "constraint", without_text=_OF_FILES)
    return tuple(_compile(row) for row in rows)


def _compile(row: Mapping[str, Any]) -> Rule:
    return Rule(
        id=row["id"],
        when=compile_conditions(row["when"]),
        effect=row["effect"],
        reason=row["reason"],
        engines=frozenset(row.get("engines", ("*",))),
        packages=tuple(row.get("packages", ())),
    )


@dataclass(eq=False, repr=False)
class _Index:
    """Rules by what must be true of one setup field for them to matter, so that most are never looked at."""

    always: tuple[Rule, ...]
    by_value: dict[str, dict[Any, list[Rule]]]
    if_given: dict[str, list[Rule]]

    def candidates(self, facts: Facts) -> Iterator[Rule]:
        """The rules that a setup could meet."""
        yield from self.always
        for name, by_value in self.by_value.items():
            found = by_value.get(facts.get(name))
            if found is not None:
                yield from found
        for name, rules in self.if_given.items():
            if facts.get(name) is not None:
                yield from rules


@cache
def _index(engine: str, *, of_files: bool) -> _Index:
    """The rules that hold for an engine: those about its own file's keys, or those about setups."""
    index = _Index((), {}, {})
    always: list[Rule] = []
    for rule in _rules(of_files=of_files):
        if rule.engines & {"*", engine}:
            _file(rule, index, always)
    return _Index(tuple(always), index.by_value, index.if_given)


def _file(rule: Rule, index: _Index, always: list[Rule]) -> None:
    for condition in rule.when:
        values = _values(condition)
        if values:
            for value in values:
                index.by_value.setdefault(condition.field, {}).setdefault(value, []).append(rule)
            return
        if condition.op == "not_null" and "." not in condition.field:
            index.if_given.setdefault(condition.field, []).append(rule)
            return
    always.append(rule)


def _values(condition: Condition) -> tuple[Any, ...]:
    """The values of a plain field for which the condition holds, where they can be listed."""
    if "." in condition.field or condition.other is not None:
        return ()
    if condition.op == "true":
        return (True,)
    if condition.op == "eq":
        return (condition.value,)
    return tuple(condition.value) if condition.op == "in" else ()


@dataclass(eq=False, repr=False)
class Laws:
    """The rules of one engine on one model and machine: what those settle is settled once, and what is left of each
    rule is asked of every setup.
    """

    spec: ModelSpec
    machine: Machine
    _by_engine: dict[str, _Index] = field(default_factory=dict)

    def refusal(self, setup: TrainingSetup, tolerated: frozenset[str] = frozenset()) -> str | None:
        """The rule that keeps a setup from being recommended, a forbidding one before an unproven one; None if none
        does. ``tolerated`` are unproven rules that the request itself meets.
        """
        facts = Facts(setup, self.spec, self.machine)
        index = self._by_engine.get(setup.engine) or self._settled(setup)
        met = [rule for rule in index.candidates(facts) if rule.effect in ("forbid", "unproven") and rule.met(facts)]
        refusing = (rule for rule in sorted(met, key=_is_milder) if rule.effect == "forbid" or rule.id not in tolerated)
        rule = next(refusing, None)
        return None if rule is None else f"{fill(rule.reason, facts)} (rule {rule.id})"

    def _settled(self, setup: TrainingSetup) -> _Index:
        facts = Facts(setup, self.spec, self.machine)
        whole = _index(setup.engine, of_files=False)
        index = _Index(
            tuple(_left(whole.always, facts)),
            {name: {value: _left(rules, facts) for value, rules in by_value.items()}
             for name, by_value in whole.by_value.items()},
            {name: _left(rules, facts) for name, rules in whole.if_given.items()},
        )  # fmt: skip
        self._by_engine[setup.engine] = index
        return index


def _left(rules: Iterable[Rule], facts: Facts) -> list[Rule]:
    """The rules that model and machine do not rule out, with the conditions that are still open."""
    return [
        replace(rule, when=tuple(each for each in rule.when if not each.is_settled))
        for rule in rules
        if all(each.holds(facts) for each in rule.when if each.is_settled)
    ]


def _met(facts: Facts, *, of_files: bool = False) -> Iterator[Rule]:
    index = _index(facts.setup.engine, of_files=of_files)
    return (rule for rule in index.candidates(facts) if rule.met(facts))


@cache
def refusing_rules(engine: str) -> tuple[Rule, ...]:
    """The rules about an engine's setups that keep one from being recommended."""
    effects = ("forbid", "unproven", "ignored")
    return tuple(rule for rule in _rules(of_files=False) if rule.effect in effects and rule.engines & {"*", engine})


def violations(
    setup: TrainingSetup, spec: ModelSpec | None = None, machine: Machine | None = None
) -> tuple[Violation, ...]:
    """Every rule that the setup meets, packages aside; forbidding ones first."""
    facts = Facts(setup, spec, machine)
    found = (rule for rule in _met(facts) if rule.effect != "requires")
    return tuple(Violation(rule.id, fill(rule.reason, facts), rule.effect) for rule in sorted(found, key=_is_milder))


def _is_milder(rule: Rule) -> bool:
    """Orders rules: those that forbid first."""
    return rule.effect != "forbid"


def config_violations(
    config: Mapping[str, Any],
    setup: TrainingSetup,
    spec: ModelSpec | None = None,
    machine: Machine | None = None,
) -> tuple[Violation, ...]:
    """The rules about keys of the engine's own file (``train.yaml``) that the file meets."""
    facts = Facts(setup, spec, machine, config)
    return tuple(
        Violation(rule.id, fill(rule.reason, facts), rule.effect)
        for rule in _met(facts, of_files=True)
        if rule.effect != "requires"
    )


def check(setup: TrainingSetup, spec: ModelSpec | None = None, machine: Machine | None = None) -> tuple[str, ...]:
    """Warnings about a setup that may be used.

    Raises InputError with the sentence and the id of the first rule that forbids it.
    """
    found = violations(setup, spec, machine)
    if found and found[0].effect == "forbid":
        raise InputError(f"{found[0].sentence} (rule {found[0].rule_id})")
    return tuple(f"{violation.sentence} (rule {violation.rule_id})" for violation in found)


def newly_met(
    before: TrainingSetup,
    after: TrainingSetup,
    spec: ModelSpec | None,
    machine: Machine | None,
    *,
    effects: tuple[Effect, ...] = ("forbid", "unproven", "ignored"),
) -> str | None:
    """The sentence of a rule that a change makes the setup meet, of those effects, or None."""
    old = {found.rule_id for found in violations(before, spec, machine)}
    for found in violations(after, spec, machine):
        if found.rule_id not in old and found.effect in effects:
            return f"{found.sentence} (rule {found.rule_id})"
    return None


def required_packages(
    setup: TrainingSetup,
    spec: ModelSpec | None = None,
    machine: Machine | None = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """Packages, with their version bounds, that the setup (and the engine's file, if given) needs."""
    facts = Facts(setup, spec, machine, config)
    rules = [*_met(facts), *(_met(facts, of_files=True) if config is not None else ())]
    return tuple(dict.fromkeys(package for rule in rules for package in rule.packages))
