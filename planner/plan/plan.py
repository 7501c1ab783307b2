"""Request and Plan: what was asked, what was chosen, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from planner.data.mixing import Mixing, mixing
from planner.errors import InputError, shown, unknown_choice
from planner.hardware.machine import Machine
from planner.memory.result import Estimate, Verdict
from planner.model.spec import ModelSpec
from planner.training import READERS, TrainingSetup

if TYPE_CHECKING:
    from planner.data.lengths import Lengths

MOST_RANKS = 16
Objective = Literal["quality", "speed", "memory"]
Profile = Literal["conservative", "recommended", "aggressive"]
MethodClass = Literal["full", "lora", "qlora", "other"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for. ``pinned`` holds the setup fields given explicitly: no rung may change them.

    ``method`` None is auto, and so is ``engine`` "auto": every engine that `plan run` starts by itself is compared.
    ``global_batch`` counts sequences per optimizer step over all ranks; ``lora_ranks`` are
    ranks to choose from, where adapters are trained. Rungs may be any collection of ids, or one comma list; ``data`` is
    a path, or a comma list of paths that ``mix_strategy`` and ``interleave_probs`` (LLaMA-Factory's names) mix. Raises
    InputError naming the field; what only the model and the ladder can tell is checked when the plan is made.
    """

    model: str
    stage: str = "sft"
    method: str | None = None
    seq_len: int = 2048
    global_batch: int = 64
    engine: str = "llamafactory"
    objective: Objective = "quality"
    allow: frozenset[str] = frozenset()
    require: frozenset[str] = frozenset()
    forbid: frozenset[str] = frozenset()
    ladder_file: str | None = None
    data: str | None = None
    mix_strategy: str = "concat"
    interleave_probs: tuple[float, ...] = ()
    gpus: str | None = None
    ram: str | None = None
    lora_ranks: tuple[int, ...] = ()
    pinned: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("allow", "require", "forbid"):
            self.__dict__[name] = _ids(name, getattr(self, name))
        self.__dict__["lora_ranks"] = _ranks(self.lora_ranks)
        if self.lora_ranks and "lora_rank" in self.pinned:
            raise InputError("lora_rank and lora_ranks are both given: name one rank, or several to choose from")
        self.__dict__["interleave_probs"] = self.mixing.probs
        if self.objective not in get_args(Objective):
            raise unknown_choice(str(self.objective), "objective", get_args(Objective))
        if type(self.global_batch) is not int or self.global_batch < 1:
            raise InputError(
                f"global_batch {shown(self.global_batch)} is not valid: it must be a whole number, 1 or more"
            )

    @property
    def mixing(self) -> Mixing:
        """How several data sets are mixed."""
        return mixing(self.mix_strategy, self.interleave_probs)


def _ids(name: str, value: Any) -> frozenset[str]:
    ids = value.split(",") if isinstance(value, str) else value
    if not isinstance(ids, list | tuple | set | frozenset) or not all(isinstance(each, str) for each in ids):
        raise InputError(f"{name} {shown(value)} is not valid: it must be ids of rungs, such as liger")
    return frozenset(each.strip() for each in ids if each.strip())


def _ranks(value: Any) -> tuple[int, ...]:
    """Different ranks, the largest first."""
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or len(words) > MOST_RANKS:
        raise InputError(f"lora_ranks {shown(value)} is not valid: name up to {MOST_RANKS} ranks, such as 8,16,64")
    return tuple(sorted({READERS["lora_rank"]("lora_ranks", word) for word in words}, reverse=True))


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Predicted throughput of a setup over all GPUs, an interval, and what bounds it."""

    tokens_per_s: float
    low_tokens_per_s: float
    high_tokens_per_s: float
    step_seconds: float
    bound_by: str


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One row of the table: a setup, its price, and the class and profile it stands for."""

    setup: TrainingSetup
    estimate: Estimate
    speed: Speed | None
    method_class: MethodClass
    profile: Profile
    safe: bool
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class FrontPoint:
    """One setup of the Pareto front: nothing that fits needs less, is faster and of a better class at once."""

    setup: TrainingSetup
    method_class: MethodClass
    required_bytes: int
    tokens_per_s: float


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """Valid setups that were not priced, because a bound excludes them."""

    bound: str
    count: int
    because: str


@dataclass(frozen=True, kw_only=True)
class Census:
    """The valid setups of a request: how many were priced, and how many each bound excludes; they add up."""

    valid: int
    priced: int
    excluded: tuple[Excluded, ...]


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    """What one engine would do at its best, where the engine was left open. ``problem``: why it cannot do what was
    asked for; the other fields are then None. ``valid`` counts its setups.
    """

    engine: str
    verdict: Verdict | None = None
    method_class: MethodClass | None = None
    required_bytes: int | None = None
    tokens_per_s: float | None = None
    valid: int = 0
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class RungReport:
    """One rung of the walk: applied or why not, required bytes before and after, the slowdown it costs."""

    id: str
    title: str
    tier: int
    applied: bool
    reason: str
    before_bytes: int | None
    after_bytes: int | None
    slowdown: float | None
    quality_risk: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole answer. ``chosen`` None: nothing allowed fits, and ``nearest_miss`` and ``remedies`` say more.
    ``remedies`` also stand beside a choice that is uncertain.

    ``folder``, ``files`` and ``command`` are empty until it is written.
    """

    verdict: Verdict
    request: Request
    machine: Machine
    model: ModelSpec
    chosen: Configuration | None
    configurations: tuple[Configuration, ...]
    alternatives: tuple[Configuration, ...]
    ladder: tuple[RungReport, ...]
    reasons: tuple[str, ...]
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]
    nearest_miss: Configuration | None = None
    remedies: tuple[str, ...] = ()
    pareto: tuple[FrontPoint, ...] = ()
    space: Census | None = None
    engines: tuple[EngineReport, ...] = ()
    data: Lengths | None = None
    folder: str | None = None
    files: tuple[str, ...] = ()
    command: str | None = None

    @property
    def version(self) -> str:
        """The planner that made it."""
        import planner

        return planner.__version__
