"""Engine, version and setup -> which tensor is held in which dtype.

Most published errors of memory estimates are errors of regime: the same words ("full fine-tuning in bf16") mean 16
bytes a parameter in LLaMA-Factory (fp32 weights under autocast) and 8 in a plain transformers 5 script (16-bit weights
and states). Sources: LLaMA-Factory 0.9.5 model/adapter.py and loader.py; transformers trainer.py and modeling_utils.py;
accelerate accelerator.py and utils/fsdp_utils.py; DeepSpeed runtime/bf16_optimizer.py; peft tuners/lora; measured
dtypes of real runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, Literal, TypeVar

from planner.memory.autotp import cuts_vocabulary, is_autotp
from planner.memory.habits import OWN_MODELING, WIDE_NORM, WRITTEN_OUT_NORM
from planner.model.spec import ModelSpec
from planner.training import DTYPE_BYTES, FSDP, ZERO, Dtype, TrainingSetup

LossCopies = Literal[
    "hf_4_49",
    "hf_4_48",
    "hf_4_45",
    "in_model",
    "torchtune",
    "trl",
    "tiles",
    "loop",
    "raw",
    "fused",
    "fused_linear",
    "chunked",
    "vocab_parallel",
    "mcore",
]
T = TypeVar("T")
# What each engine's newest release resolves to (metadata of the wheels on 2026-11-20).
RESOLVED_VERSIONS: dict[str, dict[str, str]] = {
    "llamafactory": {"transformers": "5.6.0", "accelerate": "1.11.0", "peft": "0.18.1", "torch": "2.13.0"},
    "trl": {"transformers": "5.23.0", "accelerate": "1.15.0", "peft": "0.21.2", "torch": "2.13.0", "trl": "1.16.0"},
    "other": {"transformers": "5.23.0", "accelerate": "1.15.0", "peft": "0.21.2", "torch": "2.13.0"},
}
TRAINER_ENGINES = frozenset({"llamafactory", "transformers", "transformers-pure", "trl", "embedded", "axolotl"})
# transformers' Trainer with neither bf16 nor fp16 set: no autocast, so fp32 adapters read fp32 copies of their inputs.
UNCAST = frozenset({"transformers-pure"})
# A trained embedding in fp32 hands out fp32: LLaMA-Factory casts all that trains.
EMBEDDING_NAMES = frozenset({"embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings"})
OWN_LOOPS = frozenset(
    {"megatron", "torchtune", "torchtitan", "litgpt", "thunder", "pytorch", "pytorch-step", "fsdp_qlora"}
)
OWN_LOSSES: dict[str, LossCopies] = {
    "torchtune": "torchtune", "torchtitan": "torchtune", "thunder": "raw", "megatron": "mcore",
}  # fmt: skip
# A loop written by hand around transformers' model (and peft's adapters): its own loop, their code.
HAND_WRITTEN = frozenset({"pytorch", "pytorch-step", "fsdp_qlora"})


@dataclass(frozen=True, kw_only=True)
class Regime:
    """What is held in which dtype while the step runs.

    ``frozen``/``trained`` dtype of weights as held, ``gradient`` of retained gradients, ``compute`` of matmuls,
    ``autocast`` the dtype autocast brings them to, or None, ``norms`` of frozen norms (kbit preparation: fp32),
    ``embedding`` and ``head`` of those weights where frozen, ``adapter`` of adapters, ``master`` whether fp32 master
    weights exist beside 16-bit ones (DeepSpeed), ``state`` of optimizer states, ``loss`` the path of logits and
    cross-entropy. ``kernels``: fused norm, rotation and product kernels (Liger, Unsloth or alike).
    """

    frozen: Dtype
    trained: Dtype
    gradient: Dtype
    compute: Dtype
    autocast: Dtype | None
    norms: Dtype
    adapter: Dtype
    state: Dtype
    master: bool
    loss: LossCopies
    head: Dtype
    embedding: Dtype
    reentrant: bool
    repeat_kv: bool
    stacked_experts: bool
    upcast_frozen_on_sharding: bool = False  # accelerate before 1.13 casts the whole FSDP2 model to fp32
    load_dtype: Dtype = "bf16"
    quantized: Literal["dense", "nf4", "int8", "gptq"] = "dense"
    wide_stream: bool = False
    norms_keep_type: bool = False  # Gemma's and OLMo 2's norms hand out their input's dtype, not their weight's
    norms_widen: bool = False  # torch's layer norm under autocast hands out fp32, whatever its weight
    whole: Dtype = "fp32"  # modules trained whole beside adapters (additional_target)
    known_engine: bool = True
    all_reaches_head: bool = False  # lora_target all finds a head of another name than lm_head (LLaMA-Factory)
    head_packed: bool = False  # litgpt quantizes the head with all other Linear modules

    @property
    def stream(self) -> Dtype:
        """dtype of the residual stream: the embedding's, and fp32 where norms that hand out fp32 meet quantized
        linears, which hand out the dtype they were given (bitsandbytes Linear4bit.forward).
        """
        widened = self.norms_widen or (self.norms == "fp32" and not self.norms_keep_type)
        if self.wide_stream or (widened and self.quantized in ("nf4", "int8")):
            return "fp32"
        return self.embedding


def version_of(setup: TrainingSetup, package: str) -> tuple[int, ...]:
    """The version of ``package`` that the setup names, else what its engine's newest release resolves to."""
    known = RESOLVED_VERSIONS.get(setup.engine, RESOLVED_VERSIONS["other"])
    text = setup.versions.get(package, known.get(package, "999"))
    numbers = [int(part) for part in text.split(".")[:3] if part.isdigit()]
    return tuple(numbers) or (999,)


def trl_version(setup: TrainingSetup) -> tuple[int, ...]:
    """TRL's version where it is the engine; a setup that names an older transformers alone had TRL's of its time."""
    if "trl" not in setup.versions and version_of(setup, "transformers") < (5,):
        return (0, 24)
    return version_of(setup, "trl")


def resolve_regime(setup: TrainingSetup, spec: ModelSpec, *, has_bf16: bool | None = True) -> Regime:
    """The regime of a setup on GPUs with or without bfloat16 (None: assumed)."""
    versions = tuple(sorted(setup.versions.items()))
    key = (
        setup.engine, setup.method, setup.stage, setup.parallelism or "none", setup.quantization_bit,
        setup.quantization_method, setup.param_dtype, setup.compute_dtype, setup.adapter_dtype, setup.kbit_upcast,
        setup.liger_kernel, setup.unsloth, setup.loss, setup.attention, setup.additional_target, versions,
        _cuts_logits(setup),
        spec.stored_dtype, spec.embedding_norm, _norms_widen(spec),
        spec.quantized.method if spec.quantized else None, spec.model_type, has_bf16 is not False,
    )  # fmt: skip
    return _resolve(key, Unhashed(setup))


def _norms_widen(spec: ModelSpec) -> bool:
    """Whether blocks norm by torch's layer norm, which is on autocast's fp32 list."""
    kinds = {run.block.norm for run in spec.runs}
    return spec.model_type not in WRITTEN_OUT_NORM and any(kind.startswith("layernorm") for kind in kinds)


def _cuts_logits(setup: TrainingSetup) -> bool:
    return is_autotp(setup) and cuts_vocabulary(setup)


class Unhashed(Generic[T]):
    """Carries a value past a cache whose other arguments decide the answer."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unhashed)


@lru_cache(maxsize=4096)
def _resolve(key: tuple[object, ...], keyed: Unhashed[TrainingSetup]) -> Regime:
    setup = keyed.value
    stored, embedding_norm, prequantized, has_bf16 = key[-6], key[-5], key[-3], bool(key[-1])
    compute = setup.compute_dtype or ("bf16" if has_bf16 else "fp16")
    sharded = setup.parallelism or "none"
    quantized = _quantized(setup, prequantized)
    frozen = _frozen_dtype(setup, str(stored), quantized, compute)
    adapter = _adapter_dtype(setup, sharded, quantized, compute)
    trained = _trained_dtype(setup, frozen, sharded, compute)
    deepspeed = sharded in ZERO
    held = adapter if setup.is_adapter else trained
    autocast = _autocast(setup, held, compute, deepspeed=deepspeed)
    upcast = _kbit_upcast(setup, quantized)
    full = setup.method in ("full", "galore", "apollo")  # freeze and BAdam leave embedding and head as loaded
    return Regime(
        frozen=frozen,
        trained=trained,
        gradient=compute if deepspeed else held,
        compute=compute,
        autocast=compute if autocast else None,
        load_dtype=_load_dtype(setup, frozen),
        norms="fp32" if upcast in ("norms", "all") else frozen,
        adapter=adapter,
        state="fp32" if deepspeed else held,
        master=deepspeed and held != "fp32",
        loss=_loss(setup, str(key[-2])),
        head=trained if full else ("fp32" if upcast == "all" else frozen),
        embedding=trained if full else ("fp32" if upcast == "all" else frozen),
        reentrant=_reentrant(setup),
        repeat_kv=_repeats_kv(setup, str(key[-2])),
        stacked_experts=version_of(setup, "transformers") >= (5,) and setup.engine not in OWN_LOOPS - HAND_WRITTEN,
        upcast_frozen_on_sharding=sharded == "fsdp2" and autocast and version_of(setup, "accelerate") < (1, 13),
        quantized=quantized,
        whole=_whole_dtype(setup, adapter, frozen),
        wide_stream=(autocast and str(embedding_norm).startswith("layernorm"))
        or (
            setup.is_adapter
            and _whole_dtype(setup, adapter, frozen) == "fp32"
            and not EMBEDDING_NAMES.isdisjoint(setup.additional_target)
        ),
        norms_keep_type=str(key[-2]) in WIDE_NORM,
        norms_widen=autocast and bool(key[-4]),
        all_reaches_head=setup.engine == "llamafactory",
        known_engine=setup.engine in TRAINER_ENGINES | OWN_LOOPS,
        head_packed=setup.engine == "litgpt" and quantized == "nf4",
    )


def _quantized(setup: TrainingSetup, prequantized: object) -> Literal["dense", "nf4", "int8", "gptq"]:
    """The form of the frozen linear weights; a checkpoint's own wins (fp8 and mxfp4 are dequantized at load)."""
    if prequantized in ("gptq", "awq", "aqlm"):
        return "gptq"
    if setup.quantization_bit is None or not setup.is_adapter:
        return "dense"
    if setup.quantization_method in ("gptq", "awq", "aqlm"):
        return "gptq"
    return "int8" if setup.quantization_bit == 8 else "nf4"


def _frozen_dtype(setup: TrainingSetup, stored: str, quantized: str, compute: Dtype) -> Dtype:
    """The dtype of the base: as stored for engines that load with dtype="auto", else fp32 or as the setup says.

    ``param_dtype`` is that of trained weights: with freeze it says nothing of the layers below them.
    """
    if setup.param_dtype is not None and setup.method != "freeze":
        return setup.param_dtype
    if quantized != "dense" or setup.parallelism in ZERO:  # DeepSpeed's engine casts the whole module
        return compute
    if setup.engine in OWN_LOOPS:
        return "fp32" if setup.engine == "torchtitan" else compute
    if setup.engine == "embedded" and not setup.is_adapter:
        return "fp32"
    loads_fp32 = setup.engine not in ("llamafactory", "axolotl") and version_of(setup, "transformers") < (5,)
    if setup.engine == "trl" or (loads_fp32 and not setup.is_adapter):
        return "fp32"
    if loads_fp32:  # nobody trains adapters on a base blown up to fp32: scripts of that time pass torch_dtype
        return compute
    return "fp32" if stored == "fp32" else ("fp16" if stored == "fp16" else "bf16")


def _trained_dtype(setup: TrainingSetup, frozen: Dtype, sharded: str, compute: Dtype) -> Dtype:
    """Weights of full and freeze: LLaMA-Factory casts them to fp32 unless pure_bf16, BAdam or DeepSpeed decide."""
    if setup.param_dtype is not None:
        return setup.param_dtype
    if sharded in ZERO:
        return compute
    if setup.engine == "llamafactory":
        return compute if setup.method == "badam" else "fp32"
    if setup.engine == "embedded":
        return "fp32"
    return frozen


def _adapter_dtype(setup: TrainingSetup, sharded: str, quantized: str, compute: Dtype) -> Dtype:
    """peft and LLaMA-Factory keep adapters in fp32, DeepSpeed in its 16-bit dtype; own loops follow the base."""
    if setup.adapter_dtype is not None:
        return setup.adapter_dtype
    if sharded in ZERO or setup.engine in OWN_LOOPS - HAND_WRITTEN:
        return compute
    if setup.engine == "trl" and quantized in ("nf4", "int8") and trl_version(setup) >= (1,):
        return "bf16"  # trainer/sft_trainer.py makes every trained tensor of a quantized model bf16
    return "fp32"


def _whole_dtype(setup: TrainingSetup, adapter: Dtype, frozen: Dtype) -> Dtype:
    """Modules trained whole beside adapters: peft copies them as they are, LLaMA-Factory casts all that trains."""
    return adapter if setup.engine in ("llamafactory", "embedded") or setup.parallelism in ZERO else frozen


def _autocast(setup: TrainingSetup, held: Dtype, compute: Dtype, *, deepspeed: bool) -> bool:
    """Trainer(bf16=True) runs the forward pass under autocast; DeepSpeed and own loops run the model in its dtype.

    Where every trained tensor already has the compute dtype, autocast changes nothing that is priced here except
    for layer norms, so it counts as off.
    """
    if compute == "fp32" or setup.engine in OWN_LOOPS | UNCAST or deepspeed:
        return False
    return held != compute


def _load_dtype(setup: TrainingSetup, frozen: Dtype) -> Dtype:
    """The widest dtype in which a whole model lies on the GPU while it loads.

    LLaMA-Factory's full fine-tuning under DeepSpeed 1 and 2 (or none) first makes an fp32 copy of the model
    (model/adapter.py); ZeRO-3 loads under zero.Init and never holds it whole.
    """
    whole = setup.method in ("full", "freeze", "galore", "apollo")
    if (
        setup.engine == "llamafactory"
        and whole
        and setup.parallelism != "zero3"
        and setup.param_dtype in (None, "fp32")
    ):
        return "fp32"
    return setup.param_dtype or frozen


def _kbit_upcast(setup: TrainingSetup, quantized: str) -> str:
    """``prepare_model_for_kbit_training``: TRL did before 1.0; LLaMA-Factory, a plain Trainer and Unsloth do not.

    FSDP1 flattens a layer into one tensor of one dtype, so fp32 norms cannot stand beside a 16-bit store there.
    """
    if quantized == "dense" or setup.parallelism == "fsdp":
        return "none"
    if setup.kbit_upcast is not None:
        return setup.kbit_upcast
    # is_loaded_in_4bit or 8bit, so not GPTQ; TRL 1.0 has no such call any more; Unsloth hands TRL a model that has its
    # adapters, which TRL takes as it is (unsloth/models/llama.py, get_peft_model)
    prepares = setup.engine == "trl" and not setup.unsloth and quantized in ("nf4", "int8")
    prepares = prepares and trl_version(setup) < (1,)
    return "all" if prepares and (setup.parallelism or "none") not in FSDP | ZERO else "none"


# Modeling files that computed the loss themselves, on 16-bit logits, until transformers 4.48.2.
LOSS_IN_MODEL = frozenset({"gpt2", "gpt_bigcode", "bloom", "falcon", "opt", "gpt_neox", "mpt"})
# The same on fp32 logits, made 16 bit again beside their copies: 14 bytes, as in 4.48's common loss.
WIDE_LOSS_IN_MODEL = frozenset({"codegen", "gpt_neo"})


def loss_in_model(setup: TrainingSetup, model_type: str) -> bool:
    """Whether the modeling file computes the loss itself, on 16-bit logits."""
    return model_type in LOSS_IN_MODEL and version_of(setup, "transformers") < (4, 48, 3)


def _loss(setup: TrainingSetup, model_type: str) -> LossCopies:
    """The path of logits and cross-entropy; outside pt and sft LLaMA-Factory switches the fused linear one off."""
    if _cuts_logits(setup) and setup.loss is None and not setup.liger_kernel:
        return "vocab_parallel"
    if setup.engine == "trl" and setup.loss is None and trl_version(setup) >= (1, 15):
        return "tiles"  # trainer/utils.py add_fused_lm_head; Liger's own fused loss is switched off
    if setup.loss == "fused_linear" or (setup.loss is None and setup.liger_kernel and setup.stage in ("pt", "sft")):
        return "fused_linear"
    if setup.loss == "chunked" or (setup.loss is None and setup.engine == "litgpt"):
        return "chunked"
    if setup.loss == "fused" or (setup.loss is None and setup.unsloth):
        return "fused"
    if setup.engine in OWN_LOOPS:
        return OWN_LOSSES.get(setup.engine, "loop")
    version = version_of(setup, "transformers")
    if model_type == "qwen":  # remote code of its own time, whatever the version
        return "in_model"
    if version >= (4, 49):
        return "trl" if setup.engine == "trl" else "hf_4_49"
    if loss_in_model(setup, model_type):
        return "in_model"
    return "hf_4_48" if version >= (4, 46) or model_type in WIDE_LOSS_IN_MODEL else "hf_4_45"


def _reentrant(setup: TrainingSetup) -> bool:
    """LLaMA-Factory and transformers 4 checkpoint reentrantly (not under FSDP2); transformers 5, own loops do not."""
    if setup.parallelism == "fsdp2" or setup.engine in OWN_LOOPS - HAND_WRITTEN or setup.engine == "embedded":
        return False
    if setup.engine == "trl" and trl_version(setup) >= (1,):  # sft_trainer.py forces it for adapters under ZeRO-3
        return setup.is_adapter and setup.parallelism == "zero3"
    return setup.engine == "llamafactory" or version_of(setup, "transformers") < (5,)


def checkpoints_within_unit(setup: TrainingSetup) -> bool:
    """Whether checkpointing happens inside what FSDP wraps, so that FSDP's hooks see the layer once a step.

    transformers >= 4.52 checkpoints in the layer's own ``__call__`` (modeling_layers.py, GradientCheckpointingLayer);
    before, the model's loop checkpointed the wrapped layer, which FSDP then met again in the recomputation. litgpt,
    torchtune and fsdp_qlora put the checkpoint on what their units hold (apply_activation_checkpointing after FSDP).
    """
    if setup.engine in OWN_LOOPS - HAND_WRITTEN or setup.engine == "fsdp_qlora":
        return True
    return version_of(setup, "transformers") >= (4, 52)


def _repeats_kv(setup: TrainingSetup, model_type: str) -> bool:
    """Whether grouped keys and values are expanded to every query head before the kernel.

    transformers < 4.48 did it for SDPA everywhere, and before flash attention in Mistral and Mixtral.
    """
    version = version_of(setup, "transformers")
    if setup.engine in OWN_MODELING or setup.engine == "torchtune":
        return True
    if version >= (4, 48):
        return False
    return setup.attention == "sdpa" or model_type in ("mistral", "mixtral", "qwen2", "qwen2_moe", "phi3")


def bytes_of(dtype: Dtype) -> int:
    """Bytes of one element."""
    return DTYPE_BYTES[dtype]
