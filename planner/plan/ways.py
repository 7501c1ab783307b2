"""How a plan is spread over the GPUs and why: replicas, shards, or a model that is itself cut.

The field's rule: replicas (DDP) while all states fit one GPU; shards (ZeRO, FSDP) while the shard, the activations and
what is gathered at a time fit; tensor parallelism inside a node where they do not; pipeline stages across nodes.
"""

from __future__ import annotations

from collections.abc import Iterator

from planner.memory.megatron import ENGINE, is_megatron
from planner.search.batch import Batch
from planner.search.choice import rate
from planner.search.climb import Outcome, Round
from planner.search.desk import Desk
from planner.speed.estimate import data_ranks
from planner.training import TrainingSetup
from planner.units import show_gib

WORDS = {"none": "one GPU", "ddp": "DDP", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}
SHARDED_WEIGHTS = ("zero3", "fsdp", "fsdp2")
LINKS = "links between GPUs"
WRITTEN = "for full fine-tuning --engine megatron with --pipeline-parallel and --tensor-parallel writes its files"
# Who runs a model that is cut.
TENSOR_ENGINES = "LLaMA-Factory's Megatron adapter (USE_MCA=1) or DeepSpeed AutoTP"
# DeepSpeed's AutoTP trains under these, and Liger's loss does not go with it (rules lf-53b).
AUTOTP = ({"parallelism": "zero1", "liger_kernel": False}, {"parallelism": "zero2", "liger_kernel": False})
SEQUENCE_ENGINES = "LLaMA-Factory's Megatron adapter (USE_MCA=1) or DeepSpeed-Ulysses"
PIPELINE_ENGINES = "LLaMA-Factory's Megatron adapter (USE_MCA=1) or Megatron-LM"


def spread(setup: TrainingSetup) -> str:
    """``ZeRO-3``: the parallelism as a reader would say it."""
    parallelism = str(setup.parallelism)
    return WORDS.get(parallelism, parallelism.upper())


def checkpointing(setup: TrainingSetup) -> str:
    """``checkpointing``, ``no checkpointing``, or of how many layers one is checkpointed."""
    how = setup.gradient_checkpointing
    if isinstance(how, bool):
        return "checkpointing" if how else "no checkpointing"
    return "selective checkpointing" if how == "selective" else f"checkpointing of one layer in {how}"


def why_spread(desk: Desk, each: Round, setup: TrainingSetup) -> Iterator[str]:
    """Why the chosen setup is replicated or sharded as it is; nothing where one process trains."""
    if desk.machine.world_size == 1 or setup.parallelism == "none":
        return
    if setup.parallelism == "ddp":
        price = desk.price(setup)
        held = f", {show_gib(price.held_bytes)} of {show_gib(desk.capacity_bytes)}" if price else ""
        yield f"DDP: weights, gradients and states fit each GPU whole{held}"
        return
    if is_megatron(setup):
        ranks = data_ranks(setup, desk.machine) * setup.context_parallel
        world = desk.machine.world_size
        yield f"Megatron over {world} GPUs: {ranks} of them hold the same weights and share their states"
        return
    held = _replicated(desk, each, setup)
    yield f"{spread(setup)} over {desk.machine.world_size} GPUs: {held}{_gathered(desk, setup)}"


def _replicated(desk: Desk, each: Round, setup: TrainingSetup) -> str:
    """What replicas would be in place of the shards: too large, or slower at their best."""
    need = desk.need(setup.but(parallelism="ddp", offload="none"))
    whole = [other for other in each.space.fitting(desk.capacity_bytes) if other.parallelism == "ddp"]
    best = max((rate(desk, other) for other in whole), default=None)
    if best is not None and desk.speed(setup) is not None:
        return f"whole on each GPU it fits too, at about {best:,.0f} tokens/s against {rate(desk, setup):,.0f}"
    if need is not None and need > desk.capacity_bytes:
        return f"whole on each GPU it would need {show_gib(need)} of {show_gib(desk.capacity_bytes)}"
    return "it would fit whole on each GPU, with less room for the micro batch"


def _gathered(desk: Desk, setup: TrainingSetup) -> str:
    price = desk.price(setup)
    if price is None or setup.parallelism not in SHARDED_WEIGHTS:
        return ""
    fits = ", which fits beside the rest" if price.required_bytes <= desk.capacity_bytes else ""
    return f"; of the shards {show_gib(price.gathered_bytes)} are gathered at a time{fits}"


def other_ways(desk: Desk, setup: TrainingSetup) -> Iterator[str]:
    """Where cutting the model itself would pay though the plan fits: a batch too small, or a network that bounds it."""
    machine, speed = desk.machine, desk.speed(setup)
    if speed is None or machine.nodes == 1 or speed.bound_by != LINKS or setup.parallelism not in SHARDED_WEIGHTS:
        return
    yield (
        f"the network between the {machine.nodes} nodes bounds this plan: pipeline stages across nodes would send "
        f"activations in place of weights ({PIPELINE_ENGINES}; {WRITTEN})"
    )


def crowded(desk: Desk, batch: Batch) -> Iterator[str]:
    """More GPUs than sequences a step: replicas cannot all read, and the model would have to be cut instead."""
    if batch.asked >= batch.ranks:
        return
    fold = -(-batch.ranks // batch.asked)
    yield (
        f"{batch.ranks} data-parallel GPUs read {batch.ranks} sequences a step or more: to keep {batch.asked}, plan "
        f"for {batch.asked} GPUs, or cut the model over {fold} GPUs each, by tensor parallelism in a node and pipeline "
        f"stages across nodes ({PIPELINE_ENGINES}; {WRITTEN})"
    )


def cut(desk: Desk, outcome: Outcome) -> Iterator[str]:
    """Where the shard and what is gathered at a time, or one sequence, do not fit: the cut that would do, priced."""
    setup = outcome.nearest
    price = desk.price(setup) if setup is not None else None
    if setup is None or price is None or setup.micro_batch_size != 1:
        return
    held = price.held_bytes + price.context_bytes
    if setup.parallelism in SHARDED_WEIGHTS and held + price.gathered_bytes > desk.capacity_bytes:
        if held <= desk.capacity_bytes:
            gathered = f"{spread(setup)} gathers {show_gib(price.gathered_bytes)} at a time, which does not fit beside"
            yield f"{gathered} its shard{_would_do(desk, setup, 'tensor')}"
    elif held < desk.capacity_bytes / 2:
        yield f"one sequence of {setup.seq_len} tokens does not fit one GPU{_would_do(desk, setup, 'context')}"


def _would_do(desk: Desk, setup: TrainingSetup, kind: str) -> str:
    """The smallest cut within a node that fits, with what it would need; nothing where none does."""
    written = autotp_that_fits(desk, setup) if kind == "tensor" else None
    if written is not None:
        return written
    for size in _cuts(desk):
        need = desk.need(setup.but(**{f"{kind}_parallel": size, "parallelism": "zero1"}))
        if need is not None and need <= desk.capacity_bytes:
            return (
                f": {kind} parallelism over {size} GPUs of a node would, at {show_gib(need)} a GPU"
                f"{_over_pcie(desk)} ({TENSOR_ENGINES if kind == 'tensor' else SEQUENCE_ENGINES}; "
                f"{_files(desk, setup, kind, size)})"
            )
    return ""


def _files(desk: Desk, setup: TrainingSetup, kind: str, size: int) -> str:
    """Whether files for the cut are written, by the Megatron adapter and what it knows."""
    sizes = {f"{kind}_parallel": size}
    whole = {"engine": ENGINE, "parallelism": "zero1", "attention": "sdpa", "liger_kernel": False, "offload": "none"}
    if setup.method != "full" or desk.refusal(setup.but(**whole, **sizes)) is not None:
        return "no files are written for that here"
    return f"--engine {ENGINE} --{kind}-parallel {size} writes its files"


def _cuts(desk: Desk) -> list[int]:
    """Sizes of a tensor-parallel group that a node divides into."""
    return [size for size in (2, 4, 8) if desk.machine.gpus_per_node % size == 0]


def autotp_that_fits(desk: Desk, setup: TrainingSetup) -> str | None:
    """The smallest tensor parallelism that files are written for and that fits; None where there is none."""
    for size in _cuts(desk):
        for changes in AUTOTP:
            cut = setup.but(tensor_parallel=size, **changes)
            need = desk.need(cut)
            if need is not None and need <= desk.capacity_bytes and desk.refusal(cut) is None:
                return (
                    f": tensor parallelism over {size} GPUs of a node does, at {show_gib(need)} a GPU"
                    f"{_over_pcie(desk)} (--tensor-parallel {size} --parallelism {cut.parallelism}: DeepSpeed's AutoTP)"
                )
    return None


def _over_pcie(desk: Desk) -> str:
    return ", slowly: these GPUs have no NVLink" if desk.machine.links.nvlink is False else ""
