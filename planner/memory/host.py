"""Host memory and disk of one node: processes, loading, offloaded states, saving.

Counted is anonymous and pinned memory. Pages of checkpoint files that are only mapped (safetensors) belong to the
page cache: the kernel shares them between ranks and takes them back, so they are mentioned, not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.memory.autotp import is_autotp
from planner.memory.deepspeed import buckets_of
from planner.memory.layout import Unit
from planner.memory.megatron import is_megatron
from planner.memory.optimizer import OptimizerCost
from planner.memory.regime import Regime, version_of
from planner.memory.shares import read_onto_gpu, share, sizes_of
from planner.training import DTYPE_BYTES, FSDP, OPTIMIZER_OFFLOADS, PARAM_OFFLOADS, ZERO, TrainingSetup
from planner.units import GIB, MIB, show_gib

# Private pages of one rank. Importing torch, transformers, peft, datasets and LLaMA-Factory: 0.6 GiB resident (measured
# on a CPU build of torch 2.13); the CUDA context with cuBLAS, cuDNN and NCCL: 1.1 GiB (github.com/pytorch/pytorch
# issue 12873 measures 1.1 GiB for the first kernel).
RANK_BYTES = 1741 * MIB
LIBRARY_BYTES = 3 * GIB // 2  # mapped pages of the CUDA libraries, shared by the ranks of a node
LAUNCHER_BYTES = 800 * MIB  # llamafactory-cli (0.6 GiB, measured) and the torchrun agent stay beside the ranks
WORKER_BYTES = 400 * MIB  # private pages of one data worker after its imports, measured as above
CHECKPOINTS_KEPT = 3  # save_total_limit of the emitted configs; a new one is written before the oldest goes
SHARD_BYTES = 50 * 10**9  # transformers 5 save_pretrained max_shard_size
NVME_BUFFERS = 5 * 100_000_000 * 2  # DeepSpeed offload_param: buffer_count x buffer_size elements of 16 bit, pinned


@dataclass(frozen=True, kw_only=True)
class DiskNeed:
    """Bytes on the disk of one node: the model as it is read, one checkpoint with its optimizer states, the trained
    weights alone, and what is swapped to NVMe. ``stored_here``: the model's files lie there already.
    """

    model_bytes: int
    checkpoint_bytes: int
    weights_bytes: int
    swapped_bytes: int
    stored_here: bool = False

    @property
    def total_bytes(self) -> int:
        """With the checkpoints of the emitted configs and the final model (a merged adapter is a whole one)."""
        final = max(self.weights_bytes, self.model_bytes)
        read = 0 if self.stored_here else self.model_bytes
        return read + (CHECKPOINTS_KEPT + 1) * self.checkpoint_bytes + final + self.swapped_bytes

    @property
    def least_bytes(self) -> int:
        """With one checkpoint kept in place of ``CHECKPOINTS_KEPT``."""
        return self.total_bytes - (CHECKPOINTS_KEPT - 1) * self.checkpoint_bytes


@dataclass(frozen=True, kw_only=True)
class HostNeed:
    """Bytes of one node: at the worst moment, between steps, and on disk."""

    peak_bytes: int
    steady_bytes: int
    disk: DiskNeed
    notes: tuple[str, ...] = ()

    @property
    def disk_bytes(self) -> int:
        """Everything on disk."""
        return self.disk.total_bytes


def host_bytes(
    setup: TrainingSetup,
    regime: Regime,
    units: Sequence[Unit],
    ranks: int,
    gpus_per_node: int,
    *,
    cost: OptimizerCost | None = None,
    hidden: int = 0,
    data_workers: int = 0,
    stored_here: bool = False,
) -> HostNeed:
    """What the first node (which also saves) needs.

    ``units`` as one GPU would hold them, whole where the model itself is cut over ``ranks``.
    ``cost`` for states outside the GPU (paged optimizers), ``hidden`` for
    activations moved to the host, ``data_workers`` processes per rank; ``stored_here``: the model's files lie on the
    disk already. Leaves out: the data set itself.
    """
    node = _Node(setup, regime, units, ranks, min(gpus_per_node, ranks), cost, hidden)
    runtime = LIBRARY_BYTES + LAUNCHER_BYTES + node.here * (RANK_BYTES + data_workers * WORKER_BYTES)
    steady = node.offloaded() + node.paged() + node.activations()
    loading, saving = node.loading(), node.saving()
    return HostNeed(
        peak_bytes=runtime + max(loading, steady + saving),
        steady_bytes=runtime + steady,
        disk=node.disk(stored_here=stored_here),
        notes=node.notes(loading, steady, saving),
    )


def checkpoints_kept(disk_bytes: int, checkpoint_bytes: int, free_bytes: int | None) -> int:
    """How many checkpoints ``free_bytes`` hold of a job that needs ``disk_bytes`` with all of ``CHECKPOINTS_KEPT``.

    At least 1; all where the free disk is not known.
    """
    if free_bytes is None or checkpoint_bytes <= 0 or disk_bytes <= free_bytes:
        return CHECKPOINTS_KEPT
    return max(1, CHECKPOINTS_KEPT - -(-(disk_bytes - free_bytes) // checkpoint_bytes))


def pinned(size_bytes: int) -> int:
    """Pinned memory as PyTorch hands it out: the next power of two (ATen/core/CachingHostAllocator.h)."""
    return 1 << (size_bytes - 1).bit_length() if size_bytes > 0 else 0


class _Node:
    """One node of a setup; ``here`` ranks run on it."""

    def __init__(
        self,
        setup: TrainingSetup,
        regime: Regime,
        units: Sequence[Unit],
        ranks: int,
        here: int,
        cost: OptimizerCost | None,
        hidden: int,
    ) -> None:
        self.setup, self.regime, self.units, self.ranks, self.here = setup, regime, units, ranks, here
        self.cost, self.hidden = cost, hidden
        self.kind = setup.parallelism or "none"
        sizes = sizes_of(units, 4, 4)
        self.trained = sizes.trained_elements
        self.largest = sizes.largest_trained
        frozen = sum(unit.count * unit.frozen for unit in units)
        base = frozen + (0 if setup.is_adapter else self.trained)
        self.stored = base * DTYPE_BYTES[regime.frozen]  # the checkpoint as it is read
        self.upcast = 0 if setup.is_adapter else self.trained * max(0, 4 - DTYPE_BYTES[regime.frozen])
        self.part = share(self.trained, ranks)
        self.held = sizes.held

    # -- loading --------------------------------------------------------------------------------------

    def loading(self) -> int:
        """Anonymous memory while the model is read."""
        if self.regime.quantized != "dense":
            return self._loading_quantized()
        if is_megatron(self.setup):  # every rank converts its own part of the checkpoint
            return self.here * share(self.stored, self.setup.tensor_parallel * self.setup.pipeline_parallel)
        if is_autotp(self.setup):  # low_cpu_mem_usage false: cut on the host, where every rank has read it whole
            return self.here * (self.stored + (0 if self.setup.param_dtype == "bf16" else self.upcast))
        if self.kind in FSDP:
            copies = self.here if self._fills_every_rank() else 1
            return copies * (self.stored + (self.upcast if self.setup.engine == "llamafactory" else 0))
        if self.kind == "zero3":
            return (
                self.here * self.stored if self._converts_whole() else self._largest_file_tensor() + self._conversion()
            )
        if self.setup.engine in ("llamafactory", "embedded"):
            return self._largest_file_tensor()  # device_map: each mapped tensor goes to the GPU at once
        return self.here * self.stored

    def _loading_quantized(self) -> int:
        """Tensor by tensor through the GPU; transformers 4 parked sharded models on the host, FSDP's on rank 0's."""
        if self.kind not in FSDP | {"zero3"} or read_onto_gpu(self.setup, self.regime):
            return self._largest_file_tensor()
        return self.held * (1 if self.kind in FSDP else self.here)

    def _converts_whole(self) -> bool:
        """Under ZeRO-3 every rank stacked the experts of the whole checkpoint on its host before any were sharded.

        integrations/deepspeed.py _apply_weight_conversions_to_state_dict, seen in 5.6.0 and 5.22.0; 5.23.0 reads the
        values on rank 0 alone and yields one conversion at a time.
        """
        fused = self.regime.stacked_experts and any(unit.expert_elements for unit in self.units)
        return fused and version_of(self.setup, "transformers") < (5, 23)

    def _conversion(self) -> int:
        """Gate and up of one layer's experts on rank 0, stacked and then joined: two thirds of the experts, twice."""
        if not self.regime.stacked_experts:
            return 0
        experts = max((unit.expert_elements for unit in self.units), default=0)
        return 4 * experts * DTYPE_BYTES[self.regime.frozen] // 3

    def _fills_every_rank(self) -> bool:
        """Ranks that wait for rank 0's weights write zeros into a whole model of their own on the host.

        modeling_utils.py _move_missing_keys_from_meta_to_device since pull request 45050 (seen in 5.6.0, where it
        used to leave the memory untouched), no longer in 5.23.0. The embedded engine reads the model on every rank,
        and fully_shard moves it layer by layer.
        """
        return self.setup.engine == "embedded" or (5, 5) <= version_of(self.setup, "transformers") < (5, 23)

    def _largest_file_tensor(self) -> int:
        widest = max((max(u.largest_trained, u.largest_frozen) for u in self.units), default=0)
        return self.here * DTYPE_BYTES[self.regime.frozen] * widest

    def _loading_note(self) -> str:
        size = show_gib(self.stored)
        if self.kind in FSDP and self.regime.quantized == "dense" and self._fills_every_rank():
            zeros = "transformers writes zeros on the ranks that wait for rank 0's weights"
            why = "it is read by every rank" if self.setup.engine == "embedded" else zeros
            return f"every rank fills a whole copy of the model on the host before sharding ({size} each): {why}"
        if is_autotp(self.setup):
            return f"every rank reads the whole model on the host ({size} each) before DeepSpeed cuts it"
        if self.kind == "zero3" and self.regime.quantized == "dense" and self._converts_whole():
            return (
                f"every rank stacks all experts on the host before sharding ({size} each): transformers reads them so "
                "before 5.23"
            )
        return f"the checkpoint ({size}) is mapped into the page cache while it is read; that is not counted"

    # -- training -------------------------------------------------------------------------------------

    def offloaded(self) -> int:
        """Weights, gradients and states that offloading keeps on this node."""
        if self.setup.offload == "none":
            return 0
        if self.kind in FSDP:
            return self.here * self._fsdp_offload()
        if self.kind not in ZERO:
            return 0
        return self.here * (self._zero_optimizer() + self._zero_params())

    def _fsdp_offload(self) -> int:
        """Pinned shards and gradients, states beside them; one pinned block per unit."""
        shards = sum(unit.count * pinned(share(unit.held_bytes, self.ranks)) for unit in self.units)
        each = DTYPE_BYTES[self.regime.gradient]
        gradients = sum(unit.count * pinned(share(unit.trained * each, self.ranks)) for unit in self.units)
        return shards + gradients + self._states()

    def _states(self) -> int:
        return share(self._states_of_all(), self.ranks)

    def _states_of_all(self) -> int:
        """Optimizer states of every trained element on the GPU; Adam's two moments where no cost is given."""
        return self.cost.state_bytes if self.cost else 2 * DTYPE_BYTES[self.regime.state] * self.trained

    def _saved_states(self) -> int:
        """States as a checkpoint holds them, fp32 master weights and those in host memory among them."""
        if self.cost is None:
            return self._states_of_all() + (4 * self.trained if self.regime.master else 0)
        return self.cost.state_bytes + self.cost.master_bytes + self.cost.host_state_bytes

    def _zero_optimizer(self) -> int:
        """fp32 master 4, gradient 4, Adam's moments 8, 16-bit staging 2 bytes per element of this rank's part.

        Stages 1 and 2 pin master, gradient and staging (stage_1_and_2.py); stage 3 pins the gradient of each
        sub-group and the flat gradient partition (stage3.py). On NVMe only the swap buffers of one sub-group remain.
        """
        if self.setup.offload not in OPTIMIZER_OFFLOADS:
            return 0
        buckets = buckets_of(self.setup, self.hidden)
        block = pinned if buckets.pin_memory else int
        if self.setup.offload == "nvme":
            group = min(self.part, buckets.sub_group_elements)
            return block(2 * self.part) + 4 * block(4 * group)
        if self.kind == "zero3":
            groups, rest = divmod(self.part, max(1, buckets.sub_group_elements))
            gradients = groups * block(4 * buckets.sub_group_elements) + block(4 * rest)
            return 12 * self.part + gradients + block(2 * self.part)
        accumulated = block(2 * self.part) if self.setup.gradient_accumulation_steps > 1 else 0
        staged = 2 * block(4 * self.part) + block(2 * self.part) + block(2 * self.largest)
        return 8 * self.part + staged + accumulated

    def _zero_params(self) -> int:
        """16-bit shards of all weights, pinned; on NVMe the buffer pool and up to max_in_cpu (1e9) elements."""
        if self.setup.offload not in PARAM_OFFLOADS:
            return 0
        shards = share(self.held, self.ranks)
        if self.setup.offload == "nvme":
            return pinned(NVME_BUFFERS) + min(shards, 2 * 10**9)
        return pinned(shards)

    def paged(self) -> int:
        """Optimizer states in unified or ordinary host memory, every rank's own part."""
        if self.cost is None:
            return 0
        return self.here * (
            self.cost.host_state_bytes
            if self.kind in ("none", "ddp")
            else share(self.cost.host_state_bytes, self.ranks)
        )

    def activations(self) -> int:
        """Checkpointed layer inputs that are kept on the host, pinned one by one."""
        setup = self.setup
        moved = setup.activation_offload or (setup.unsloth and setup.engine == "llamafactory")
        if not moved or not self.hidden:
            return 0
        layers = sum(unit.count for unit in self.units if not unit.is_root)
        tokens = setup.micro_batch_size * setup.sequences_per_sample * setup.seq_len
        return self.here * layers * pinned(tokens * self.hidden * DTYPE_BYTES[self.regime.stream])

    # -- saving ---------------------------------------------------------------------------------------

    def saving(self) -> int:
        """What rank 0 holds while it writes a checkpoint.

        FSDP with FULL_STATE_DICT gathers weights, then states, on rank 0's host (accelerate
        FullStateDictConfig(offload_to_cpu, rank0_only)); ZeRO-3 gathers 16-bit weights there
        (stage3_gather_16bit_weights_on_model_save). Otherwise a file's tensors become bytes before they are written.
        """
        weights = self._trained_weights()
        if self.kind in FSDP:
            whole = self.held if self.setup.is_adapter else weights
            return max(whole, self._states_of_all())
        if (self.kind == "zero3" or is_autotp(self.setup)) and not self.setup.is_adapter:
            return 2 * self.trained
        return min(weights, SHARD_BYTES)

    def disk(self, *, stored_here: bool) -> DiskNeed:
        """Model files, checkpoints with optimizer states, the final (or merged) model, swapped states."""
        states = self._saved_states()
        if self.kind in ZERO:  # each rank writes its part of the states on its own node
            states = states * self.here // self.ranks
        swapped = 0
        if self.setup.offload == "nvme":  # fp32 master, both moments and the gradient, and the 16-bit weights
            swapped = self.here * (16 * self.part + share(self.held, self.ranks))
        return DiskNeed(
            model_bytes=self.stored,
            checkpoint_bytes=self._trained_weights() + states,
            weights_bytes=self._trained_weights(),
            swapped_bytes=swapped,
            stored_here=stored_here,
        )

    def _trained_weights(self) -> int:
        return sum(unit.count * unit.trained * unit.trained_bytes_each for unit in self.units)

    def notes(self, loading: int, steady: int, saving: int) -> tuple[str, ...]:
        """What a reader should know of the figures."""
        said = [self._loading_note()]
        if steady:
            said.append(f"host memory holds {show_gib(steady)} of offloaded data; pinned blocks are powers of two")
        if saving > max(loading, GIB):
            said.append(f"saving a checkpoint takes {show_gib(saving)} on the first node")
        return tuple(said)
