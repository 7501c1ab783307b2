"""Seconds of a micro batch that GPUs which share a model's layers, samples or experts spend on handing over tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from planner.hardware.machine import Machine
from planner.model.spec import Block, ModelSpec
from planner.speed.links import paths
from planner.speed.rates import Rates
from planner.speed.work import recomputed
from planner.training import TrainingSetup

HALF = 2  # bytes of an element of 16 bit


def tensor_traffic_s(setup: TrainingSetup, spec: ModelSpec, machine: Machine, rates: Rates) -> float:
    """Seconds of a micro batch that tensor parallelism waits for: two all-reduces of a layer's output in forward, two
    of its input's gradient in backward, and those of the recomputation; nothing runs beside them.

    An all-reduce moves 2 (t - 1) / t of its b x s x h elements of 16 bit over a ring of t GPUs, within a node where t
    GPUs are. Source: Megatron-LM, arXiv 1909.08053, section 3. Leaves out: the loss's sums of a few bytes a token.
    """
    size = setup.tensor_parallel
    if size == 1:
        return 0.0
    moved = 2.0 * (size - 1) / size * HALF * _tokens(setup) * spec.hidden
    each = moved / _rate(machine, size, rates) + _latency_s(size, rates)
    return 2 * (2 + recomputed(setup, spec.layers)) * spec.layers / setup.pipeline_parallel * each


def ring_traffic_s(setup: TrainingSetup, spec: ModelSpec, machine: Machine, rates: Rates) -> float:
    """Seconds that keys and values of a micro batch travel round the GPUs which share its samples, while attention
    computes: each GPU's chunk goes past all others in forward and in recomputation, and with its gradient in backward.

    Source: ring attention, arXiv 2310.01889, section 3; Megatron-LM hands them over likewise (cp_comm_type p2p).
    """
    size = setup.context_parallel
    if size == 1:
        return 0.0
    elements = _over_layers(spec, lambda block: 2 * block.attention.kv_width) / setup.tensor_parallel  # K and V
    rounds = (1 + 2 + recomputed(setup, spec.layers)) * (size - 1)
    moved = rounds * HALF * _tokens(setup) * elements / setup.pipeline_parallel
    return moved / _rate(machine, size * setup.tensor_parallel, rates)


def expert_traffic_s(setup: TrainingSetup, spec: ModelSpec, machine: Machine, rates: Rates) -> float:
    """Seconds of a micro batch that expert parallelism waits for: an all-to-all that sends each token to its experts
    and one that brings it back, in forward, in backward and in recomputation; nothing runs beside them.

    Of e GPUs with experts 1 / e of the tokens stay where they are, experts being used evenly. Source: GShard, arXiv
    2006.16668, section 3.
    """
    size = setup.expert_parallel
    if size == 1 or not spec.is_moe:
        return 0.0
    sent = _over_layers(spec, lambda block: block.moe.experts_per_token if block.moe else 0)
    passes = 2 * (2 + recomputed(setup, spec.layers))
    moved = passes * HALF * _tokens(setup) / setup.tensor_parallel * sent * spec.hidden * (size - 1) / size
    layers = _over_layers(spec, lambda block: int(block.moe is not None))
    waits = passes * layers * _latency_s(size, rates)
    return (moved / _rate(machine, size * setup.tensor_parallel, rates) + waits) / setup.pipeline_parallel


def _tokens(setup: TrainingSetup) -> float:
    """Tokens of a micro batch that one GPU holds along the sequence."""
    return setup.seq_len * setup.micro_batch_size * setup.sequences_per_sample / setup.context_parallel


def _over_layers(spec: ModelSpec, of: Callable[[Block], int]) -> int:
    return sum(run.count * of(run.block) for run in spec.runs)


def _latency_s(size: int, rates: Rates) -> float:
    """Seconds of a collective of so many GPUs that carries next to nothing."""
    return float(rates.links["latency_seconds"]) + (size - 1) * rates.hop_seconds


def _rate(machine: Machine, size: int, rates: Rates) -> float:
    """Bytes per second between the GPUs of a group of neighbours: a node's links where the group fits one."""
    near = replace(machine, nodes=1) if size <= machine.gpus_per_node else machine
    return paths(near, rates).between_gpus
