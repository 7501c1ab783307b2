"""TrainingSetup: exactly what is to be trained and how, in the contract's fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields, replace
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from planner.errors import InputError, nearest

Stage = Literal["pt", "sft", "rm", "dpo", "kto", "orpo", "simpo", "ppo", "grpo"]
Method = Literal["full", "freeze", "lora", "dora", "qlora", "oft", "galore", "apollo", "badam"]
Dtype = Literal["bf16", "fp16", "fp32"]
AttentionKernel = Literal["eager", "sdpa", "flash_attention_2"]
LossPath = Literal["torch", "fused", "chunked", "fused_linear"]
Parallelism = Literal["none", "ddp", "zero1", "zero2", "zero3", "fsdp", "fsdp2"]
Offload = Literal["none", "optimizer", "params", "all", "nvme"]
KbitUpcast = Literal["none", "norms", "all"]

ADAPTER_METHODS = frozenset({"lora", "dora", "qlora", "oft"})
PAIR_STAGES = frozenset({"dpo", "orpo", "simpo", "rm"})
DTYPE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


def _as_names(value: Any) -> Any:
    """``"all"`` stays, ``"q_proj,v_proj"`` and lists become a tuple of module names."""
    if isinstance(value, str):
        names = tuple(part.strip() for part in value.split(",") if part.strip())
        return "all" if names == ("all",) else names
    return tuple(value) if isinstance(value, list) else value


def _as_checkpointing(value: Any) -> Any:
    """The CLI hands over words: true, false, selective, or a number n for every n-th layer."""
    if not isinstance(value, str):
        return value
    known: dict[str, Any] = {"true": True, "false": False, "on": True, "off": False, "full": True, "none": False}
    lowered = value.strip().lower()
    return known.get(lowered, int(lowered) if lowered.isdigit() else lowered)


def _as_number(value: Any) -> Any:
    """A literal number arrives from the command line as a word."""
    return int(value) if isinstance(value, str) and value.strip().isdigit() else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_names)]
Targets = Annotated[Literal["all"] | tuple[str, ...], BeforeValidator(_as_names)]
Checkpointing = Annotated[bool | Literal["selective"] | Annotated[int, Field(ge=1)], BeforeValidator(_as_checkpointing)]
Count = Annotated[int, Field(ge=1)]
Bits = Annotated[Literal[4, 8], BeforeValidator(_as_number)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"), kw_only=True)
class TrainingSetup:
    """One fully stated training configuration; field names and defaults are the contract's.

    ``None`` means "what the engine does by itself"; ``planner.memory.regime`` resolves it.
    Lengths are tokens per sample, batch sizes samples per device and step.
    """

    model: str
    stage: Stage = "sft"
    pref_loss: str | None = None
    ref_model: str | None = None
    reward_model: str | None = None
    method: Method = "lora"
    freeze_trainable_layers: int = 2
    galore_rank: Count = 16
    apollo_rank: Count = 16
    badam_mode: Literal["layer", "ratio"] = "layer"
    lora_rank: Count = 8
    lora_target: Targets = "all"
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    additional_target: Names = ()
    quantization_bit: Bits | None = None
    double_quantization: bool = True
    quantization_method: str = "bnb"
    seq_len: Count = 2048
    micro_batch_size: Count = 1
    gradient_accumulation_steps: Count = 1
    eval_micro_batch_size: Count | None = None
    packing: bool = False
    padded: bool = False
    optim: str = "adamw_torch_fused"
    optimizer_in_backward: bool = False
    torch_compile: bool = False
    activation_offload: bool = False
    param_dtype: Dtype | None = None
    compute_dtype: Dtype | None = None
    adapter_dtype: Literal["bf16", "fp16", "fp32"] | None = None
    kbit_upcast: KbitUpcast | None = None
    gradient_checkpointing: Checkpointing = True
    attention: AttentionKernel = "sdpa"
    liger_kernel: bool = False
    unsloth: bool = False
    loss: LossPath | None = None
    gpus: str | None = None
    parallelism: Parallelism | None = None
    tensor_parallel: Count = 1
    pipeline_parallel: Count = 1
    context_parallel: Count = 1
    expert_parallel: Count = 1
    offload: Offload = "none"
    ds_config: dict[str, Any] | str | None = None
    engine: str = "llamafactory"
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method == "qlora" and self.quantization_bit is None:
            object.__setattr__(self, "quantization_bit", 4)

    @property
    def is_adapter(self) -> bool:
        """True where a frozen base carries trained adapters."""
        return self.method in ADAPTER_METHODS

    @property
    def sequences_per_sample(self) -> int:
        """Preference stages run the chosen and the rejected answer in one batch."""
        return 2 if self.stage in PAIR_STAGES else 1

    def but(self, **changes: Any) -> TrainingSetup:
        """A copy with some fields changed (validated again)."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values of every field, in the contract's order."""
        return {name: _plain(getattr(self, name)) for name in FIELD_NAMES}


FIELD_NAMES: tuple[str, ...] = tuple(f.name for f in fields(TrainingSetup))


def setup_from_mapping(raw: Mapping[str, Any], *, place: str = "setup") -> TrainingSetup:
    """Validate one JSON object or flag set; ``place`` (a file and line, say) opens the sentence.

    Raises InputError: one sentence with the value, the field and the nearest valid choice.
    """
    for name in raw:
        if name not in FIELD_NAMES:
            close = nearest(str(name), FIELD_NAMES)
            offer = f"; did you mean {close[0]}?" if close else ""
            raise InputError(f"{place}: field {name!r} is not known{offer}")
    if not raw.get("model"):
        raise InputError(f"{place}: model is missing; name one, such as model=7B or Qwen2.5-7B")
    try:
        return TrainingSetup(**{name: value for name, value in raw.items() if value is not None})
    except ValidationError as problem:
        raise InputError(f"{place}: {_sentence(problem)}") from None


def _sentence(problem: ValidationError) -> str:
    first = problem.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else "setup"
    value = first.get("input")
    choices = choices_of(name)
    if choices and isinstance(value, str):
        close = nearest(value, choices)
        offer = f"did you mean {close[0]}?" if close else f"valid: {', '.join(choices)}"
        return f"{name} {value!r} is not known; {offer}"
    return f"{name} {value!r} is not valid: {first['msg'][0].lower()}{first['msg'][1:]}"


def choices_of(name: str) -> tuple[str, ...]:
    """The words that a field takes, empty where it takes numbers or free names."""
    literal = {
        "stage": Stage,
        "method": Method,
        "attention": AttentionKernel,
        "loss": LossPath,
        "parallelism": Parallelism,
        "offload": Offload,
        "kbit_upcast": KbitUpcast,
        "param_dtype": Dtype,
        "compute_dtype": Dtype,
        "adapter_dtype": Dtype,
    }.get(name)
    return tuple(get_args(literal)) if literal is not None else ()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
