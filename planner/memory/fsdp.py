"""Fully sharded data parallelism: FSDP1 with flat parameters and FSDP2 (fully_shard), as accelerate sets them up.

Source: torch/distributed/fsdp/_runtime_utils.py and _flat_param.py, torch/distributed/fsdp/_fully_shard, accelerate
1.11 and 1.15 (accelerator.py prepare_model, utils/fsdp_utils.py). Layers are units; embedding, final norm and head
are the root unit, gathered from the start of forward to the end of backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planner.errors import UnsupportedError
from planner.memory.fsdp2 import REDUCES_IN_FP32, Groups, groups_of
from planner.memory.habits import OWN_MODELING
from planner.memory.layout import Layout, Unit
from planner.memory.optimizer import OptimizerCost
from planner.memory.regime import OWN_LOOPS, Regime, checkpoints_within_unit, version_of
from planner.memory.shares import read_onto_gpu, scale_bytes, share
from planner.training import DTYPE_BYTES, TrainingSetup

# Adapters are wrapped apart from frozen weights by peft's fsdp_auto_wrap_policy, which transformers' Trainer installs.
# litgpt wraps whole blocks: one flat parameter of frozen and trained weights has gradients for all of them (PyTorch's
# FSDP notes on use_orig_params and frozen parameters).
MIXES_FROZEN = OWN_MODELING
# Its loop reduces in every round of accumulation (templates/embedded/train.py), so whole gradients are never held.
REDUCES_EVERY_ROUND = frozenset({"embedded"})


def lay_out_fsdp(
    setup: TrainingSetup, regime: Regime, units: Sequence[Unit], cost: OptimizerCost, ranks: int
) -> Layout:
    """Bytes on the worst rank under FSDP1 or FSDP2.

    Raises UnsupportedError for an offload other than of everything.
    """
    offloaded = _offloads(setup)
    held, scales = _held(setup, regime, units)
    shards = share(held, ranks)
    parts = 1 if replicates_adapters(setup, regime) else ranks
    root, layer = group_bytes(setup, regime, units)
    staging = share(layer, ranks) if offloaded else 0
    forward, backward = _units_in_flight(setup, regime)
    gradients = _Gradients(setup, regime, units, parts)
    groups = None
    if setup.parallelism == "fsdp2":
        groups = groups_of(setup, units, {u.name: _unsharded(setup, regime, u) for u in units}, regime, parts)
    states = cost.state_bytes + cost.master_bytes
    load = scales + (0 if offloaded else shards) + max(layer, root)
    if read_onto_gpu(setup, regime):
        load = max(load, held + scales)
    layout = Layout(
        weights=scales + (0 if offloaded else shards),
        gradients=gradients.by_unit(),
        gradients_carried=gradients.carried(),
        gradients_at_step=0 if offloaded else gradients.sharded,
        optimizer=0 if offloaded else share(states, parts),
        load=load,
        gathered_forward=root + forward * layer + staging,
        gathered_loss=root,
        gathered_backward=root + backward * layer + staging,
        reducing=gradients.reducing(),
        end_of_layer=gradients.end_of_layer(),
        end_of_backward=gradients.end(),
        step_temporaries=0 if offloaded else share(cost.step_temporary_bytes, parts),
        notes=gradients.notes(),
    )
    return layout if groups is None else _in_groups(layout, groups, staging, gradients)


def _in_groups(layout: Layout, groups: Groups, staging: int, gradients: _Gradients) -> Layout:
    """FSDP2's own moments; what is offloaded is staged beside them."""
    by_unit = dict(layout.gradients)
    if groups.apart and "head" in by_unit and by_unit["head"]:
        by_unit["head"] = gradients.shard_of("head")  # reduced before the layers' backward
    held = by_unit.get("embedding", 0) + (0 if groups.apart else by_unit.get("head", 0))
    own_loop = gradients.setup.engine in OWN_LOOPS
    loss = groups.root.whole if own_loop and not groups.apart else groups.loss  # computed after the root's forward
    return replace(
        layout,
        gradients=by_unit,
        gathered_start=groups.start + staging,
        gathered_forward=groups.forward + staging,
        gathered_loss=loss,
        gathered_loss_backward=groups.loss_backward,
        gathered_head=groups.head,
        tail_reduced=groups.tail_reduced,
        gathered_backward=groups.backward + staging,
        gathered_backward_last=groups.backward_last + staging,
        reducing=groups.layer.reduced,
        reducing_first=groups.reducing_first,
        end_of_backward=groups.end(held) - groups.layer.reduced,
    )


def group_bytes(setup: TrainingSetup, regime: Regime, units: Sequence[Unit]) -> tuple[int, int]:
    """Bytes of the gathered root unit and of the largest gathered layer."""
    root = sum(u.count * _unsharded(setup, regime, u) for u in units if u.is_root)
    return root, max((_unsharded(setup, regime, u) for u in units if not u.is_root), default=0)


def _offloads(setup: TrainingSetup) -> bool:
    if setup.offload in ("none", "all", "params"):  # CPUOffload moves shards, gradients and the step together
        return setup.offload != "none"
    raise UnsupportedError(
        f"offload {setup.offload!r} is DeepSpeed's; parallelism {setup.parallelism} offloads parameters and "
        "optimizer together: choose offload all"
    )


def replicates_adapters(setup: TrainingSetup, regime: Regime) -> bool:
    """Fused LoRA functions on quantized weights read whole adapters, which FSDP is told to ignore; their gradients are
    averaged one by one (fms-acceleration, fms_acceleration_foak/utils.py lora_adapters_switch_ddp_from_fsdp).
    """
    return setup.parallelism == "fsdp" and setup.is_adapter and setup.unsloth and regime.quantized != "dense"


def _held(setup: TrainingSetup, regime: Regime, units: Sequence[Unit]) -> tuple[int, int]:
    """Bytes that are sharded, and those that are not: quantization scales, adapters of fused functions.

    accelerate 1.11 makes the whole FSDP2 model fp32 under mixed precision, frozen weights included.
    """
    held = scales = 0
    for unit in units:
        state = scale_bytes(setup, regime, unit)
        frozen = unit.frozen_bytes - state
        if regime.upcast_frozen_on_sharding and setup.quantization_bit is None:
            frozen = max(frozen, 4 * unit.frozen)
        trained = unit.trained * unit.trained_bytes_each
        if replicates_adapters(setup, regime):
            state, trained = state + trained, 0
        held += unit.count * (frozen + trained)
        scales += unit.count * state
    return held, scales


def _unsharded(setup: TrainingSetup, regime: Regime, unit: Unit) -> int:
    """Bytes of one gathered unit: packed weights as they are, others in the compute dtype."""
    frozen = unit.frozen_bytes - scale_bytes(setup, regime, unit)
    compute = DTYPE_BYTES[regime.compute]
    return min(frozen, unit.frozen * compute) + unit.trained * min(compute, unit.trained_bytes_each)


def _units_in_flight(setup: TrainingSetup, regime: Regime) -> tuple[int, int]:
    """Gathered layers alive at once in forward and in backward.

    FSDP1 frees a layer before it allocates the next one, in the order of the host program, which is the order
    max_memory_allocated sees. Its backward prefetch (BACKWARD_PRE) gathers one layer ahead, except under reentrant
    checkpointing around the unit: outputs of the no-grad forward carry no pre-backward hook, so nothing is marked for
    prefetch (both seen in runs of FSDP1 on the CPU). Where adapters are units of their own, these are prefetched
    first, and the next layer while the last of them runs backward.
    FSDP2 has moments of its own (fsdp2.py).
    """
    around = regime.reentrant and setup.gradient_checkpointing is not False and not checkpoints_within_unit(setup)
    return 1, 1 if around else 2


def _syncs_each_batch(setup: TrainingSetup) -> bool:
    """Before 1.11, accelerate's no_sync did nothing under FSDP2, whose modules have no method of that name."""
    return setup.engine not in OWN_LOOPS and version_of(setup, "accelerate") < (1, 11)


class _Gradients:
    """Gradients of one rank: unsharded per unit while a unit is in backward, sharded afterwards."""

    def __init__(self, setup: TrainingSetup, regime: Regime, units: Sequence[Unit], ranks: int) -> None:
        self.setup, self.units, self.ranks = setup, units, ranks
        self.fsdp2 = setup.parallelism == "fsdp2"
        self.offloaded = setup.offload != "none"
        self.each = DTYPE_BYTES[regime.gradient]
        self.compute = min(self.each, DTYPE_BYTES[regime.compute])
        self.reduce = 4 if setup.engine in REDUCES_IN_FP32 else self.compute
        self.accumulates = setup.gradient_accumulation_steps > 1
        self.syncs = setup.engine in REDUCES_EVERY_ROUND or (self.fsdp2 and _syncs_each_batch(setup))
        self.mixes = setup.engine in MIXES_FROZEN and setup.is_adapter and not self.fsdp2
        self.elements = sum(u.count * self._with_gradients(u) for u in units)
        self.sharded = share(self.elements * self.each, ranks)
        self.layer = max((self._with_gradients(u) for u in units if not u.is_root), default=0)
        self.root = sum(u.count * self._with_gradients(u) for u in units if u.is_root)

    def _with_gradients(self, unit: Unit) -> int:
        """Elements of one unit that get a gradient."""
        return unit.trained + (unit.frozen if self.mixes and unit.trained else 0)

    def by_unit(self) -> dict[str, int]:
        """What one unit leaves behind: its shard; the root's stay whole until the end of backward."""
        if self.accumulates:
            return {u.name: 0 for u in self.units}
        shard = 0 if self.offloaded else self.each
        sizes = {}
        for unit in self.units:
            elements = self._with_gradients(unit)
            sizes[unit.name] = elements * self.compute if unit.is_root else share(elements * shard, self.ranks)
        return sizes

    def shard_of(self, name: str) -> int:
        """The shard that a unit's gradients become."""
        each = 0 if self.offloaded else self.each
        return sum(share(u.count * u.trained * each, self.ranks) for u in self.units if u.name == name)

    def carried(self) -> int:
        """Accumulation runs under no_sync, which leaves the gradients of the whole model unsharded; else their shards.

        transformers' Trainer enters accelerate's no_sync for every micro batch but the last (since 4.46), which knows
        FSDP2 since 1.11; FSDP2 accumulates in the reduce dtype, FSDP1 in the compute dtype.
        """
        if not self.accumulates:
            return 0
        if self.syncs:
            return 0 if self.offloaded else self.sharded
        return self.elements * (self.reduce if self.fsdp2 else self.compute)

    def reducing(self) -> int:
        """What a layer's gradients are reduced through, with the new shard.

        FSDP1 with litgpt's units: the flat gradient that those of the unit are joined into.
        """
        return 0 if self._waits() else self._flat()

    def end_of_layer(self) -> int:
        """FSDP1: a unit's gradients wait for each other (the backward of torch.split), are joined into a flat one and
        reduced; max_memory_allocated no longer counts that one when the next layer begins.
        """
        return self.layer * self.compute + self._flat() if self._waits() else 0

    def _waits(self) -> bool:
        return not self.fsdp2 and not self.mixes

    def _flat(self) -> int:
        return self.layer * self.reduce + share(self.layer * (self.reduce + self.each), self.ranks)

    def end(self) -> int:
        """The same for the root, when the embedding's gradient has arrived last."""
        shard = share(self.root * (self.reduce + self.each), self.ranks)
        return max(0, self.root * self.reduce + shard - self.reducing())

    def notes(self) -> tuple[str, ...]:
        """What a reader should know."""
        if self.accumulates and self.elements and not self.syncs:
            size = self.carried() / 1e9
            return (f"gradient accumulation under FSDP keeps {size:.1f} GB of unsharded gradients on every GPU",)
        return ()
