"""How weights, gradients, states and communication buffers lie on the worst GPU, for every kind of parallelism."""

from __future__ import annotations

from collections.abc import Sequence

from planner.errors import UnsupportedError
from planner.memory.deepspeed import lay_out_deepspeed
from planner.memory.fsdp import lay_out_fsdp
from planner.memory.layout import Layout, Unit
from planner.memory.megatron import is_megatron, lay_out_megatron
from planner.memory.optimizer import OptimizerCost
from planner.memory.regime import Regime, checkpoints_within_unit
from planner.memory.shares import sizes_of
from planner.training import DTYPE_BYTES, TrainingSetup


def lay_out(
    setup: TrainingSetup,
    regime: Regime,
    units: Sequence[Unit],
    cost: OptimizerCost,
    ranks: int,
    gpus_per_node: int,
    hidden: int,
) -> Layout:
    """Bytes on the worst of ``ranks`` GPUs.

    ``units`` in the order of the forward pass: "embedding", blocks, "norm", "head" (``ROOT_UNITS`` and layers),
    their bytes as one GPU would hold them. ``hidden`` is the model's width, for DeepSpeed's "auto" buckets.
    Raises UnsupportedError for an offload that the parallelism does not have.
    """
    if is_megatron(setup):
        return lay_out_megatron(setup, units, cost, ranks)
    kind = setup.parallelism or ("none" if ranks == 1 else "ddp")
    if kind.startswith("zero"):
        return lay_out_deepspeed(setup, regime, units, cost, ranks, hidden)
    if kind.startswith("fsdp"):
        return lay_out_fsdp(setup, regime, units, cost, ranks)
    if setup.offload != "none":
        raise UnsupportedError(
            f"offload {setup.offload!r} needs DeepSpeed or FSDP, not parallelism {kind}; choose zero2 or zero3"
        )
    return _replicated(setup, regime, units, cost, buckets=kind == "ddp")


def _replicated(
    setup: TrainingSetup, regime: Regime, units: Sequence[Unit], cost: OptimizerCost, *, buckets: bool
) -> Layout:
    """One GPU, or DDP: every rank holds everything.

    DDP's reducer copies gradients into buckets of its own, in sum one more copy of all of them from construction
    on (torch/csrc/distributed/c10d/reducer.cpp; transformers leaves gradient_as_bucket_view off).
    """
    each = DTYPE_BYTES[regime.gradient]
    sizes = sizes_of(units, each, each)
    accumulates = setup.gradient_accumulation_steps > 1
    consumed = cost.consumes_gradients
    held_back = accumulates or consumed
    return Layout(
        weights=sizes.held,
        gradients={unit.name: 0 if held_back else unit.gradient_bytes(each) for unit in units},
        gradients_carried=sizes.gradients if accumulates and not consumed else 0,
        gradients_at_step=0 if consumed else sizes.gradients,
        optimizer=cost.state_bytes + cost.master_bytes,
        load=sizes.held,
        reducing=sizes.largest_trained * each if consumed else 0,
        resident_buffers=sizes.gradients if buckets else 0,
        step_temporaries=0 if consumed else cost.step_temporary_bytes,
        end_of_backward=cost.step_temporary_bytes if consumed else 0,
        notes=("DDP holds one more copy of all gradients in its buckets",) if buckets else (),
    )


def kept_per_layer_bytes_per_token(setup: TrainingSetup, regime: Regime, hidden: int) -> int:
    """Bytes per token that each layer keeps beyond its own window until backward ends, under FSDP1.

    FSDP1 frees a unit without trained weights by ``register_multi_grad_hook`` on the unit's inputs
    (torch/distributed/fsdp/_runtime_utils.py, _register_post_backward_reshard_only_hook) and keeps the handle on the
    flat parameter until the end of backward. Under reentrant checkpointing these inputs are detached leaves, the
    hook holds their AccumulateGrad nodes, and those hold the inputs and their gradients: nothing of the
    checkpoints is freed, and one residual gradient a layer is added. At the first layer, where backward ends, all L
    inputs are alive and L - 2 gradients more than without FSDP. Measured on Mistral-7B with LoRA, on 2 and 4 GPUs
    alike: 245,760 bytes per token = 30 * 2h more than on one GPU (foundation-model-stack/fms-acceleration). Where
    the checkpoint lies inside the unit, the hook sees the layer's input in the graph itself and nothing stays (both
    seen in runs of FSDP1 on the CPU, with the checkpoint on either side).
    """
    if setup.parallelism != "fsdp" or not setup.is_adapter or not _checkpoints(setup) or not regime.reentrant:
        return 0
    if checkpoints_within_unit(setup):
        return 0
    return DTYPE_BYTES[regime.compute if regime.autocast else regime.stream] * hidden


def _checkpoints(setup: TrainingSetup) -> bool:
    return setup.gradient_checkpointing is True
