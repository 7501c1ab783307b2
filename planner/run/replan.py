"""A failed setup and what was measured -> the next setup to try, by the planner's own search. Pure.

What is learnt stays what it was: method, length, ranks of adapters, effective batch, data order. Which of the other
fields may change depends on whether a checkpoint has to be read again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from planner.errors import PlannerError
from planner.plan.plan import Plan, Request
from planner.search.rungs import load_ladder
from planner.speed.estimate import data_ranks
from planner.training import FIELD_NAMES, TrainingSetup

# How the same step is computed: neither what is learnt nor what a checkpoint holds.
STEP_FIELDS = frozenset(
    {
        "micro_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "liger_kernel", "attention",
        "activation_offload", "loss", "eval_micro_batch_size",
    }
)  # fmt: skip
# Where states and weights lie: the same training, in a checkpoint of another form.
PLACE_FIELDS = frozenset({"parallelism", "offload"})
# What a class of the ladder sets, with the user's consent.
LEARNT_FIELDS = frozenset(
    {"method", "quantization_bit", "param_dtype", "optim", "optimizer_in_backward", "lora_rank", "adapter_dtype"}
)
_NOT_PINNED = frozenset({"model", "stage", "engine", "gpus", "versions", "ds_config", "seq_len", "padded"})
SAFETY = 0.97  # of the capacity that is left when a message states no figures


@dataclass(frozen=True, kw_only=True)
class Shortfall:
    """What an out-of-memory error taught: ``wanted_bytes`` is a lower bound on what the setup takes on a GPU,
    ``available_bytes`` what this process could have had of it. None where the message did not say.
    """

    wanted_bytes: int | None
    available_bytes: int | None


def lowered_capacity(plan: Plan, failed: TrainingSetup, shortfall: Shortfall, *, needed_bytes: int,
                     expected_bytes: int) -> int:  # fmt: skip
    """Capacity for the next search, in bytes of our own predictions.

    The failed setup took at least ``wanted`` where ``expected_bytes`` (allocated and context) were predicted: every
    prediction is taken to be too low by that factor, so the real capacity shrinks by it. In any case what the failed
    setup was predicted to need is out of reach.
    """
    capacity = plan.machine.smallest.capacity_bytes
    available = min(capacity, shortfall.available_bytes or capacity)
    factor = 1.0
    if shortfall.wanted_bytes and expected_bytes:
        factor = max(1.0, shortfall.wanted_bytes / expected_bytes)
    lowered = int(available / factor)
    if shortfall.wanted_bytes is None:
        lowered = int(lowered * SAFETY)
    return max(1, min(lowered, needed_bytes - 1))


def next_setup(
    plan: Plan,
    failed: TrainingSetup,
    capacity_bytes: int,
    *,
    consent: Collection[str],
    has_checkpoint: bool,
) -> TrainingSetup | None:
    """The next rung that fits within ``capacity_bytes`` and keeps what is learnt; None where there is none.

    ``consent`` holds ids of rungs that may change what is learnt; they count only while nothing has been learnt yet.
    """
    from planner.plan.make import make_plan

    consented = frozenset() if has_checkpoint else _learning_rungs(consent)
    gpus = tuple(replace(gpu, capacity_bytes=min(gpu.capacity_bytes, capacity_bytes)) for gpu in plan.machine.gpus)
    machine = replace(plan.machine, gpus=gpus)
    request = _request(plan, failed, frozenset(consent), consented, has_checkpoint)
    try:
        found = make_plan(request, plan.model, machine)
    except PlannerError:
        return None
    if found.verdict != "fits" or found.chosen is None:
        return None
    setup = found.chosen.setup
    return None if setup == failed else _kept(setup, failed, free=_free(consented, has_checkpoint))


def _learning_rungs(consent: Collection[str]) -> frozenset[str]:
    return frozenset(
        rung.id for rung in load_ladder() if rung.id in consent and (rung.is_class or rung.steps == "seq_len")
    )


def _free(consented: Collection[str], has_checkpoint: bool) -> frozenset[str]:
    free = STEP_FIELDS if has_checkpoint else STEP_FIELDS | PLACE_FIELDS
    return free | LEARNT_FIELDS | {"seq_len"} if consented else free


def _request(
    plan: Plan, failed: TrainingSetup, allow: frozenset[str], consented: frozenset[str], has_checkpoint: bool
) -> Request:
    """The first request again, with everything fixed that must stay as it is."""
    free = _free(consented, has_checkpoint) | _NOT_PINNED
    pinned: dict[str, Any] = {
        name: getattr(failed, name) for name in FIELD_NAMES if name not in free and getattr(failed, name) is not None
    }
    pinned = {name: value for name, value in pinned.items() if name in plan.request.pinned or _is_stated(name, value)}
    if failed.eval_micro_batch_size is not None:
        pinned["eval_micro_batch_size"] = failed.eval_micro_batch_size
    batch = failed.micro_batch_size * failed.gradient_accumulation_steps * data_ranks(failed, plan.machine)
    return replace(
        plan.request,
        method=None if consented else failed.method,
        seq_len=failed.seq_len,
        global_batch=batch,
        objective=plan.request.objective,
        allow=plan.request.allow | allow,
        require=frozenset(),
        pinned={name: value for name, value in pinned.items() if name != "method"},
    )


def _is_stated(name: str, value: Any) -> bool:
    """Fields at their default are pinned too where a rung could move them; the rest would only get in the way."""
    default = getattr(TrainingSetup(model="-"), name)
    movable = {"parallelism", "offload", "optim", "param_dtype", "quantization_bit", "packing", "compute_dtype",
               "optimizer_in_backward", "torch_compile", "unsloth", "adapter_dtype"}  # fmt: skip
    return value != default or name in movable


def _kept(setup: TrainingSetup, failed: TrainingSetup, *, free: Collection[str]) -> TrainingSetup:
    """The found setup with every field that must not change as the failed one had it."""
    return failed.but(**{name: getattr(setup, name) for name in free})
