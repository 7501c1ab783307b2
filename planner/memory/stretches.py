"""The layers of a step as stretches of equal treatment, each with the curve of its block under the setup's mode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from planner.memory.curves import BlockCurve, block_curve
from planner.memory.habits import (
    BROADCAST_KEYS,
    NAMES_CACHE,
    OWN_MODELING,
    WITHOUT_SDPA,
    has_dropout,
    makes_cache,
    modeling,
)
from planner.memory.layout import Layout
from planner.memory.ops import Mode
from planner.memory.regime import HAND_WRITTEN, OWN_LOOPS, Regime, Unhashed, bytes_of, version_of
from planner.memory.tape import Moment
from planner.memory.units import Layer, Parts
from planner.model.spec import ModelSpec
from planner.training import FSDP, ZERO, TrainingSetup

# From here on the gated delta rule is known to solve its triangular system; 5.6 is known to invert it in a loop.
SOLVES_DELTA = (5, 23)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Everything the timeline reads, resolved once per setup."""

    setup: TrainingSetup
    spec: ModelSpec
    regime: Regime
    parts: Parts
    layout: Layout
    workspace_bytes: int
    extra_weights: int = 0  # reference and reward models
    in_flight: int = 1  # micro batches whose activations are kept at once (pipeline stages)
    has_flash: bool = True  # the GPUs run flash attention kernels (compute capability 8.0)
    pinned_per_token: int = 0  # see pinned_inputs
    kept_per_layer_token: int = 0  # FSDP1 with frozen layers under reentrant checkpointing


@dataclass(frozen=True, slots=True)
class Stretch:
    """``number`` consecutive layers with the same curve."""

    layer: Layer
    number: int
    curve: BlockCurve
    checkpointed: bool
    leaf: bool = False  # the input needs no gradient


def stretches_of(step: Step) -> tuple[Stretch, ...]:
    """All layers from bottom to top, cut where the treatment changes."""
    setup = step.setup
    key = (
        setup.lora_rank, setup.lora_dropout > 0, setup.method, setup.attention,
        setup.seq_len if step.parts.windowed else 0,
        setup.liger_kernel, setup.unsloth, setup.torch_compile, setup.loss, setup.parallelism, setup.padded,
        setup.gradient_checkpointing, setup.optimizer_in_backward, setup.engine, tuple(setup.versions.items()),
        step.has_flash,
    )  # fmt: skip
    return _found_stretches(step.parts, step.regime, key, Unhashed(step))


@lru_cache(maxsize=4096)
def _found_stretches(
    parts: Parts, regime: Regime, key: tuple[object, ...], carried: Unhashed[Step]
) -> tuple[Stretch, ...]:
    step = carried.value
    found: list[Stretch] = []
    for layer in parts.layers:
        found += _stretches(step, layer, below=sum(stretch.number for stretch in found))
    first = found[0]
    if step.setup.is_adapter and not first.checkpointed and not parts.embedding_trained:
        # a frozen embedding's output needs no gradient, so the first layer keeps less in front of its adapters
        found[:1] = [Stretch(first.layer, 1, _curve_of(step, first.layer, False, leaf=True), False, leaf=True)]
        if first.number > 1:
            found.insert(1, replace(first, number=first.number - 1))
    return tuple(found)


def _stretches(step: Step, layer: Layer, *, below: int) -> list[Stretch]:
    """A run of equal layers with ``below`` others under it; every n-th of all layers is checkpointed, the last of n."""
    setup = step.setup

    def stretch(number: int, *, checkpointed: bool) -> Stretch:
        return Stretch(layer, number, _curve_of(step, layer, checkpointed), checkpointed)

    if layer.kind == "frozen":  # below everything trained there is no graph: forward only, nothing kept
        return [Stretch(layer, layer.count, graphless(step, layer), True)]
    checkpointing = setup.gradient_checkpointing
    if isinstance(checkpointing, bool):
        return [stretch(layer.count, checkpointed=checkpointing)]
    if checkpointing == "selective":
        plain, whole = stretch(layer.count, checkpointed=False), stretch(layer.count, checkpointed=True)
        return [Stretch(layer, layer.count, _selective(plain.curve, whole.curve, layer), False)]
    wrapped = (below + layer.count) // checkpointing - below // checkpointing
    cut = [(layer.count - wrapped, False), (wrapped, True)]
    return [stretch(number, checkpointed=wrap) for number, wrap in cut if number]


def graphless(step: Step, layer: Layer) -> BlockCurve:
    """The layer without a graph, as evaluation and frozen layers below everything trained run it."""
    return replace(_curve_of(step, layer, True), backward=(), weight_gradients=0)


def _curve_of(step: Step, layer: Layer, checkpointed: bool, *, leaf: bool = False) -> BlockCurve:
    mode, spec = block_mode(step, layer), step.spec
    if checkpointed and unchecked_inputs(step.setup, layer, step.regime):
        mode = replace(mode, inputs_held_apart=True)
    kind = modeling(step.setup, spec)
    return _curve(layer, mode, kind, spec.hidden, checkpointed, step.regime.reentrant, leaf)


@lru_cache(maxsize=4096)
def _curve(
    layer: Layer, mode: Mode, model_type: str, hidden: int, checkpointed: bool, reentrant: bool, leaf: bool
) -> BlockCurve:
    return block_curve(
        layer.block, layer.linears, mode, model_type=model_type, hidden=hidden,
        checkpointed=checkpointed, reentrant=reentrant, leaf=leaf,
    )  # fmt: skip


def _selective(plain: BlockCurve, checkpointed: BlockCurve, layer: Layer) -> BlockCurve:
    """torchtitan's per-op policy: attention outputs and every second matmul's output stay, the rest is made again.

    The first matmul of a block is the first that stays (parallelize_llama.py, _get_custom_policy, of December 2024).
    """
    a = layer.block.attention
    outputs = [lin.outputs for lin in layer.linears if not lin.role.startswith("expert_")]
    boundary = plain.output.token
    kept = Moment(0, boundary + 2 * sum(outputs[::2]) + 2 * a.q_width + 4 * a.heads, 0)
    kept = kept if kept.token < plain.kept.token else plain.kept
    return replace(plain, kept=kept, backward=checkpointed.backward)


def block_mode(step: Step, layer: Layer) -> Mode:
    """The mode of one layer's program under this regime."""
    setup, regime = step.setup, step.regime
    adapted = layer.kind == "adapted"
    regime = as_gathered(setup, regime, adapted=adapted)
    return mode_of(
        regime,
        layer.targets if adapted else frozenset(),
        layer.whole,
        layer.kind == "trained",
        setup.lora_rank if adapted else 0,
        adapted and setup.lora_dropout > 0,
        adapted and setup.method == "dora",
        _kernel(setup, step.spec, layer, has_flash=step.has_flash and regime.compute != "fp32"),
        setup.liger_kernel or setup.torch_compile,
        fused_kernels(setup),
        _gradients_stay(setup, layer),
        has_dropout(step.spec) and setup.engine not in OWN_LOOPS - HAND_WRITTEN,  # transformers' modeling files drop
        setup.engine in OWN_MODELING,
        packed_keeps_input(setup),
        setup.torch_compile and not setup.liger_kernel,
        packed_follows_input(setup),
        layer.block.attention.kind in ("linear", "conv") and version_of(setup, "transformers") < SOLVES_DELTA,
        makes_cache(setup),
    )


def _gradients_stay(setup: TrainingSetup, layer: Layer) -> bool:
    """Whether a layer's gradients are still on this GPU when its backward ends.

    FSDP joins or reduces them only then; DeepSpeed takes them away as they come, and so does a step in backward.
    """
    if setup.optimizer_in_backward or (setup.parallelism or "none") in ZERO:
        return False
    return setup.parallelism != "fsdp" or layer.kind == "trained"


def as_gathered(setup: TrainingSetup, regime: Regime, *, adapted: bool) -> Regime:
    """The regime that a module runs in once FSDP has gathered it; under FSDP1 one with adapters runs as it is held."""
    whole = setup.parallelism == "fsdp2" or (setup.parallelism == "fsdp" and not adapted)
    return _as_gathered(regime) if whole and sharding_casts(setup, regime) else regime


def sharding_casts(setup: TrainingSetup, regime: Regime) -> bool:
    """Whether FSDP's mixed precision is on: accelerate's with autocast, torchtitan's own policy without it."""
    sharded = (setup.parallelism or "none") in FSDP
    return sharded and (regime.autocast is not None or setup.engine == "torchtitan")


@lru_cache(maxsize=256)
def _as_gathered(regime: Regime) -> Regime:
    """FSDP's mixed precision gathers a layer in the compute dtype and casts its inputs: inside, nothing is fp32."""
    dtype = regime.compute
    inside = replace(regime, autocast=None, trained=dtype, frozen=dtype, norms=dtype, adapter=dtype)
    return replace(inside, embedding=dtype, head=dtype)


def fused_kernels(setup: TrainingSetup) -> bool:
    """Unsloth's norm and rotation kernels, which also come with its in-place cross-entropy."""
    return setup.unsloth or (setup.loss == "fused" and not setup.liger_kernel)


def packed_keeps_input(setup: TrainingSetup) -> bool:
    """Whether 4-bit products keep their input: bitsandbytes before 0.43.2, litgpt's pin while it published tables."""
    if "bitsandbytes" not in setup.versions:
        return setup.engine == "litgpt"
    return version_of(setup, "bitsandbytes") < (0, 43, 2)


def packed_follows_input(setup: TrainingSetup) -> bool:
    """Whether 4-bit modules compute in the dtype of their first input: bitsandbytes before 0.47 (nn/modules.py)."""
    return version_of(setup, "bitsandbytes") < (0, 47)


def pinned_inputs(setup: TrainingSetup, parts: Parts, spec: ModelSpec, regime: Regime) -> int:
    """Elements per token of the last micro batch that litgpt's loop still holds in the next one's forward pass.

    Its name ``logits`` keeps the old graph, and with it what 4-bit products keep outside autograd's saved tensors.
    """
    if regime.quantized != "nf4" or setup.engine != "litgpt" or "bitsandbytes" not in setup.versions:
        return 0
    if not packed_keeps_input(setup) or version_of(setup, "litgpt") < (0, 3):
        return 0
    return spec.hidden + sum(layer.count * _distinct_inputs(layer) for layer in parts.layers)


def unchecked_inputs(setup: TrainingSetup, layer: Layer, regime: Regime) -> int:
    """Bytes per token that a checkpointed layer keeps all the same: inputs of its int8 products.

    bitsandbytes' MatMul8bitLt names its input on its context, not among autograd's saved tensors, whose hooks are what
    non-reentrant checkpointing frees by (autograd/_functions.py, 0.50). A reentrant forward pass has no graph.
    """
    if regime.quantized != "int8" or regime.reentrant or layer.kind == "frozen":
        return 0
    # norms that hand out fp32 make all but the attention kernel's output so: 8-bit products keep the dtype
    wide, inputs = max(0, bytes_of(regime.stream) - bytes_of(regime.compute)), _distinct_inputs(layer)
    narrow = next((lin.inputs for lin in layer.linears if lin.role == "o"), 0)
    return inputs * bytes_of(regime.compute) + (inputs - narrow) * wide


def names_cache(setup: TrainingSetup, spec: ModelSpec) -> bool:
    """Whether the model names its key-value cache in training, see ``NAMES_CACHE``; LLaMA-Factory switches it off."""
    old = version_of(setup, "transformers") < (4, 53) and setup.engine != "llamafactory"
    return old and modeling(setup, spec) in NAMES_CACHE


def named_cache(layer: Layer, regime: Regime) -> tuple[int, int]:
    """Bytes per token of one checkpointed layer that the model names to the end of its forward pass, and of their fp32
    copies once accelerate converts the outputs of autocast.

    Source: transformers 4.48 models/gpt_bigcode/modeling_gpt_bigcode.py, ``presents``.
    """
    qkv = next((lin.outputs for lin in layer.linears if lin.role == "qkv"), 0)
    if regime.autocast is None:
        return qkv * bytes_of(regime.stream), 0
    if regime.quantized != "dense":  # the norm hands out fp32, and so does the projection
        return qkv * bytes_of("fp32"), 0
    return qkv * bytes_of(regime.compute), 2 * layer.block.attention.kv_width * bytes_of("fp32")


def _distinct_inputs(layer: Layer) -> int:
    """Elements per token of the tensors that a layer's matrices read, each once."""
    shared = layer.block.parallel and layer.block.norms < 2
    read = {"q": "attention", "k": "attention", "v": "attention", "qkv": "attention", "gate": "mlp", "up": "mlp"}
    read |= {"gate_up": "mlp"} | ({"gate": "attention", "up": "attention"} if shared else {})
    return sum({read.get(lin.role, lin.role): lin.inputs for lin in layer.linears}.values())


def _kernel(setup: TrainingSetup, spec: ModelSpec, layer: Layer, *, has_flash: bool) -> str:
    """The kernel that runs, which is not always the one asked for."""
    attention, kind = layer.block.attention, modeling(setup, spec)
    capped = setup.engine in OWN_MODELING and attention.softcap  # written out: its scores are no kernel's
    if setup.attention == "flash_attention_2" and kind not in ("bloom", "mpt") and not capped:
        return "flash"
    if setup.attention == "eager" or kind in WITHOUT_SDPA or capped:
        return "sinks" if attention.sinks else "eager"
    if attention.kind == "mla" and attention.v_head_dim != attention.head_dim:
        return "masked" if setup.padded else "efficient"  # flash kernels want equal widths of keys and values
    if kind in BROADCAST_KEYS:
        return "math"
    if setup.padded or (attention.sliding_window is not None and setup.seq_len >= attention.sliding_window):
        return "masked"
    if has_flash:
        return "sdpa"
    grouped = attention.kv_heads != attention.heads and version_of(setup, "transformers") >= (4, 48)
    return "grouped" if grouped else "efficient"  # without flash kernels: SDPA's S x S math path


@lru_cache(maxsize=1024)
def mode_of(
    regime: Regime, targets: frozenset[str], whole: frozenset[str], trained: bool, rank: int, dropout: bool,
    dora: bool, kernel: str, liger: bool, fused: bool, stay: bool, residual_dropout: bool, litgpt: bool = False,
    packed_keeps_input: bool = False, compiled: bool = False, packed_follows_input: bool = False,
    looped_delta: bool = False, cache: bool = False,
) -> Mode:  # fmt: skip
    """The program's mode from a regime and the few words of a setup that matter to a block; cached."""
    return Mode(
        stream=bytes_of(regime.stream),
        compute=bytes_of(regime.compute),
        autocast=regime.autocast is not None,
        base=bytes_of(regime.frozen),
        norm_weight=bytes_of(regime.norms),
        trained=trained,
        trained_itemsize=bytes_of(regime.trained),
        trained_modules=whole,
        quantized=regime.quantized,
        targets=targets,
        rank=rank,
        adapter=bytes_of(regime.adapter),
        dropout=dropout,
        dora=dora,
        kernel=kernel,  # type: ignore[arg-type]
        repeat_kv=regime.repeat_kv,
        liger=liger,
        fused=fused,
        gradients_stay=stay,
        residual_dropout=residual_dropout,
        litgpt=litgpt,
        half=regime.compute == "fp16",
        packed_keeps_input=packed_keeps_input,
        compiled=compiled,
        packed_follows_input=packed_follows_input,
        looped_delta=looped_delta,
        cache=cache,
    )
