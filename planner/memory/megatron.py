"""Megatron-core with the distributed optimizer, as LLaMA-Factory's adapter (mcore_adapter) sets it up.

A parameter of bf16 training weighs 2 bytes as weight and 4 as gradient on every rank, and 12 of master weight and
Adam states over the d ranks that hold the same parameters: 6 + 12 / d (Megatron-LM docs, dist_optimizer.md).
``accumulate_allreduce_grads_in_fp32`` comes with bf16 (mcore_adapter training_args.py). Both live in buffers made at
the start (core/distributed/param_and_grad_buffer.py). Experts have fewer replicas than the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.memory.layout import Layout, Unit
from planner.memory.optimizer import OptimizerCost
from planner.memory.shares import share, sizes_of
from planner.training import TrainingSetup

ENGINE = "megatron"
GRADIENT_BYTES = 4


def is_megatron(setup: TrainingSetup) -> bool:
    """Whether LLaMA-Factory's Megatron adapter runs the setup."""
    return setup.engine == ENGINE


def is_sequence_parallel(setup: TrainingSetup) -> bool:
    """Megatron's sequence parallelism comes with tensor parallelism: what lies between layers is divided too."""
    return is_megatron(setup) and setup.tensor_parallel > 1


def lay_out_megatron(setup: TrainingSetup, units: Sequence[Unit], cost: OptimizerCost, ranks: int) -> Layout:
    """Bytes on one GPU that holds ``units`` as its share of the model, one of ``ranks`` that read different data."""
    sizes = sizes_of(units, GRADIENT_BYTES, 2)
    replicas = ranks * setup.context_parallel
    experts = sum(unit.count * unit.expert_elements for unit in units if unit.trained)
    states = cost.state_bytes + cost.master_bytes
    of_experts = states * experts // sizes.trained_elements if sizes.trained_elements else 0
    optimizer = share(states - of_experts, replicas) + share(of_experts, max(1, replicas // setup.expert_parallel))
    return Layout(
        weights=sizes.held,
        gradients=dict.fromkeys((unit.name for unit in units), 0),
        gradients_carried=sizes.gradients,
        gradients_at_step=sizes.gradients,
        optimizer=optimizer,
        load=sizes.held,
        notes=("gradients are kept in fp32 buffers from the start",),
    )
