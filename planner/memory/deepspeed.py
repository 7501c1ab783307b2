"""DeepSpeed ZeRO 1, 2 and 3 as its source allocates (deepspeed 0.19.8, deepspeed/runtime/zero).

Symbols: P trained elements, N ranks. The engine casts the model to 16 bit, keeps fp32 master weights and states of
P/N elements, and passes gradients through buckets whose sizes the JSON states.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from planner.errors import InputError
from planner.memory.deepspeed_config import MAX_REUSE_ELEMENTS, Buckets, default_deepspeed_config, read_buckets
from planner.memory.layout import Layout, Unit
from planner.memory.optimizer import OptimizerCost
from planner.memory.regime import Regime
from planner.memory.shares import Sizes, read_onto_gpu, scale_bytes, share, sizes_of
from planner.training import DTYPE_BYTES, OPTIMIZER_OFFLOADS, PARAM_OFFLOADS, Offload, TrainingSetup

STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
NORM_BYTES = 8  # gradient norms are taken in float64, one tensor after the other (zero/utils.py get_norm_dtype)


def buckets_of(setup: TrainingSetup, hidden: int) -> Buckets:
    """The buckets of the setup's own JSON, or those that a plan is emitted with.

    Raises InputError for a file that cannot be read or says what DeepSpeed refuses.
    """
    if setup.ds_config is not None:
        return read_buckets(config_of(setup), hidden)
    return _emitted(STAGES[setup.parallelism or "zero2"], setup.offload, hidden)


@lru_cache(maxsize=256)
def _emitted(stage: int, offload: Offload, hidden: int) -> Buckets:
    return read_buckets(default_deepspeed_config(stage, offload, hidden), hidden)


def config_of(setup: TrainingSetup) -> dict[str, Any]:
    """The setup's own DeepSpeed JSON as an object; empty where it has none."""
    if not isinstance(setup.ds_config, str):
        return setup.ds_config or {}
    try:
        return _config_at(setup.ds_config, Path(setup.ds_config).stat().st_mtime_ns)
    except OSError as problem:
        raise InputError(f"ds_config {setup.ds_config!r} cannot be read: {problem.strerror}") from None


@lru_cache(maxsize=64)
def _config_at(path: str, changed_ns: int) -> dict[str, Any]:
    """The one file that pricing reads: a setup may name its DeepSpeed JSON instead of holding it."""
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as problem:
        raise InputError(f"ds_config {path!r} is not JSON: {problem}") from None
    if not isinstance(config, dict):
        raise InputError(f"ds_config {path!r} holds no JSON object")
    return config


def lay_out_deepspeed(
    setup: TrainingSetup, regime: Regime, units: Sequence[Unit], cost: OptimizerCost, ranks: int, hidden: int
) -> Layout:
    """Bytes on the worst rank under ZeRO; ``hidden`` resolves "auto" buckets."""
    buckets = buckets_of(setup, hidden)
    gradient_bytes = DTYPE_BYTES[buckets.grad_accum_dtype or regime.gradient]
    sizes = sizes_of(units, gradient_bytes, _load_bytes(setup, regime))
    if setup.parallelism == "zero3":
        return _stage3(setup, regime, units, cost, ranks, buckets, sizes, gradient_bytes)
    return _stage12(setup, units, cost, ranks, buckets, sizes, gradient_bytes)


def _load_bytes(setup: TrainingSetup, regime: Regime) -> int:
    """Bytes a trained element weighs when the model is put on the GPU.

    LLaMA-Factory makes trained weights fp32 (model/adapter.py) before DeepSpeed casts them back, unless pure_bf16 or
    BAdam is on; under ZeRO-3 it does not.
    """
    upcast = setup.engine == "llamafactory" and setup.param_dtype is None and setup.method != "badam"
    return 4 if upcast else DTYPE_BYTES[regime.adapter if setup.is_adapter else regime.trained]


def _stage12(
    setup: TrainingSetup,
    units: Sequence[Unit],
    cost: OptimizerCost,
    ranks: int,
    buckets: Buckets,
    sizes: Sizes,
    gradient_bytes: int,
) -> Layout:
    """Stages 1 and 2 (stage_1_and_2.py): weights whole, states and (2) gradients split.

    Loading may put the model on every GPU in another dtype first. Flattening makes a second 16-bit copy only where
    there is room for it, so it is not counted.
    """
    offloaded = setup.offload != "none"
    states = 0 if offloaded else share(cost.state_bytes + cost.master_bytes, ranks)
    masters = 0 if offloaded else share(cost.master_bytes, ranks)
    gradients, carried, at_step = _gradients12(setup, units, sizes, ranks, gradient_bytes, offloaded=offloaded)
    return Layout(
        weights=sizes.held,
        gradients=gradients,
        gradients_carried=carried,
        gradients_at_step=at_step,
        optimizer=states,
        load=max(sizes.load, sizes.held + masters),
        reducing=_reducing12(setup, buckets, sizes, ranks, offloaded=offloaded),
        end_of_backward=_end_of_stage1(setup, buckets, sizes, ranks, offloaded=offloaded),
        resident_buffers=2 * sizes.largest_trained if offloaded else 0,  # temp_grad_buffer_for_gpu_offload
        step_temporaries=0 if offloaded else _step12(cost, sizes, ranks, at_step, gradient_bytes),
        notes=(_bucket_note(buckets, sizes),),
    )


def _gradients12(
    setup: TrainingSetup, units: Sequence[Unit], sizes: Sizes, ranks: int, each: int, *, offloaded: bool
) -> tuple[dict[str, int], int, int]:
    """Per unit, carried, at the step.

    Stage 1 keeps every gradient until the last micro batch and then its own part. Stage 2 allocates one buffer for
    its whole part when the first bucket is reduced; with accumulation that of earlier micro batches lives beside it.
    Offloading moves them to the host as they come.
    """
    accumulates = setup.gradient_accumulation_steps > 1
    part = 0 if offloaded else share(sizes.gradients, ranks)
    if setup.parallelism == "zero1":
        carried = sizes.gradients if accumulates else 0
        return {u.name: 0 if accumulates else u.trained * each for u in units}, carried, part
    gradients = dict.fromkeys((u.name for u in units), 0)
    last = next((u for u in reversed(units) if u.trained), units[-1])
    gradients[last.name] = share(part, last.count)
    return gradients, part if accumulates and each == 2 else 0, part


def _bucket_elements(buckets: Buckets, sizes: Sizes) -> int:
    """Elements that one reduction flattens: a bucket, or the one gradient that is larger than it."""
    return min(sizes.trained_elements, max(buckets.reduce_bucket_elements, sizes.largest_trained))


def _reducing12(setup: TrainingSetup, buckets: Buckets, sizes: Sizes, ranks: int, *, offloaded: bool) -> int:
    """Buffers from the first gradient to the end of backward.

    setup_buckets allocates the whole bucket, however few parameters train, twice with overlap_comm;
    allreduce_bucket flattens the slices of all ranks into one more tensor (stage 1 without overlap: at the end only).
    """
    if not sizes.trained_elements:
        return 0
    held = (
        2 * buckets.reduce_bucket_elements * (2 if buckets.overlap_comm else 1) if buckets.contiguous_gradients else 0
    )
    if setup.parallelism == "zero2" or buckets.overlap_comm:
        held += 2 * _bucket_elements(buckets, sizes)
    if offloaded:  # the part that goes to the host is cast to fp32, and its norm taken in float64
        held += NORM_BYTES * min(sizes.largest_trained, share(sizes.trained_elements, ranks))
    return held


def _end_of_stage1(setup: TrainingSetup, buckets: Buckets, sizes: Sizes, ranks: int, *, offloaded: bool) -> int:
    """Stage 1 reduces when backward is over: its own part beside all gradients, and the flattened bucket.

    The gradients that moved into the bucket are freed by then.
    """
    if setup.parallelism != "zero1":
        return 0
    flat = _bucket_elements(buckets, sizes)
    moved = min(buckets.reduce_bucket_elements, sizes.trained_elements)
    part = 0 if offloaded else share(2 * sizes.trained_elements, ranks)
    return max(0, part + 2 * (flat - moved))


def _step12(cost: OptimizerCost, sizes: Sizes, ranks: int, part: int, each: int) -> int:
    """The worst moment of ``step``: the norm; flat and fp32 gradient beside the parts; the optimizer's own step."""
    mine = share(sizes.trained_elements, ranks)
    norm = NORM_BYTES * min(sizes.largest_trained, mine)
    flatten = 4 * mine + (each * mine if each == 2 else 0)
    update = 4 * mine + share(cost.step_temporary_bytes, ranks) - part
    return max(norm, flatten, update)


def _bucket_note(buckets: Buckets, sizes: Sizes) -> str:
    size = 2 * buckets.reduce_bucket_elements
    if sizes.trained_elements < buckets.reduce_bucket_elements:
        return f"the reduce bucket of {size / 1e9:.1f} GB is allocated whole though less is trained than fits into it"
    return f"reduce bucket {size / 1e9:.1f} GB" + (", twice with overlap_comm" if buckets.overlap_comm else "")


def _stage3(
    setup: TrainingSetup,
    regime: Regime,
    units: Sequence[Unit],
    cost: OptimizerCost,
    ranks: int,
    buckets: Buckets,
    sizes: Sizes,
    gradient_bytes: int,
) -> Layout:
    """Stage 3 (stage3.py, partition_parameters.py, partitioned_param_coordinator.py): everything split.

    The bucket and the flat gradient partition live from initialisation on. ``step`` runs per sub-group.
    """
    params_off = setup.offload in PARAM_OFFLOADS
    optimizer_off = setup.offload in OPTIMIZER_OFFLOADS
    scales = sum(u.count * scale_bytes(setup, regime, u) for u in units)
    shards = share(sizes.held - scales, ranks)
    mine = share(sizes.trained_elements, ranks)
    group = min(mine, buckets.sub_group_elements)
    part = 0 if optimizer_off else gradient_bytes * mine
    masters = 0 if optimizer_off else share(cost.master_bytes, ranks)
    resident = (0 if params_off else shards) + scales + _persistent(units, buckets)
    forward, loss, backward = _gathered(setup, regime, units, buckets, ranks, params_off=params_off)
    bucket = 2 * buckets.reduce_bucket_elements if buckets.contiguous_gradients and sizes.trained_elements else 0
    scatter = 2 * _bucket_elements(buckets, sizes)  # reduce_scatter_coalesced concatenates the slices by rank
    load = resident + masters + (0 if optimizer_off else 4 * group)  # each fp32 partition is converted, then cloned
    if read_onto_gpu(setup, regime):
        load = max(load, sizes.held)
    return Layout(
        weights=resident,
        gradients=dict.fromkeys((u.name for u in units), 0),
        gradients_carried=part,
        gradients_at_step=part,
        optimizer=0 if optimizer_off else share(cost.state_bytes + cost.master_bytes, ranks),
        load=load,
        gathered_forward=forward,
        gathered_loss=loss,
        gathered_backward=backward,
        reducing=scatter,
        end_of_backward=_last_gather(setup, regime, units),
        resident_buffers=bucket,
        step_temporaries=0 if optimizer_off else _step3(cost, sizes, ranks, mine, group, gradient_bytes),
        notes=(f"ZeRO-3 leaves {backward / 1e9:.1f} GB of weights gathered during backward",),
    )


def _last_gather(setup: TrainingSetup, regime: Regime, units: Sequence[Unit]) -> int:
    """The embedding, gathered for its backward at the end, with its whole gradient where it trains."""
    embedding = next((u for u in units if u.name == "embedding"), None)
    if embedding is None or not embedding.trained:
        return 0
    return _gather_bytes(setup, regime, embedding) + 2 * embedding.trained


def _step3(cost: OptimizerCost, sizes: Sizes, ranks: int, mine: int, group: int, gradient_bytes: int) -> int:
    """Norm in float64, then per sub-group the flattened gradient, its fp32 copy and the optimizer's own step."""
    norm = NORM_BYTES * share(sizes.largest_trained, ranks)
    own = share(cost.step_temporary_bytes, ranks) * group // mine if mine else 0
    return max(norm, (gradient_bytes + 4) * group, 4 * group + own)


def _persistent(units: Sequence[Unit], buckets: Buckets) -> int:
    """Parameters up to the persistence threshold stay gathered beside their shards."""
    elements = 0
    for unit in units:
        adapters = unit.trained if unit.frozen and unit.largest_trained <= buckets.persistence_elements else 0
        elements += unit.count * (unit.small_elements + adapters)
    return 2 * elements


def _gathered(
    setup: TrainingSetup, regime: Regime, units: Sequence[Unit], buckets: Buckets, ranks: int, *, params_off: bool
) -> tuple[int, int, int]:
    """Unsharded weights in forward, at the loss and in backward.

    With prefetching, every module's fetch gathers a bucket more, until max_live elements are gathered, so that about
    this many stay from the middle of the first layers on, and one tensor more that crosses the limit
    (_fetch_sub_module_impl). Without it: the layer between its recomputation and its backward, and what is used
    again within max_reuse elements. A MoE block is a leaf module, gathered at once into a flat buffer and copied out.
    """
    layers = [u for u in units if not u.is_root]
    roots = [u for u in units if u.is_root]
    block = max((_gather_bytes(setup, regime, u) for u in layers), default=0)
    experts = max((2 * u.expert_elements for u in layers), default=0)
    staging = share(block, ranks) if params_off else 0
    copies = experts + staging
    head = sum(_gather_bytes(setup, regime, u) for u in roots if u.name != "embedding")
    head = head or max((_gather_bytes(setup, regime, u) for u in roots), default=0)  # tied: the head is the embedding
    if buckets.prefetch_elements:
        largest = max((2 * max(u.largest_trained, u.largest_frozen) for u in layers), default=0)
        whole = sum(u.count * _gather_bytes(setup, regime, u) for u in units)
        live = min(whole, max(2 * buckets.max_live_elements, block, head) + largest)
        return live + copies, live, live + copies
    kept = _kept_for_reuse(setup, regime, layers, head)
    window = max(block, kept) + copies
    return window, head + kept, window


def _gather_bytes(setup: TrainingSetup, regime: Regime, unit: Unit) -> int:
    return unit.held_bytes - scale_bytes(setup, regime, unit)


def _reuse_elements(setup: TrainingSetup) -> int:
    """stage3_max_reuse_distance: as the JSON says, or DeepSpeed's default."""
    stated = config_of(setup).get("zero_optimization", {}).get("stage3_max_reuse_distance", MAX_REUSE_ELEMENTS)
    return int(stated) if isinstance(stated, int | float) else MAX_REUSE_ELEMENTS


def _kept_for_reuse(setup: TrainingSetup, regime: Regime, layers: Sequence[Unit], head: int) -> int:
    """Bytes of the last layers, whose next use is nearer than max_reuse elements (__params_to_release).

    Between a layer's forward and its next use lie every later layer (forward, recomputation and backward, or
    forward and backward without checkpointing) and the head twice.
    """
    passes = 3 if setup.gradient_checkpointing is not False else 2
    limit = 2 * _reuse_elements(setup)
    distance, kept = 2 * head, 0
    for unit in reversed(layers):
        size = _gather_bytes(setup, regime, unit)
        for _ in range(unit.count):
            if distance >= limit:
                return kept
            kept += size
            distance += passes * size
    return kept
