"""A diagnosis -> what to change before the next attempt, or why not to make one. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from planner.memory.result import Estimate
from planner.plan.plan import Plan
from planner.run.nccl import remedy_for
from planner.run.records import Diagnosis
from planner.run.replan import Shortfall, lowered_capacity, next_setup
from planner.training import FIELD_NAMES, TrainingSetup
from planner.units import show_gib

LEARNT_FIELDS = ("method", "seq_len", "quantization_bit", "lora_rank", "param_dtype", "optim")


@dataclass(frozen=True, kw_only=True)
class Change:
    """What the next attempt has that this one had not: another setup, or variables. ``sentence`` says both and why."""

    setup: TrainingSetup
    environment: dict[str, str] = field(default_factory=dict)
    sentence: str
    capacity_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class GiveUp:
    """No further attempt, and why; ``next_step`` is the reader's."""

    reason: str
    next_step: str


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What the decision rests on. ``estimate`` is of ``setup``; ``environment`` what was set for healing so far.

    ``held`` are fields that somebody set by hand; ``room_bytes`` is the capacity that an earlier error left to plan
    with.
    """

    plan: Plan
    setup: TrainingSetup
    estimate: Estimate
    environment: Mapping[str, str]
    lines: Sequence[str]
    retries_left: int
    has_checkpoint: bool
    consent: Collection[str]
    held: Collection[str] = ()
    peak_bytes: int | None = None
    room_bytes: int | None = None
    free_port: int | None = None


def remedy(diagnosis: Diagnosis, case: Situation) -> Change | GiveUp:
    """The next rung for memory, the next variable for links, another port; everything else stops here."""
    ways = {"cuda_oom": _more_room, "nccl": _other_links, "port_taken": _other_port}
    way = ways.get(diagnosis.kind)
    if way is None:
        return GiveUp(reason=diagnosis.cause, next_step=diagnosis.next_step)
    if case.plan.machine.nodes > 1:
        return GiveUp(
            reason=f"{diagnosis.cause}; a run over several machines is not healed: all would have to change alike",
            next_step=diagnosis.next_step,
        )
    if case.retries_left < 1:
        return GiveUp(
            reason=f"{diagnosis.cause}; no attempt is left",
            next_step=f"{diagnosis.next_step}; or allow more with --retries",
        )
    return way(diagnosis, case)


def _more_room(diagnosis: Diagnosis, case: Situation) -> Change | GiveUp:
    facts = diagnosis.facts
    evaluation = _smaller_evaluation(diagnosis, case)
    if evaluation is not None:
        return evaluation
    total, others = facts.get("total_bytes"), facts.get("others_bytes")
    available = total - (others or 0) if total is not None else None
    wanted = max((each for each in (facts.get("wanted_bytes"), case.peak_bytes) if each), default=None)
    shortfall = Shortfall(wanted_bytes=wanted, available_bytes=available)
    capacity = lowered_capacity(case.plan.machine.smallest.capacity_bytes, case.estimate, shortfall)
    capacity = min(capacity, case.room_bytes or capacity)
    found = _within(case, capacity) or _within(case, case.estimate.required_bytes - 1, leanest=True)
    if found is None:
        return _nothing_left(diagnosis, case, capacity)
    kept = "effective batch and seed stay"
    if changes_what_is_learnt(case.setup, found):
        kept += "; with your consent what is learnt changes"
    sentence = f"{diagnosis.cause}; {kept}; next: {difference(case.setup, found)}"
    return Change(setup=found, sentence=sentence, capacity_bytes=capacity)


def _within(case: Situation, capacity_bytes: int, *, leanest: bool = False) -> TrainingSetup | None:
    """The search's next setup; where the evidence leaves no room at all, the leanest one is still worth an attempt."""
    return next_setup(
        case.plan,
        case.setup,
        capacity_bytes,
        consent=case.consent,
        has_checkpoint=case.has_checkpoint,
        leanest=leanest,
        held=case.held,
    )


def _smaller_evaluation(diagnosis: Diagnosis, case: Situation) -> Change | None:
    size = case.setup.eval_micro_batch_size
    if diagnosis.facts.get("phase") != "eval" or size is None or size < 2:
        return None
    smaller = case.setup.but(eval_micro_batch_size=size // 2)
    return Change(setup=smaller, sentence=f"{diagnosis.cause}; next: {difference(case.setup, smaller)}")


def _nothing_left(diagnosis: Diagnosis, case: Situation, capacity: int) -> GiveUp:
    """What would do without the ties: from the start again, or with what is learnt changed."""
    if case.has_checkpoint:
        fresh = next_setup(case.plan, case.setup, capacity, consent=(), has_checkpoint=False, held=case.held)
        if fresh is not None:
            way = difference(case.setup, fresh)
            return GiveUp(
                reason=f"{diagnosis.cause}; nothing that its checkpoint can be resumed with takes less",
                next_step=f"{way} would fit {show_gib(capacity)} a GPU, but reads no checkpoint of this run: plan it "
                "anew in another folder",
            )
    return GiveUp(
        reason=f"{diagnosis.cause}; no rung that keeps what is learnt fits {show_gib(capacity)} a GPU",
        next_step="allow one that changes it, such as --allow qlora-nf4 or shorter-sequences, or take a larger GPU",
    )


def _other_links(diagnosis: Diagnosis, case: Situation) -> Change | GiveUp:
    found = remedy_for(case.lines, case.environment)
    if found is None:
        return GiveUp(reason=f"{diagnosis.cause}; every known remedy was tried", next_step=diagnosis.next_step)
    variables = dict(found.variables)
    words = " ".join(f"{name}={value}" for name, value in variables.items())
    return Change(setup=case.setup, environment=variables, sentence=f"{found.why} ({words})")


def _other_port(diagnosis: Diagnosis, case: Situation) -> Change | GiveUp:
    if "MASTER_PORT" in case.environment or case.free_port is None or case.plan.machine.nodes > 1:
        return GiveUp(reason=diagnosis.cause, next_step=diagnosis.next_step)
    return Change(
        setup=case.setup,
        environment={"MASTER_PORT": str(case.free_port)},
        sentence=f"{diagnosis.cause}; next: port {case.free_port}",
    )


def difference(before: TrainingSetup, after: TrainingSetup) -> str:
    """``micro_batch_size 4 becomes 2, gradient_accumulation_steps 4 becomes 8``."""
    changed = [name for name in FIELD_NAMES if getattr(before, name) != getattr(after, name)]
    return ", ".join(f"{name} {_word(getattr(before, name))} becomes {_word(getattr(after, name))}" for name in changed)


def _word(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def changes_what_is_learnt(before: TrainingSetup, after: TrainingSetup) -> bool:
    """True where the trained model will be another one than was planned."""
    return any(getattr(before, name) != getattr(after, name) for name in LEARNT_FIELDS)
