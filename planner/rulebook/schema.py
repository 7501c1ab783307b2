"""What a row of rules/ladder.toml, rules/constraints.toml and rules/engines.toml may say.

Rows are validated with pydantic when a file comes from a user, and by the tests for the files that ship.
"""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Operator = Literal["eq", "ne", "in", "not_in", "lt", "le", "gt", "ge", "true", "false", "null", "not_null", "prefix"]
Effect = Literal["forbid", "unproven", "warn", "ignored", "requires"]
BARE_OPERATORS = frozenset({"true", "false", "null", "not_null"})
TIERS = (0, 1, 2, 3, 4, 5)


class Row(BaseModel):
    """Unknown keys are errors: a misspelt key must not pass as an absent one."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ConditionRow(Row):
    """``field op value``, or ``field op other`` where ``other`` names a second field. No code is evaluated."""

    field: str
    op: Operator
    value: Any = None
    other: str | None = None

    @model_validator(mode="after")
    def _operand(self) -> ConditionRow:
        wanted = self.op not in BARE_OPERATORS
        given = self.value is not None or self.other is not None
        if wanted and not given:
            raise ValueError(f"op {self.op} needs a value or other")
        if given and not wanted:
            raise ValueError(f"op {self.op} takes no value")
        if self.op in ("in", "not_in") and not isinstance(self.value, list):
            raise ValueError(f"op {self.op} needs a list as value")
        return self


class ConstraintRow(Row):
    """Settings that may not, or do not usefully, live together.

    ``effect``: forbid (refused), unproven (priced, never recommended), warn, ignored (the engine drops the
    setting), requires (a package that must be installed). ``engines`` are the engines it holds for, or ["*"].
    """

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    when: list[ConditionRow] = Field(min_length=1)
    effect: Effect
    reason: str = Field(min_length=20)
    source: str = Field(min_length=5)
    engines: list[str] = Field(default=["*"], min_length=1)
    packages: list[str] = []

    @model_validator(mode="after")
    def _packages(self) -> ConstraintRow:
        if (self.effect == "requires") != bool(self.packages):
            raise ValueError("effect requires and packages go together")
        return self


class TierRow(Row):
    """Why a tier stands where it stands."""

    tier: int = Field(ge=0, le=5)
    title: str
    why: str = Field(min_length=20)


class RungRow(Row):
    """One step of the ladder: the setup fields it changes, when it applies, and what it costs beyond bytes.

    ``needs`` says in words what ``when`` asks for.
    ``steps`` instead of ``changes``: a field that is lowered as far as needed (micro batch, length, of how many layers
    one is checkpointed). ``through`` lists the parallelism that the rung needs, best first. ``environment`` are
    variables of the launch that belong to the rung. ``on_request`` rungs are shown with their price and taken only when
    allowed or required.
    """

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    tier: int = Field(ge=0, le=5)
    changes: dict[str, Any] = {}
    steps: Literal["micro_batch_size", "seq_len", "gradient_checkpointing"] | None = None
    through: list[Literal["zero2", "zero3", "fsdp", "fsdp2"]] = []
    environment: dict[str, str] = {}
    when: list[ConditionRow] = []
    needs: str = ""
    forbids: list[str] = []
    on_request: bool = False
    quality_risk: str = ""
    reason: str = Field(min_length=20)
    source: str = Field(min_length=5)
    checked: date

    @model_validator(mode="after")
    def _does_something(self) -> RungRow:
        if self.needs and not self.when:
            raise ValueError("needs says what when asks for, and there is no when")
        if not (self.changes or self.steps or self.environment):
            raise ValueError("a rung needs changes, steps or environment")
        return self


class EngineRow(Row):
    """What a training engine is, what its newest release resolves to, and what it can express."""

    id: str
    name: str
    release: str | None = None
    own_rules: bool
    priced_as: str
    versions: dict[str, str] = {}
    earlier_versions: dict[str, str] = {}  # accepted too, and of another way of loading
    stages: list[str]
    methods: list[str]
    parallelism: list[str]
    starts_with: str | None = None  # the parallelism of every plan, where the engine has one alone
    emits: bool = False
    notes: list[str] = []
    source: str = Field(min_length=5)
    checked: date
