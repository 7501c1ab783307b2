"""TrainingSetup: exactly what is to be trained and how, in the contract's fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from planner.errors import LONGEST_SHOWN, InputError, nearest, shown

Stage = Literal["pt", "sft", "rm", "dpo", "kto", "orpo", "simpo", "ppo", "grpo"]
Method = Literal["full", "freeze", "lora", "dora", "qlora", "oft", "galore", "apollo", "badam"]
Dtype = Literal["bf16", "fp16", "fp32"]
AttentionKernel = Literal["eager", "sdpa", "flash_attention_2"]
LossPath = Literal["torch", "fused", "chunked", "fused_linear"]
Parallelism = Literal["none", "ddp", "zero1", "zero2", "zero3", "fsdp", "fsdp2"]
Offload = Literal["none", "optimizer", "params", "all", "nvme"]
KbitUpcast = Literal["none", "norms", "all"]
BadamMode = Literal["layer", "ratio"]
Targets = Literal["all"] | tuple[str, ...]

ADAPTER_METHODS = frozenset({"lora", "dora", "qlora", "oft"})
PAIR_STAGES = frozenset({"dpo", "orpo", "simpo", "rm"})
REFERENCE_STAGES = frozenset({"dpo", "kto", "ppo"})  # those that compare with a reference model
ZERO = frozenset({"zero1", "zero2", "zero3"})
FSDP = frozenset({"fsdp", "fsdp2"})
OPTIMIZER_OFFLOADS = frozenset({"optimizer", "all", "nvme"})
PARAM_OFFLOADS = frozenset({"params", "all", "nvme"})
DTYPE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
MOST = 2**31 - 1  # no length, rank or batch is larger than what PyTorch indexes with 32 bits


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """One fully stated training configuration; field names and defaults are the contract's.

    ``None`` means "what the engine does by itself"; ``planner.memory.regime`` resolves it.
    Lengths are tokens per sample, batch sizes samples per device and step. Words such as "8" or "true" are read as
    numbers and flags. Raises InputError: one sentence with the field, the value and the nearest valid choice.
    """

    model: str
    stage: Stage = "sft"
    pref_loss: str | None = None
    ref_model: str | None = None
    reward_model: str | None = None
    method: Method = "lora"
    freeze_trainable_layers: int = 2
    galore_rank: int = 16
    apollo_rank: int = 16
    badam_mode: BadamMode = "layer"
    lora_rank: int = 8
    lora_target: Targets = "all"
    lora_dropout: float = 0.0
    additional_target: tuple[str, ...] = ()
    quantization_bit: Literal[4, 8] | None = None
    double_quantization: bool = True
    quantization_method: str = "bnb"
    seq_len: int = 2048
    micro_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    eval_micro_batch_size: int | None = None
    packing: bool = False
    padded: bool = False
    optim: str = "adamw_torch_fused"
    optimizer_in_backward: bool = False
    torch_compile: bool = False
    activation_offload: bool = False
    param_dtype: Dtype | None = None
    compute_dtype: Dtype | None = None
    adapter_dtype: Dtype | None = None
    kbit_upcast: KbitUpcast | None = None
    gradient_checkpointing: bool | int | Literal["selective"] = True
    attention: AttentionKernel = "sdpa"
    liger_kernel: bool = False
    unsloth: bool = False
    loss: LossPath | None = None
    gpus: str | None = None
    parallelism: Parallelism | None = None
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    context_parallel: int = 1
    expert_parallel: int = 1
    offload: Offload = "none"
    ds_config: dict[str, Any] | str | None = None
    engine: str = "llamafactory"
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = self.__dict__
        for name, read in READERS.items():
            values[name] = read(name, values[name])
        self._complete()

    def _complete(self) -> None:
        if self.method == "qlora" and self.quantization_bit is None:
            self.__dict__["quantization_bit"] = 4
        if self.stage == "dpo" and self.pref_loss in ("orpo", "simpo"):  # LLaMA-Factory's name for those stages
            self.__dict__["stage"] = self.pref_loss

    @property
    def is_adapter(self) -> bool:
        """True where a frozen base carries trained adapters."""
        return self.method in ADAPTER_METHODS

    @property
    def sequences_per_sample(self) -> int:
        """Preference stages run the chosen and the rejected answer in one batch."""
        return 2 if self.stage in PAIR_STAGES else 1

    def but(self, **changes: Any) -> TrainingSetup:
        """A copy with some fields changed; only these are read again. Raises InputError as the constructor does."""
        copy = object.__new__(TrainingSetup)
        values = copy.__dict__
        values.update(self.__dict__)
        for name, value in changes.items():
            values[name] = READERS[name](name, value)
        copy._complete()
        return copy

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values of every field, in the contract's order."""
        return {name: _plain(getattr(self, name)) for name in FIELD_NAMES}


AUTO_ENGINE = "auto"  # a request may leave the engine open, a setup never does
Reader = Callable[[str, Any], Any]
_WHOLE = re.compile(r"[+-]?\d+")
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")  # no file, no name and no screen takes these


def _wrong(name: str, value: Any, wanted: str) -> InputError:
    return InputError(f"{name} {shown(value)} is not valid: {wanted}")


def _word(literal: Any) -> Reader:
    choices = get_args(literal)

    def read(name: str, value: Any) -> Any:
        if value in choices:
            return value
        close = nearest(value, choices) if isinstance(value, str) else []
        offer = f"did you mean {close[0]}?" if close else f"valid: {', '.join(choices)}"
        raise InputError(f"{name} {shown(value)} is not known; {offer}")

    return read


def _number(least: int) -> Reader:
    def read(name: str, value: Any) -> int:
        number = value
        if isinstance(value, str):
            number = int(value) if len(value) <= LONGEST_SHOWN and _WHOLE.fullmatch(value.strip()) else None
        elif isinstance(value, float) and value.is_integer():
            number = int(value)
        if type(number) is not int or number < least:
            raise _wrong(name, value, f"it must be a whole number, {least} or more")
        if number > MOST:
            raise _wrong(name, value, f"it must be {MOST} or less")
        return number

    return read


def _share(name: str, value: Any) -> float:
    try:
        share = float(value)
    except (TypeError, ValueError, OverflowError):
        share = -1.0
    if isinstance(value, bool) or not 0 <= share < 1:
        raise _wrong(name, value, "it must be a number from 0 to below 1")
    return share


FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _flag(name: str, value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    if str(value).lower() not in FLAGS or isinstance(value, float):
        raise _wrong(name, value, "it must be true or false")
    return FLAGS[str(value).lower()]


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value or _UNWRITABLE.search(value):
        raise _wrong(name, value, "it must be a word")
    return value


def _names(name: str, value: Any) -> tuple[str, ...]:
    """``"q_proj,v_proj"`` and lists become a tuple of module names."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise _wrong(name, value, "it must be a list of module names")
    return tuple(part.strip() for part in parts if part.strip())


def _targets(name: str, value: Any) -> Targets:
    names = _names(name, value)
    if not names:
        raise _wrong(name, value, "it must be all or a list of module names")
    return "all" if names == ("all",) else names


def _bits(name: str, value: Any) -> int:
    if str(value) not in ("4", "8"):
        raise _wrong(name, value, "it must be 4 or 8")
    return int(value)


def _checkpointing(name: str, value: Any) -> bool | int | str:
    """true, false, selective, or a number n for every n-th layer."""
    words: dict[str, bool | str] = {"selective": "selective", "full": True, "none": False, **FLAGS}
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, str) or value == 0 else ""
    if (isinstance(value, int | float) and value) or (word.isdecimal() and word != "0"):
        return int(_POSITIVE(name, value))
    if word not in words:
        raise _wrong(name, value, "it must be true, false, selective or a number of layers")
    return words[word]


def _versions(name: str, value: Any) -> dict[str, str]:
    wanted = 'it must map packages to versions, such as {"transformers": "4.48"}'
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise _wrong(name, value, wanted)
    versions = {package: str(version) for package, version in value.items()}
    if not all(version[:1].isdecimal() for version in versions.values()):
        raise _wrong(name, value, wanted)
    return versions


def _ds_config(name: str, value: Any) -> dict[str, Any] | str:
    if isinstance(value, Mapping):
        return dict(value)
    return _text(name, value)


def _engine(name: str, value: Any) -> str:
    text = _text(name, value)
    if text == AUTO_ENGINE:
        raise InputError("engine auto compares engines, which only a plan does: name one here, such as llamafactory")
    return text


def _optional(read: Reader) -> Reader:
    return lambda name, value: None if value is None else read(name, value)


_DTYPE = _optional(_word(Dtype))
_POSITIVE = _number(1)
READERS: dict[str, Reader] = {
    "model": _text,
    "stage": _word(Stage),
    "pref_loss": _optional(_text),
    "ref_model": _optional(_text),
    "reward_model": _optional(_text),
    "method": _word(Method),
    "freeze_trainable_layers": _POSITIVE,
    "galore_rank": _POSITIVE,
    "apollo_rank": _POSITIVE,
    "badam_mode": _word(BadamMode),
    "lora_rank": _POSITIVE,
    "lora_target": _targets,
    "lora_dropout": _share,
    "additional_target": _names,
    "quantization_bit": _optional(_bits),
    "double_quantization": _flag,
    "quantization_method": _text,
    "seq_len": _POSITIVE,
    "micro_batch_size": _POSITIVE,
    "gradient_accumulation_steps": _POSITIVE,
    "eval_micro_batch_size": _optional(_POSITIVE),
    "packing": _flag,
    "padded": _flag,
    "optim": _text,
    "optimizer_in_backward": _flag,
    "torch_compile": _flag,
    "activation_offload": _flag,
    "param_dtype": _DTYPE,
    "compute_dtype": _DTYPE,
    "adapter_dtype": _DTYPE,
    "kbit_upcast": _optional(_word(KbitUpcast)),
    "gradient_checkpointing": _checkpointing,
    "attention": _word(AttentionKernel),
    "liger_kernel": _flag,
    "unsloth": _flag,
    "loss": _optional(_word(LossPath)),
    "gpus": _optional(_text),
    "parallelism": _optional(_word(Parallelism)),
    "tensor_parallel": _POSITIVE,
    "pipeline_parallel": _POSITIVE,
    "context_parallel": _POSITIVE,
    "expert_parallel": _POSITIVE,
    "offload": _word(Offload),
    "ds_config": _optional(_ds_config),
    "engine": _engine,
    "versions": _versions,
}
FIELD_NAMES: tuple[str, ...] = tuple(READERS)


def setup_from_mapping(raw: Mapping[str, Any], *, place: str = "setup") -> TrainingSetup:
    """Validate one JSON object or flag set; ``place`` (a file and line, say) opens the sentence.

    Raises InputError: one sentence with the value, the field and the nearest valid choice.
    """
    for name in raw:
        if name not in READERS:
            close = nearest(str(name), FIELD_NAMES)
            offer = f"; did you mean {close[0]}?" if close else ""
            raise InputError(f"{place}: field {name!r} is not known{offer}")
    if not raw.get("model"):
        raise InputError(f"{place}: model is missing; name one, such as model=7B or Qwen2.5-7B")
    try:
        return TrainingSetup(**{name: value for name, value in raw.items() if value is not None})
    except InputError as problem:
        raise InputError(f"{place}: {problem.sentence}") from None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
