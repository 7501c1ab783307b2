"""A failed setup and what was measured -> the next setup to try, by the planner's own search. Pure.

What is learnt stays what it was: method, length, ranks of adapters, effective batch, data order. Which of the other
fields may change depends on whether a checkpoint has to be read again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from planner.errors import PlannerError
from planner.hardware.machine import Machine
from planner.memory.result import Estimate
from planner.plan.plan import Plan, Request
from planner.search.rungs import load_ladder
from planner.speed.estimate import data_ranks
from planner.training import FIELD_NAMES, TrainingSetup

# How the same step is computed: neither what is learnt nor what a checkpoint holds. Kernels are not among them: the
# ladder takes them wherever they work, so where one is off somebody wanted it so, or its package is missing.
STEP_FIELDS = frozenset(
    {
        "micro_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "activation_offload",
        "eval_micro_batch_size",
    }
)  # fmt: skip
# How a step is cut up: free even where it was set by hand, since nothing else may be left.
SPLIT_FIELDS = frozenset(
    {"micro_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "eval_micro_batch_size"}
)
# Where states and weights lie: the same training, in a checkpoint of another form.
PLACE_FIELDS = frozenset({"parallelism", "offload"})
_NOT_PINNED = frozenset({"model", "stage", "engine", "gpus", "versions", "ds_config", "seq_len", "padded"})
SAFETY = 0.97  # of the capacity that is left when a message states no figures


@dataclass(frozen=True, kw_only=True)
class Shortfall:
    """What an out-of-memory error taught: ``wanted_bytes`` is a lower bound on what the setup takes on a GPU,
    ``available_bytes`` what this process could have had of it. None where the message did not say.
    """

    wanted_bytes: int | None
    available_bytes: int | None


def lowered_capacity(capacity_bytes: int, price: Estimate, shortfall: Shortfall) -> int:
    """Capacity for the next search, in bytes of our own predictions. ``price`` is the failed setup's.

    The setup held at least ``wanted`` bytes, context included, where ``price`` says allocated and context: what every
    setup allocates is taken to be too low by the same factor, so that the room beside the context shrinks by it. In
    any case what the failed setup was predicted to need is out of reach.
    """
    available = min(capacity_bytes, shortfall.available_bytes or capacity_bytes)
    context = price.context_bytes
    if shortfall.wanted_bytes is None:
        lowered = int(available * SAFETY)
    else:
        factor = max(1.0, (shortfall.wanted_bytes - context) / max(1, price.allocated_bytes))
        lowered = context + int((available - context) / factor)
    return max(1, min(lowered, price.required_bytes - 1))


def next_setup(
    plan: Plan,
    failed: TrainingSetup,
    capacity_bytes: int,
    *,
    consent: Collection[str],
    has_checkpoint: bool,
    leanest: bool = False,
    held: Collection[str] = (),
) -> TrainingSetup | None:
    """The next rung that fits within ``capacity_bytes`` and keeps what is learnt; None where there is none.

    ``consent`` holds ids of rungs that may change what is learnt; they count only while nothing has been learnt yet.
    ``leanest``: the one that takes least instead of the fastest. ``held`` are fields that somebody set by hand: they
    stay, like those that the plan's flags pinned, but for how a step is cut up.
    """
    gpus = tuple(replace(gpu, capacity_bytes=min(gpu.capacity_bytes, capacity_bytes)) for gpu in plan.machine.gpus)
    machine = replace(plan.machine, gpus=gpus)
    asked = frozenset() if has_checkpoint else frozenset(consent)
    kept = frozenset(held) | frozenset(plan.request.pinned)
    for changes in ({}, *_class_changes(asked, failed)):
        free = (_free(asked, has_checkpoint) | frozenset(changes)) - (kept - SPLIT_FIELDS)
        request = _request(plan, failed, asked, free, changes)
        found = _search(replace(request, objective="memory") if leanest else request, plan, machine)
        if found is not None and found != failed:
            return failed.but(**{name: getattr(found, name) for name in free})
    return None


def _search(request: Request, plan: Plan, machine: Machine) -> TrainingSetup | None:
    from planner.plan.make import make_plan

    try:
        found = make_plan(request, plan.model, machine)
    except PlannerError:
        return None
    return found.chosen.setup if found.verdict == "fits" and found.chosen is not None else None


def _class_changes(consent: Collection[str], failed: TrainingSetup) -> Iterator[dict[str, Any]]:
    """What each consented class of the ladder would change in what is learnt, in the ladder's order."""
    for rung in load_ladder():
        if rung.id in consent and rung.is_class and not rung.in_setup(failed):
            yield dict(rung.changes)


def _free(consent: Collection[str], has_checkpoint: bool) -> frozenset[str]:
    if has_checkpoint:
        return STEP_FIELDS
    shorter = any(rung.id in consent and rung.steps == "seq_len" for rung in load_ladder())
    return STEP_FIELDS | PLACE_FIELDS | ({"seq_len"} if shorter else frozenset())


def _request(
    plan: Plan, failed: TrainingSetup, consent: frozenset[str], free: Collection[str], changes: Mapping[str, Any]
) -> Request:
    """The first request again, with everything fixed that must stay as it is, and a consented class's own changes."""
    pinned: dict[str, Any] = {
        name: getattr(failed, name)
        for name in FIELD_NAMES
        if name not in free and name not in _NOT_PINNED and getattr(failed, name) is not None
    }
    pinned = {name: value for name, value in pinned.items() if name in plan.request.pinned or _is_stated(name, value)}
    if failed.eval_micro_batch_size is not None:
        pinned["eval_micro_batch_size"] = failed.eval_micro_batch_size
    pinned |= changes
    batch = failed.micro_batch_size * failed.gradient_accumulation_steps * data_ranks(failed, plan.machine)
    return replace(
        plan.request,
        method=pinned.pop("method", failed.method),
        seq_len=failed.seq_len,
        global_batch=batch,
        allow=plan.request.allow | consent,
        require=frozenset(),
        pinned=pinned,
    )


def _is_stated(name: str, value: Any) -> bool:
    """Fields at their default are pinned too where a rung could move them; the rest would only get in the way."""
    default = getattr(TrainingSetup(model="-"), name)
    movable = {"parallelism", "offload", "optim", "param_dtype", "quantization_bit", "packing", "compute_dtype",
               "optimizer_in_backward", "torch_compile", "unsloth", "adapter_dtype", "liger_kernel", "attention",
        "activation_offload", "gradient_checkpointing"}  # fmt: skip
    return value != default or name in movable
