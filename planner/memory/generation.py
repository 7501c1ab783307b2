"""GRPO's generation by transformers: the prompts' forward pass into a key-value cache, then a token at a time.

A GPU generates for all micro batches of an optimizer step at once: TRL's ``steps_per_generation`` is the accumulation
(trl 1.16.0 trainer/grpo_config.py), so neither a smaller micro batch nor more accumulation makes it smaller. With that
default, one iteration and no KL term (``beta`` 0, TRL's own) there is neither a pass over old policies nor a reference.

g sequences, p tokens of a prompt, c of a completion, t = p + c - 1 tokens cached when the last one is made; K and V
elements of a layer's keys and values. Sources: trl 1.16.0 trainer/grpo_trainer.py (_generate_single_turn: one call of
``generate`` for the whole generation batch) and models/utils.py (DeepSpeed 3 gathers the whole model for it);
transformers 5.23 cache_utils.py (DynamicLayer.update concatenates, so that an old and a new tensor live together),
generation/utils.py (_sample: logits, an fp32 copy, its softmax; the head sees the last token only), integrations/
sdpa_attention.py (pack_gqa: a single query repeats no keys). Leaves out: the recurrent state of linear attention, what
the growth of the cache strands in the allocator, generation by vLLM, rewards by a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from planner.memory.regime import Regime, bytes_of
from planner.memory.stretches import Step, as_gathered, graphless
from planner.memory.units import Layer
from planner.training import FSDP, TrainingSetup

NUM_GENERATIONS = 8  # TRL's default: completions of one prompt
MAX_COMPLETION_TOKENS = 512  # TRL's default
ID_BYTES_PER_TOKEN = 32  # ids and masks of prompts and completions, int64


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """Sequences that one GPU generates together, and the tokens of a prompt and of a completion."""

    sequences: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Live:
    """Bytes alive at one moment of generation beside weights and optimizer states."""

    activations: int
    logits: int = 0
    temporaries: int = 0


def completion_tokens(seq_len: int) -> int:
    """The share of a sample that is generated: TRL's default, at most half of the length (at least one token)."""
    return max(1, min(MAX_COMPLETION_TOKENS, seq_len // 2))


def generations(global_batch: int) -> int | None:
    """Completions of one prompt: TRL's default where the effective batch holds whole groups, else the nearest below.

    None where no group of at least two divides it (GRPOConfig.__post_init__).
    """
    return next((number for number in range(NUM_GENERATIONS, 1, -1) if global_batch % number == 0), None)


def rollout_of(setup: TrainingSetup, sequences: int | None = None) -> Rollout:
    """What a step of the setup generates on one GPU; ``sequences`` for another batch, as evaluation has."""
    completion = completion_tokens(setup.seq_len)
    together = setup.micro_batch_size * setup.gradient_accumulation_steps
    return Rollout(
        sequences=together if sequences is None else sequences,
        prompt_tokens=setup.seq_len - completion,
        completion_tokens=completion,
    )


def buffered_bytes(setup: TrainingSetup) -> int:
    """What was generated waits on the GPU until its micro batch is trained on."""
    if setup.stage != "grpo":
        return 0
    return ID_BYTES_PER_TOKEN * setup.micro_batch_size * setup.gradient_accumulation_steps * setup.seq_len


def moments(step: Step, rollout: Rollout) -> Iterator[Live]:
    """The worst moments: each kind of layer in the prompts' pass, and the last token's."""
    step = _uncast(step)
    yield from _prompts(step, rollout)
    yield from _last_token(step, rollout)


def _uncast(step: Step) -> Step:
    """peft generates with the base model's own forward pass, which accelerate has not put under autocast: matrices then
    compute in the dtype in which they are held (peft peft_model.py, PeftModelForCausalLM.generate).
    """
    if not step.setup.is_adapter or step.regime.autocast is None:
        return step
    return replace(step, regime=_without_autocast(step.regime))


@lru_cache(maxsize=256)
def _without_autocast(regime: Regime) -> Regime:
    return replace(regime, autocast=None, compute=regime.frozen if regime.quantized == "dense" else regime.compute)


def gathered_bytes(step: Step) -> int:
    """Weights of other GPUs that are here: all of them under DeepSpeed 3, a unit or two under FSDP."""
    if step.setup.parallelism == "zero3":
        return sum(unit.count * unit.held_bytes for unit in step.parts.units)
    return step.layout.gathered_forward


def _prompts(step: Step, rollout: Rollout) -> Iterator[Live]:
    tokens = rollout.sequences * rollout.prompt_tokens
    squares = tokens * rollout.prompt_tokens
    width = bytes_of(step.regime.stream) + bytes_of(step.regime.embedding)  # a layer's input; the embedded prompts
    cache = _cache(step, rollout.sequences, rollout.prompt_tokens)
    base = cache + width * step.spec.hidden * tokens + _mask_bytes(step) * squares
    casts = _casts(step)
    for layer in step.parts.layers:
        for moment in graphless(step, layer).forward:
            weights = moment.temporary
            yield Live(activations=base + moment.at(tokens, squares) - weights, temporaries=casts + weights)


def _last_token(step: Step, rollout: Rollout) -> Iterator[Live]:
    tokens = rollout.prompt_tokens + rollout.completion_tokens - 1
    cache = _cache(step, rollout.sequences, tokens)
    copied = max(_copied(step, layer, rollout.sequences, tokens) for layer in step.parts.layers)
    words = rollout.sequences * step.spec.vocab
    before = (4 + 4) * words  # an fp32 copy of the logits, and their softmax, keep their names for a round
    yield Live(activations=cache + copied, logits=before, temporaries=_casts(step))
    made = (bytes_of(step.regime.compute) + (4 if step.regime.autocast else 0)) * words  # accelerate hands out fp32
    yield Live(activations=cache, logits=before + made, temporaries=_casts(step) + _head_cast(step))


def _cache(step: Step, sequences: int, tokens: int) -> int:
    """Keys and values of all layers; a sliding window is all that its layers keep."""
    return sum(
        layer.count * sum(_widths(step, layer)) * sequences * _seen(layer, tokens) for layer in step.parts.layers
    )


def _copied(step: Step, layer: Layer, sequences: int, tokens: int) -> int:
    """One layer's grown keys beside the old ones, or 16-bit casts of fp32 keys and values for the kernel."""
    keys, values = _widths(step, layer)
    cast = (keys + values) // 2 if step.regime.autocast else 0
    return max(keys, values, cast) * sequences * _seen(layer, tokens)


def _seen(layer: Layer, tokens: int) -> int:
    window = layer.block.attention.sliding_window
    return tokens if window is None else min(tokens, window)


def _widths(step: Step, layer: Layer) -> tuple[int, int]:
    """Bytes a token of one layer's cached keys and values.

    Rotation multiplies by cosines of the residual stream's dtype, so that keys under autocast are as wide as it is;
    values are joined to a tensor of the keys' dtype (DynamicLayer.lazy_initialization), and widen with them. Latent
    attention caches what it expanded for every head.
    """
    a = layer.block.attention
    if a.kind == "linear":
        return 0, 0
    regime = as_gathered(step.setup, step.regime, adapted=layer.kind == "adapted")
    follows = a.rope in ("full", "partial") or regime.quantized != "dense"  # packed products keep the dtype they get
    each = max(bytes_of(regime.compute), bytes_of(regime.stream)) if follows else bytes_of(regime.compute)
    if a.kind == "mla":
        return a.heads * (a.qk_nope_dim + a.qk_rope_dim) * each, a.heads * a.v_head_dim * each
    return a.kv_width * each, a.kv_width * each


def _mask_bytes(step: Step) -> int:
    """Bytes of the mask of prompts of unequal length, one for all layers: boolean, or eager attention's own dtype."""
    if step.setup.attention == "flash_attention_2":
        return 0
    return bytes_of(step.regime.compute) if step.setup.attention == "eager" else 1


def _casts(step: Step) -> int:
    """Autocast's copies of trained fp32 weights, which stay until the forward pass ends, without a graph too."""
    return sum(layer.count * graphless(step, layer).casts for layer in step.parts.layers)


def _head_cast(step: Step) -> int:
    regime, spec = step.regime, step.spec
    if regime.autocast is None or regime.head != "fp32" or (step.setup.parallelism or "none") in FSDP:
        return 0
    return spec.vocab * spec.hidden * bytes_of(regime.compute)
