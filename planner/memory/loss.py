"""Logits and cross-entropy: copies of a (tokens, vocabulary) tensor, by the code that makes them.

A ``LossCurve`` says in bytes per token and logit how much is alive at the worst moment of the loss's forward and
backward pass, and how much of the loss is kept from one to the other. Sources: transformers loss/loss_utils.py
(ForCausalLMLoss, 4.45 to 5.x), accelerate utils/operations.py (ConvertOutputsToFp32), TRL's SFT metrics,
LLaMA-Factory train/dpo/trainer.py and trainer_utils.py, Liger's fused_linear_cross_entropy.py, litgpt's and
torchtune's chunked losses; slopes of published peaks agree to the byte for 4.45 and 4.48.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.memory.regime import HAND_WRITTEN, LossCopies, Regime, bytes_of, loss_in_model, version_of
from planner.model.spec import ModelSpec
from planner.training import TrainingSetup


@dataclass(frozen=True, slots=True)
class LossCurve:
    """Bytes per token and vocabulary entry: worst moments, and what backward then narrows to at the head's matmul."""

    forward: int
    backward: int
    head: int  # the logits' gradient in the model's dtype, alive beside the head's matmuls
    converted: int = 0  # when accelerate makes the outputs fp32, where that is more: the forward pass has returned


# 2: 16-bit logits, 4: an fp32 copy. 4.48: logits + float + shifted copy + log-softmax; 4.45 dropped the first.
# From 4.49: logits + float + log-softmax. Backward: log-softmax + its gradient + the logits' gradient in fp32.
CURVES: dict[LossCopies, LossCurve] = {
    "hf_4_49": LossCurve(10, 12, 2),
    "hf_4_48": LossCurve(14, 12, 2),
    "hf_4_45": LossCurve(12, 12, 2),
    # 16-bit throughout: logits, shifted copy, log-softmax; backward: log-softmax, its gradient, the logits' gradient
    "in_model": LossCurve(6, 6, 2),
    "trl": LossCurve(12, 12, 2),
    "loop": LossCurve(10, 14, 4),  # as hf_4_49; a loop's ``outputs`` hold the 16-bit logits through backward
    # thunder's benchmark_litgpt.py: cross-entropy of the 16-bit logits, which its loop still names in backward
    "raw": LossCurve(4, 8, 4),
    "torchtune": LossCurve(10, 12, 2),  # logits.float() replaces them
    "fused": LossCurve(8, 8, 2),
    # deepspeed 0.19.8 sequence/cross_entropy.py: logits and their shifted copy, both in fp32 of which the shift by the
    # maximum and its exponential are made; backward: exponential and gradient in fp32, then the 16-bit one
    # megatron core/tensor_parallel/cross_entropy.py: 16-bit logits and one fp32 copy, in which exponential, softmax and
    # gradient take each other's place; the gradient is then cast back
    "mcore": LossCurve(6, 6, 2),
    "vocab_parallel": LossCurve(16, 10, 2),
}
# Under autocast the likelihood reads an fp32 copy (4) of the 16-bit log-softmax (2) and keeps both; accelerate then
# makes the logits (2) fp32 (4). The fused kernel keeps the shifted copy alone and writes its gradient there.
IN_MODEL_AUTOCAST = LossCurve(10, 10, 2, converted=12)
FUSED_IN_MODEL = LossCurve(4, 4, 2)
FUSED_IN_MODEL_AUTOCAST = LossCurve(4, 4, 2, converted=8)
# Recipes before pull request 1235 (torchtune 0.3) name the shifted fp32 logits until the next batch's replace them.
TORCHTUNE_HELD = LossCurve(10, 16, 6)
SHIFTED_COPY: dict[LossCopies, int] = {"hf_4_48": 4, "hf_4_45": 4, "in_model": 2, "vocab_parallel": 2}
LITGPT_CHUNK_TOKENS = 128
TILE_TOKENS, TILE_WORDS = 4096, 32768
TORCHTUNE_CHUNKS = 8
DPO_WITH_REFERENCE = LossCurve(20, 12, 2)  # traced: both models' logits in fp32, their log-softmaxes, 16-bit logits
DPO_ALONE = LossCurve(10, 12, 2)
VALUE_ONLY = LossCurve(6, 0, 0)


@dataclass(frozen=True, kw_only=True)
class LossBytes:
    """Bytes at the worst moments of the loss, beside the hidden states.

    ``forward``, ``backward``, then the ``head``'s matmuls with the logits' gradient alive; ``kept`` are gradients that
    the fused linear loss makes in its forward pass, ``temporary`` its casts.
    """

    forward: int
    backward: int
    head: int
    kept: int = 0
    temporary: int = 0
    head_temporary: int = 0  # copies of a packed head beside its products
    repeated: int = 0  # a loop that names its logits holds the last micro batch's until the next ones exist
    outputs: int = 0  # logits that a hand-written loop's name holds until backward is over
    converted: int = 0  # when the outputs are made fp32
    idle: int = 0  # freed before backward, in blocks too small for anything that backward makes: reserved, not alive
    head_gradient: int = 0  # chunk by chunk, the head's gradient so far and the next chunk's exist together


def loss_curve(setup: TrainingSetup, spec: ModelSpec, regime: Regime) -> LossCurve:
    """The curve of materialised logits for this stage and path."""
    if setup.stage == "rm":
        return VALUE_ONLY
    if setup.stage in ("dpo", "kto"):
        return DPO_WITH_REFERENCE
    if setup.stage in ("orpo", "simpo"):
        return DPO_ALONE
    if setup.stage in ("ppo", "grpo"):
        return CURVES["hf_4_49"]
    if regime.loss == "fused":
        return _fused(setup, spec, regime)
    if regime.loss == "in_model" and regime.autocast is not None:
        return IN_MODEL_AUTOCAST
    if regime.loss == "torchtune" and version_of(setup, "torchtune") < (0, 3):
        return TORCHTUNE_HELD
    return CURVES.get(regime.loss, CURVES["hf_4_49"])


def _fused(setup: TrainingSetup, spec: ModelSpec, regime: Regime) -> LossCurve:
    """An in-place kernel on the shifted logits; transformers 4.46 to 4.48 kept the 16-bit ones beside the fp32 copy."""
    version = version_of(setup, "transformers")
    if loss_in_model(setup, spec.model_type):
        return FUSED_IN_MODEL_AUTOCAST if regime.autocast is not None else FUSED_IN_MODEL
    return LossCurve(10, 8, 2) if (4, 46) <= version < (4, 49) else CURVES["fused"]


def loss_bytes(setup: TrainingSetup, spec: ModelSpec, regime: Regime, tokens: int, *, head_trained: bool) -> LossBytes:
    """Bytes of the loss for ``tokens`` of one micro batch."""
    vocab = spec.vocab
    if regime.loss == "fused_linear" and setup.stage in ("pt", "sft"):
        return _fused_linear(spec, regime, tokens, head_trained=head_trained)
    if regime.loss == "tiles" and setup.stage not in ("rm", "ppo"):
        return _tiles(setup, spec, regime, tokens, head_trained=head_trained)
    if regime.loss == "chunked":
        return _chunked(setup, spec, regime, tokens, head_trained=head_trained)
    curve = loss_curve(setup, spec, regime)
    by_hand = setup.engine in HAND_WRITTEN
    if regime.compute == "fp32" or (by_hand and regime.head == "fp32"):
        held = 4 if by_hand else 0  # the loop's outputs, which are the logits themselves
        curve = LossCurve(8 if curve.forward <= 10 else curve.forward, 12 + held, 4 + held)
    capped = 2 if spec.head_softcap else 0  # tanh keeps its output
    # one sequence without its last token is contiguous already, so it is not copied
    alone = setup.stage in ("pt", "sft") and tokens == setup.seq_len
    viewed = SHIFTED_COPY.get(regime.loss, 0) if alone else 0
    # torchtitan's train.py (December 2024) deletes its prediction, 16-bit logits; backward asks for blocks of fp32
    deleted = 2 if setup.engine == "torchtitan" and regime.compute != "fp32" else 0
    return LossBytes(
        forward=(curve.forward - viewed + capped) * vocab * tokens,
        backward=(curve.backward + capped) * vocab * tokens if curve.backward else 0,
        head=curve.head * vocab * tokens,
        converted=curve.converted * vocab * tokens,
        idle=deleted * vocab * tokens,
        outputs=(4 if regime.head == "fp32" else 2) * vocab * tokens if setup.engine in HAND_WRITTEN else 0,
    )


def _fused_linear(spec: ModelSpec, regime: Regime, tokens: int, *, head_trained: bool) -> LossBytes:
    """Liger: chunks of the logits one after the other; the gradients of the input and of the head are made at once.

    chunk = min(tokens, next power of two of ceil(tokens / ceil(vocab / hidden))).
    """
    chunks = -(-spec.vocab // spec.hidden)
    wanted = -(-tokens // chunks)
    chunk = min(tokens, 1 << (wanted - 1).bit_length())
    width = bytes_of(regime.compute)
    head_gradient = spec.vocab * spec.hidden * bytes_of(regime.head) if head_trained else 0
    gradient_in = tokens * spec.hidden * width
    logits = chunk * spec.vocab * width
    # a product in another dtype than the head's gradient is made first; of the same dtype, addmm adds in place
    extra = spec.vocab * spec.hidden * width if head_trained and bytes_of(regime.head) != width else 0
    return LossBytes(
        forward=logits + gradient_in + chunk * spec.vocab * width,
        backward=gradient_in, head=gradient_in, kept=head_gradient, temporary=extra,
    )  # fmt: skip


def _tiles(setup: TrainingSetup, spec: ModelSpec, regime: Regime, tokens: int, *, head_trained: bool) -> LossBytes:
    """TRL 1.15: the head's products in tiles of 4,096 tokens by 32,768 words, each folded into sums of a token.

    The hidden states of the answers' tokens (here: all) are copied and kept for backward, which makes the tiles again
    and adds the gradients of the hidden states and of a trained head in fp32, then casts them. A preference stage
    projects the reference's hidden states too, before those that are kept. Source: trl 1.16.0
    kernels/chunked_logprob.py, trainer/utils.py (add_fused_lm_head). Leaves out: a dozen floats a token.
    """
    tile = min(tokens, TILE_TOKENS) * TILE_WORDS * bytes_of(regime.compute)
    rows = min(tokens, TILE_TOKENS) * spec.hidden * bytes_of(regime.compute) if regime.stream != regime.compute else 0
    words = TILE_WORDS * spec.hidden * bytes_of(regime.compute) if regime.head != regime.compute else 0
    kept = tokens * spec.hidden * bytes_of(regime.stream)
    gradient_in = tokens * spec.hidden * (4 + bytes_of(regime.stream))
    head = spec.vocab * spec.hidden * 4 if head_trained else 0
    moment = tile + rows + words + kept
    return LossBytes(forward=moment, backward=moment + gradient_in, head=kept + gradient_in, head_gradient=head)


def _chunked(setup: TrainingSetup, spec: ModelSpec, regime: Regime, tokens: int, *, head_trained: bool) -> LossBytes:
    """Losses over pieces of the logits.

    litgpt: the head runs in chunks of 128 tokens; Fabric makes all of them fp32 and each keeps its log-softmax, 8 bytes
    a logit, and one chunk of every sequence is worked on. Behind it the 16-bit gradients of all chunks wait beside the
    fp32 logits for the head, which nf4 dequantizes twice a chunk (fp16, then the compute dtype). Since the scripts no
    longer begin with the longest sample (litgpt 0.3), the last micro batch's logits count too. torchtune: 8 chunks kept
    in 16 bit, one of them made fp32 at a time.
    """
    if setup.engine == "litgpt":
        chunk = min(LITGPT_CHUNK_TOKENS, setup.seq_len) * setup.micro_batch_size
        logits = tokens * spec.vocab
        moment = 8 * logits + 6 * chunk * spec.vocab
        copies = 4 * spec.vocab * spec.hidden if regime.head_packed else 0
        repeated = 10 * logits if version_of(setup, "litgpt") >= (0, 3) else 0
        return LossBytes(forward=moment, backward=moment, head=6 * logits, head_temporary=copies, repeated=repeated)
    kept = tokens * spec.vocab * bytes_of(regime.compute)
    chunk = -(-tokens // TORCHTUNE_CHUNKS) * spec.vocab * (2 if setup.torch_compile else 6)
    head_gradient = spec.vocab * spec.hidden * bytes_of(regime.trained) if head_trained else 0
    return LossBytes(forward=kept + chunk, backward=kept + chunk, head=kept, head_gradient=2 * head_gradient)
