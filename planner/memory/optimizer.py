"""The optimizer's memory: states that stay, temporaries of the step, and what lies on the host.

Names are transformers' ``optim`` words (transformers/trainer_optimizer.py, 5.6 and 5.23); ``OPTIMIZERS`` says what
each of them keeps and allocates, read in the source of the package that implements it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from planner.errors import UnsupportedError, unknown_choice
from planner.memory.regime import OWN_LOOPS, Regime
from planner.training import DTYPE_BYTES, TrainingSetup

Kind = Literal["linear", "embedding", "head", "vector", "adapter", "experts"]
Store = Literal["param", "fp32", "int8", "int4", "factored"]
Projection = Literal["galore", "apollo"]

BLOCK = 256  # elements that share one fp32 scale (bitsandbytes blockwise, torchao block_size by transformers)
SMALLEST_QUANTIZED = 4096  # bitsandbytes min_8bit_size; torchao follows it
SMALLEST_PAGED = 100_000  # bitsandbytes Optimizer8bit.get_state_buffer: smaller buffers are ordinary tensors
SCALAR_BYTES = 512  # the caching allocator's smallest block: a step counter on the GPU
CODEBOOK_BYTES = 1024  # torchao: 256 fp32 values beside each quantized state


@dataclass(frozen=True, slots=True)
class Tensor2D:
    """``copies`` trained tensors of ``stack`` matrices of (rows, cols) each; a vector is (n, 1) of kind "vector".

    ``kind``: "linear" is the weight of an nn.Linear inside a block, "experts" a stacked 3-D parameter.
    """

    rows: int
    cols: int
    copies: int = 1
    kind: Kind = "linear"
    stack: int = 1

    @property
    def elements(self) -> int:
        """Elements of one tensor."""
        return self.rows * self.cols * self.stack


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerCost:
    """Bytes for all trained tensors, unsharded; sharding divides them.

    ``state_bytes`` on the GPU, ``master_bytes`` fp32 master weights beside 16-bit ones, ``step_temporary_bytes`` what
    the step allocates at its worst moment, ``host_state_bytes`` states outside the caching allocator;
    ``managed_bytes`` of these are unified memory that the driver keeps on the GPU while there is room.
    ``consumes_gradients``: each gradient is applied and freed as soon as it exists.
    """

    state_bytes: int
    step_temporary_bytes: int
    host_state_bytes: int = 0
    master_bytes: int = 0
    managed_bytes: int = 0
    consumes_gradients: bool = False


def together(one: OptimizerCost, other: OptimizerCost) -> OptimizerCost:
    """The cost of two sets of tensors stepped by one optimizer."""
    return OptimizerCost(
        state_bytes=one.state_bytes + other.state_bytes,
        step_temporary_bytes=one.step_temporary_bytes + other.step_temporary_bytes,
        host_state_bytes=one.host_state_bytes + other.host_state_bytes,
        master_bytes=one.master_bytes + other.master_bytes,
        managed_bytes=one.managed_bytes + other.managed_bytes,
        consumes_gradients=one.consumes_gradients,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What one optimizer keeps per trained tensor and allocates per step.

    ``moments`` state tensors stored as ``store``. ``whole`` copies of all decayed tensors at once (foreach
    implementations), ``largest`` copies of the largest tensor, both in the parameter's dtype; ``largest_fp32``
    the same in fp32, ``upcast`` those that exist only because the parameter is 16-bit. ``loops``: written as a
    Python loop, whose local names keep the update of the tensor before alive.
    """

    moments: int = 2
    store: Store = "param"
    whole: int = 0
    largest: int = 0
    largest_fp32: int = 0
    upcast: int = 0
    loops: bool = False
    compensation: bool = False  # one more state for 16-bit parameters (Kahan summation)
    paged: bool = False
    on_host: bool = False
    counters: bool = False
    consumes: bool = False
    torchao: bool = False
    projection: Projection | None = None
    base: str = ""


# torch/optim/adam.py: fused updates in place with its step counters on the GPU; foreach (the default on CUDA) holds
# exp_avg_sq_sqrt for one parameter group at once, and decayed matrices are one group; the loop two of one tensor.
_ADAM_FUSED = Rule(counters=True)
_ADAM_FOREACH = Rule(whole=1)
# bitsandbytes/optim/optimizer.py: the kernels update in place.
_BNB32, _BNB8 = Rule(store="fp32"), Rule(store="int8")
_LION32, _LION8 = Rule(moments=1, store="fp32"), Rule(moments=1, store="int8")
_MIX32, _MIX8 = Rule(moments=3, store="fp32"), Rule(moments=3, store="int8")  # ademamix: state1 holds two averages
# transformers/optimization.py Adafactor, no first moment: fp32 copies of gradient and weight, the squared gradient
# (or the old update) and the new update exist together.
_ADAFACTOR = Rule(moments=1, store="factored", largest_fp32=2, upcast=2, loops=True)
# galore_torch/adamw.py and apollo_torch/apollo.py loop over tensors: the denominator and the normalised gradient.
_GALORE = Rule(largest=2, loops=True, projection="galore")
_APOLLO = Rule(largest=2, loops=True, projection="apollo")
_GALORE8 = Rule(store="int8", largest=1, projection="galore")
_GALORE_FACTOR = Rule(moments=1, store="factored", largest_fp32=2, upcast=2, loops=True, projection="galore")


def _layerwise(rule: Rule) -> Rule:
    return Rule(**{name: getattr(rule, name) for name in Rule.__slots__} | {"consumes": True})


OPTIMIZERS: dict[str, Rule] = {
    "adamw_torch": _ADAM_FOREACH,
    "adamw_torch_fused": _ADAM_FUSED,
    "adamw_apex_fused": Rule(store="fp32"),
    "adamw_anyprecision": Rule(store="fp32", largest_fp32=2, loops=True),  # moments default to float32 in transformers
    "adamw_torch_4bit": Rule(store="int4", largest_fp32=2, torchao=True),  # fp32 averages feed update and quantiser
    # the one published run (torchtune, A100) leaves room for a third, where the step compiled on a CPU shows two
    "adamw_torch_8bit": Rule(store="int8", largest_fp32=3, torchao=True),
    "adamw_bnb_8bit": _BNB8,
    "adamw_8bit": _BNB8,
    "paged_adamw_32bit": Rule(store="fp32", paged=True),
    "paged_adamw_8bit": Rule(store="int8", paged=True),
    "ademamix": _MIX32,
    "ademamix_8bit": _MIX8,
    "paged_ademamix_32bit": Rule(moments=3, store="fp32", paged=True),
    "paged_ademamix_8bit": Rule(moments=3, store="int8", paged=True),
    "lion_32bit": _LION32,
    "lion_8bit": _LION8,
    "paged_lion_32bit": Rule(moments=1, store="fp32", paged=True),
    "paged_lion_8bit": Rule(moments=1, store="int8", paged=True),
    "rmsprop_bnb": _LION32,
    "rmsprop_bnb_32bit": _LION32,
    "rmsprop_bnb_8bit": _LION8,
    "adafactor": _ADAFACTOR,
    # weight_decay is 0 by default; any other makes SGD and RMSprop add the weights into a copy of the gradients
    "sgd": Rule(moments=0),
    "adagrad": Rule(moments=1, whole=2),  # square root of the sums, and the scaled gradients
    "rmsprop": Rule(moments=1, whole=1),  # square root of the average
    "schedule_free_adamw": Rule(whole=1),  # z and exp_avg_sq; the denominator
    "schedule_free_radam": Rule(whole=1),
    "schedule_free_sgd": Rule(moments=1),
    "stable_adamw": Rule(whole=1, compensation=True),  # optimi: Kahan compensation for 16-bit weights
    "grokadamw": Rule(
        moments=3, on_host=True, largest=5
    ),  # keeps its states on the CPU, one tensor at a time on the GPU
    "lomo": Rule(moments=0, consumes=True),
    "adalomo": Rule(moments=1, store="factored", largest_fp32=2, upcast=2, consumes=True),  # steps one by one
    "galore_adamw": _GALORE,
    "galore_adamw_8bit": _GALORE8,
    "galore_adafactor": _GALORE_FACTOR,
    "galore_adamw_layerwise": _layerwise(_GALORE),
    "galore_adamw_8bit_layerwise": _layerwise(_GALORE8),
    "galore_adafactor_layerwise": _layerwise(_GALORE_FACTOR),
    "apollo_adamw": _APOLLO,
    "apollo_adamw_layerwise": _layerwise(_APOLLO),
}
_ELSEWHERE = {
    "adamw_torch_xla": "runs on XLA devices (TPU) only; on a GPU choose adamw_torch_fused",
    "adamw_torch_npu_fused": "needs Ascend's torch_npu; on a GPU choose adamw_torch_fused",
}
# LLaMA-Factory train/trainer_utils.py: the optim word chooses the base under use_galore and use_apollo.
_GALORE_BY_OPTIM = {
    "adamw_torch": _GALORE,
    "adamw_bnb_8bit": _GALORE8,
    "adamw_8bit": _GALORE8,
    "paged_adamw_8bit": _GALORE8,
    "adafactor": _GALORE_FACTOR,
}


def rule_for(optim: str, method: str = "full") -> Rule:
    """The rule of an ``optim`` word under a training method.

    Raises InputError for an unknown word, UnsupportedError where it does not run on a GPU or with the method.
    """
    if optim in _ELSEWHERE:
        raise UnsupportedError(f"optim {optim!r} {_ELSEWHERE[optim]}")
    rule = OPTIMIZERS.get(optim)
    if rule is None:
        raise unknown_choice(optim, "optim", OPTIMIZERS)
    if method == "galore" and rule.projection is None:
        # adamw_torch_fused is the contract's default word; the emitter writes adamw_torch for these methods.
        return _GALORE_BY_OPTIM.get(optim, _GALORE)
    if method == "apollo" and rule.projection is None:
        return _APOLLO
    return rule


def optimizer_cost(setup: TrainingSetup, regime: Regime, tensors: Sequence[Tensor2D]) -> OptimizerCost:
    """What the optimizer holds and allocates for ``tensors``, as if one GPU held them all.

    ``tensors`` are the trained tensors, grouped by shape; for BAdam those of the block being trained. Flattened
    where the engine flattens them (DeepSpeed one fp32 vector, FSDP1 one-dimensional shards). Cached.
    Leaves out: allocator rounding, the workspace of GaLore's SVD, bitsandbytes' shared code books (2 KiB).
    """
    rank = setup.apollo_rank if setup.method == "apollo" else setup.galore_rank
    return _cost(
        setup.optim,
        setup.method,
        rank,
        setup.parallelism or "none",
        setup.optimizer_in_backward,
        DTYPE_BYTES[regime.state],
        regime.master,
        setup.engine not in OWN_LOOPS,
        tensors if isinstance(tensors, tuple) else tuple(tensors),
    )


@lru_cache(maxsize=4096)
def _cost(
    optim: str,
    method: str,
    rank: int,
    parallelism: str,
    in_backward: bool,
    param_bytes: int,
    master: bool,
    by_trainer: bool,
    tensors: tuple[Tensor2D, ...],
) -> OptimizerCost:
    rule = rule_for(optim, method)
    total = sum(t.elements * t.copies for t in tensors)
    keeps_master = master or method == "badam"
    if keeps_master:
        param_bytes = 4
    laid = _as_stepped(tensors, parallelism, total)
    gpu = host = 0
    for tensor in laid:
        on_gpu, on_host = _states(rule, tensor, rank, param_bytes, by_trainer=by_trainer)
        gpu += tensor.copies * on_gpu
        host += tensor.copies * on_host
    one_by_one = in_backward or rule.consumes
    temporary = _temporaries(rule, laid, rank, param_bytes, one_by_one)
    if method == "badam" and not master:
        temporary += 2 * total  # badam/block_optim.py _grad_to_hp: an fp32 gradient takes the place of the 16-bit one
    return OptimizerCost(
        state_bytes=gpu,
        step_temporary_bytes=temporary,
        host_state_bytes=host,
        master_bytes=4 * total if keeps_master else 0,
        managed_bytes=host if rule.paged else 0,
        consumes_gradients=one_by_one,
    )


def _as_stepped(tensors: tuple[Tensor2D, ...], parallelism: str, total: int) -> tuple[Tensor2D, ...]:
    """The tensors as the optimizer sees them: one flat vector under DeepSpeed, one-dimensional shards under FSDP1."""
    if not total:
        return ()
    if parallelism.startswith("zero"):
        return (Tensor2D(total, 1, kind="adapter"),)
    if parallelism == "fsdp":
        return tuple(Tensor2D(t.elements, 1, t.copies, t.kind) for t in tensors)
    return tensors


def _states(
    rule: Rule, tensor: Tensor2D, rank: int, param_bytes: int, *, by_trainer: bool
) -> tuple[int, int]:  # fmt: skip
    """Bytes on the GPU and outside the allocator for one tensor."""
    projected = rule.projection is not None and tensor.kind == "linear"
    elements, projector = _low_rank(tensor, rank) if projected else (tensor.elements, 0)
    moments = rule.moments + (1 if rule.compensation and param_bytes == 2 else 0)
    counter = SCALAR_BYTES if rule.counters else 0
    if rule.on_host:
        return 0, moments * elements * param_bytes
    if rule.store == "factored":
        rows, cols = (tensor.rows, tensor.cols) if not projected else (min(tensor.rows, tensor.cols, rank), tensor.cols)
        flat = tensor.kind == "vector" or tensor.cols == 1
        return 4 * (elements if flat else (rows + cols) * tensor.stack) + projector * param_bytes, 0
    kept = by_trainer and tensor.kind == "embedding" and not rule.torchao
    body, scales = _stored(rule, elements, param_bytes, kept_32bit=kept)
    if rule.paged and elements >= SMALLEST_PAGED:
        return moments * scales + counter, moments * body
    return moments * (body + scales) + projector * param_bytes + counter, 0


def _stored(rule: Rule, elements: int, param_bytes: int, *, kept_32bit: bool) -> tuple[int, int]:
    """Bytes of one state tensor and of its scales."""
    if rule.store == "param":
        return elements * param_bytes, 0
    if rule.store == "fp32":
        return elements * 4, 0
    quantized = elements >= SMALLEST_QUANTIZED
    if rule.torchao:
        if not quantized or elements % BLOCK:
            return elements * param_bytes, 0
        codes = elements if rule.store == "int8" else elements // 2
        return codes, 4 * (elements // BLOCK) + CODEBOOK_BYTES
    # transformers' Trainer overrides every nn.Embedding to 32 bits when the optimizer is bitsandbytes' 8-bit one
    if not quantized or kept_32bit:
        return elements * 4, 0
    return elements, 4 * -(-elements // BLOCK)


def _low_rank(tensor: Tensor2D, rank: int) -> tuple[int, int]:
    """Elements of the projected gradient and of its projector (galore_projector.py, proj_type "std").

    A tall gradient is projected from the right, (rows, r) with an (r, cols) projector; a wide one from the left.
    APOLLO's random projector has the same shapes and is kept between updates.
    """
    r = min(rank, tensor.rows, tensor.cols)
    if tensor.rows >= tensor.cols:
        return tensor.rows * r, r * tensor.cols
    return r * tensor.cols, tensor.rows * r


def _temporaries(rule: Rule, tensors: tuple[Tensor2D, ...], rank: int, param_bytes: int, one_by_one: bool) -> int:
    """Bytes that the step holds at its worst moment beyond weights, gradients and states."""
    copies_fp32 = rule.largest_fp32 + (rule.upcast if param_bytes == 2 else 0)
    worst = 0
    for tensor in tensors:
        if rule.projection is not None and tensor.kind == "linear":
            held = _projected_temporary(rule, tensor, param_bytes)
        else:
            held = tensor.elements * (rule.largest * param_bytes + 4 * copies_fp32)
            held += tensor.elements * rule.whole * param_bytes if one_by_one else 0
        worst = max(worst, held)
    if rule.loops:
        worst += (4 if copies_fp32 else param_bytes) * _before(tensors)
    if rule.whole and not one_by_one:
        decayed = sum(t.elements * t.copies for t in tensors if t.kind != "vector")
        worst = max(worst, rule.whole * param_bytes * decayed)
    return worst


def _before(tensors: tuple[Tensor2D, ...]) -> int:
    """Elements of the tensor stepped before the largest one: a matrix of a block, where there are several tensors."""
    if sum(tensor.copies for tensor in tensors) < 2:
        return 0
    return max((t.elements for t in tensors if t.kind in ("linear", "experts", "adapter")), default=0)


def _projected_temporary(rule: Rule, tensor: Tensor2D, param_bytes: int) -> int:
    """Back-projection and its scaled copy; for GaLore the SVD of the gradient, every 200 steps from the first on.

    torch.linalg.svd reads an fp32 copy (none for fp32 gradients) through a column-major clone and returns both
    factors; the solver's own workspace is not counted.
    """
    elements, narrow = tensor.elements, min(tensor.rows, tensor.cols)
    steady = 2 * elements * param_bytes
    if rule.projection == "apollo":
        return steady
    copy = 4 * elements if param_bytes == 2 else 0
    return max(steady, copy + 4 * elements + 4 * narrow * (tensor.rows + tensor.cols))
