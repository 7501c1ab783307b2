"""A setup of the contract -> what the traced step needs to know; what cannot be traced is refused with a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from planner.errors import UnsupportedError
from planner.hardware.machine import Machine
from planner.memory.overhead import workspace_bytes
from planner.memory.regime import HAND_WRITTEN, TRAINER_ENGINES, LossCopies, Regime, resolve_regime, version_of
from planner.memory.stretches import names_cache
from planner.model.spec import ModelSpec
from planner.training import Dtype, KbitUpcast, TrainingSetup

STAGES = frozenset({"pt", "sft", "dpo", "orpo", "simpo"})
METHODS = frozenset({"full", "freeze", "lora", "dora", "qlora"})
PARALLELISMS = frozenset({"none", "ddp", "fsdp2"})
LOSSES: frozenset[LossCopies] = frozenset({"hf_4_49", "hf_4_48", "in_model", "loop", "fused_linear"})
OPTIMS = frozenset({"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"})
BNB_OPTIMS: dict[str, tuple[int, int, bool]] = {  # moments, bits, paged
    "adamw_bnb_8bit": (2, 8, False),
    "adamw_8bit": (2, 8, False),
    "paged_adamw_8bit": (2, 8, True),
    "paged_adamw_32bit": (2, 32, True),
    "lion_32bit": (1, 32, False),
    "lion_8bit": (1, 8, False),
    "paged_lion_32bit": (1, 32, True),
    "paged_lion_8bit": (1, 8, True),
}
DEPTH_KEYS = ("num_hidden_layers", "n_layer", "num_layers")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training step to trace. Names follow TrainingSetup; dtypes are resolved, ``None`` autocast is off.

    ``config`` is a transformers config dictionary with ``model_type``; ``ranks`` GPUs share the job;
    ``workspace_bytes`` are cuBLAS' and live from the first product on; ``flash``: compute capability 8.0 or newer.
    ``transformers`` and ``bitsandbytes`` are the releases asked for.
    """

    config: dict[str, Any]
    stage: str
    method: str
    ranks: int
    parallelism: str
    workspace_bytes: int
    flash: bool
    base_dtype: Dtype
    trained_dtype: Dtype
    adapter_dtype: Dtype
    whole_dtype: Dtype
    autocast: Dtype | None
    compute_dtype: Dtype
    quantization_bit: int | None
    double_quantization: bool
    kbit_upcast: KbitUpcast
    lora_rank: int
    lora_target: str | tuple[str, ...]
    lora_dropout: float
    dora: bool
    additional_target: tuple[str, ...]
    freeze_trainable_layers: int
    names_linears: bool
    experts_apart: bool
    gradient_checkpointing: bool | int
    reentrant: bool
    attention: str
    liger_kernel: bool
    loss: LossCopies
    seq_len: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    eval_micro_batch_size: int | None
    padded: bool
    optim: str
    upcast_on_sharding: bool
    outer_units_apart: bool
    transformers: tuple[int, ...]
    bitsandbytes: tuple[int, ...]
    names_cache: bool

    @property
    def is_adapter(self) -> bool:
        """True where a frozen base carries adapters."""
        return self.method in ("lora", "dora", "qlora")

    @property
    def sequences(self) -> int:
        """Sequences of one micro batch: a preference pair has two."""
        return self.micro_batch_size * (2 if self.stage in ("dpo", "orpo", "simpo") else 1)

    @property
    def vocab(self) -> int:
        """Rows of the output head."""
        return int(self.config["vocab_size"])


def _checkpointing(setup: TrainingSetup) -> bool | int:
    how = setup.gradient_checkpointing
    return bool(how) if isinstance(how, str) else how


def job_of(setup: TrainingSetup, spec: ModelSpec, config: Mapping[str, Any], machine: Machine) -> Job:
    """The job that a setup describes, in the regime of its engine. Raises UnsupportedError for what is not traced."""
    regime = resolve_regime(setup, spec)
    refuse(setup, spec, config, regime)
    cards = [gpu.compute_capability for gpu in machine.gpus]
    return Job(
        config=dict(config),
        stage=setup.stage,
        method=setup.method,
        ranks=max(machine.world_size, 1),
        parallelism=setup.parallelism or "none",
        workspace_bytes=workspace_bytes(machine),
        flash=all(card is None or card >= (8, 0) for card in cards),
        base_dtype=regime.trained if setup.method == "full" else regime.frozen,
        trained_dtype=regime.trained,
        adapter_dtype=regime.adapter,
        whole_dtype=regime.whole,
        autocast=regime.autocast,
        compute_dtype=regime.compute,
        quantization_bit=setup.quantization_bit if regime.quantized in ("nf4", "int8") else None,
        double_quantization=setup.double_quantization,
        kbit_upcast="none" if regime.quantized == "dense" else _upcast(regime),
        lora_rank=setup.lora_rank,
        lora_target=setup.lora_target,
        lora_dropout=setup.lora_dropout,
        dora=setup.method == "dora",
        additional_target=setup.additional_target,
        freeze_trainable_layers=setup.freeze_trainable_layers,
        names_linears=setup.engine == "llamafactory",
        experts_apart=spec.is_moe and not regime.stacked_experts,
        gradient_checkpointing=_checkpointing(setup),
        reentrant=regime.reentrant,
        attention=setup.attention,
        liger_kernel=setup.liger_kernel,
        loss=regime.loss,
        seq_len=setup.seq_len,
        micro_batch_size=setup.micro_batch_size,
        gradient_accumulation_steps=setup.gradient_accumulation_steps,
        eval_micro_batch_size=setup.eval_micro_batch_size,
        padded=setup.padded,
        optim=setup.optim,
        upcast_on_sharding=regime.upcast_frozen_on_sharding,
        outer_units_apart=version_of(setup, "accelerate") >= (1, 14),
        transformers=version_of(setup, "transformers"),
        bitsandbytes=version_of(setup, "bitsandbytes"),
        names_cache=names_cache(setup, spec),
    )


def _upcast(regime: Regime) -> KbitUpcast:
    if regime.norms != "fp32":
        return "none"
    return "all" if regime.embedding == "fp32" else "norms"


def refuse(setup: TrainingSetup, spec: ModelSpec, config: Mapping[str, Any], regime: Regime) -> None:
    """Raises UnsupportedError with the first reason for which this setup would be traced as something else."""
    for applies, sentence in REASONS:
        if applies(setup, spec, config, regime):
            raise UnsupportedError(
                sentence.format(setup=setup, spec=spec, regime=regime) + ", so it is not traced",
                hint="`plan estimate` prices it",
            )


def _wraps_experts(setup: TrainingSetup, spec: ModelSpec) -> bool:
    """Whether the installed peft (0.21) takes stacked experts for targets: by its own "all-linear", or by the names of
    shared experts' linears, which are theirs too.
    """
    moes = [run.block.moe for run in spec.runs if run.block.moe is not None]
    return bool(moes) and (setup.engine != "llamafactory" or any(moe.shared is not None for moe in moes))


Test = Callable[[TrainingSetup, ModelSpec, Mapping[str, Any], Regime], bool]
REASONS: tuple[tuple[Test, str], ...] = (
    (
        lambda s, m, c, r: s.engine not in TRAINER_ENGINES | HAND_WRITTEN,
        "engine {setup.engine!r} has model code or kernels of its own",
    ),
    (lambda s, m, c, r: s.stage not in STAGES, "stage {setup.stage!r} has no step here"),
    (
        lambda s, m, c, r: s.stage == "dpo" and s.engine != "llamafactory",
        "stage 'dpo' is known as LLaMA-Factory runs it, not as engine {setup.engine!r} does",
    ),
    (lambda s, m, c, r: s.method not in METHODS, "method {setup.method!r} has no step here"),
    (
        lambda s, m, c, r: (s.parallelism or "none") not in PARALLELISMS,
        "parallelism {setup.parallelism!r} has no process group here (none, ddp and fsdp2 have)",
    ),
    (
        lambda s, m, c, r: s.parallelism == "fsdp2" and s.stage not in ("pt", "sft"),
        "stage {setup.stage!r} under fsdp2 has no step here",
    ),
    (
        lambda s, m, c, r: s.parallelism == "fsdp2" and s.quantization_bit is not None,
        "a quantized base under fsdp2 has no stand-in here",
    ),
    (
        lambda s, m, c, r: max(s.tensor_parallel, s.pipeline_parallel, s.context_parallel, s.expert_parallel) > 1,
        "tensor, pipeline, context and expert parallelism have no step here",
    ),
    (lambda s, m, c, r: s.offload != "none", "offload {setup.offload!r} moves memory that fake tensors do not show"),
    (lambda s, m, c, r: s.activation_offload, "activation_offload moves memory that fake tensors do not show"),
    (lambda s, m, c, r: s.torch_compile, "torch_compile replaces the operations that would be traced"),
    (lambda s, m, c, r: s.unsloth, "unsloth has kernels of its own"),
    (lambda s, m, c, r: s.optimizer_in_backward, "optimizer_in_backward has no step here"),
    (
        lambda s, m, c, r: s.gradient_checkpointing == "selective",
        "gradient_checkpointing 'selective' has no step here (true, false and every n-th layer have)",
    ),
    (
        lambda s, m, c, r: r.quantized == "gptq",
        "a base quantized by another method than bitsandbytes has no stand-in here",
    ),
    (
        lambda s, m, c, r: s.optim not in OPTIMS and s.optim not in BNB_OPTIMS,
        "optim {setup.optim!r} has no step here",
    ),
    (lambda s, m, c, r: r.loss not in LOSSES, "the loss path of this engine and version ({regime.loss}) is not built"),
    (
        lambda s, m, c, r: r.loss == "in_model" and version_of(s, "transformers") < (4, 46),
        "transformers before 4.46 computes its loss in another place",
    ),
    (
        lambda s, m, c, r: r.repeat_kv,
        "transformers before 4.48 repeats keys and values, which the installed one does not",
    ),
    (
        lambda s, m, c, r: not r.stacked_experts and m.is_moe and m.model_type != "mixtral",
        "transformers before 5 keeps experts apart, which the installed one does not",
    ),
    (
        lambda s, m, c, r: s.is_adapter and s.lora_target == "all" and r.stacked_experts and _wraps_experts(s, m),
        "lora_target 'all' reaches stacked experts in the installed peft and not in the engine's; name the modules",
    ),
    (
        lambda s, m, c, r: "text_config" in c or "vision_config" in c,
        "model {setup.model!r} sees images, and its tower is not traced; trace the config.json of its text part",
    ),
    (
        lambda s, m, c, r: s.padded and s.attention == "flash_attention_2",
        "padded batches under flash_attention_2 are unpadded by what is in the data",
    ),
)
