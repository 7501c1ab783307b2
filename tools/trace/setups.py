"""One row to trace: which model, trained how."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class Setup:
    """Names follow TrainingSetup; ``config`` is a transformers config dictionary with ``model_type``."""

    config: dict[str, Any]
    name: str = ""
    stage: str = "sft"
    method: str = "full"
    lora_rank: int = 8
    lora_target: str | tuple[str, ...] = "all"
    lora_dropout: float = 0.0
    dora: bool = False
    additional_target: tuple[str, ...] = ()
    adapter_dtype: str = "fp32"
    param_dtype: str = "bf16"
    autocast: str | None = None
    kbit_upcast: str = "none"
    double_quantization: bool = True
    gradient_checkpointing: bool = False
    use_reentrant: bool = False
    attention: str = "sdpa"
    experts: str | None = None
    liger_kernel: bool = False
    fused_linear: bool = False
    seq_len: int = 2048
    micro_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    optim: str = "adamw_torch_fused"
    loss: str = "torch"
    padded: bool = False
    max_grad_norm: float = 1.0
    dropout: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # Liger's own switches, such as {"rope": false}

    @property
    def layers(self) -> int:
        """Decoder blocks of the config, whatever it calls them."""
        for key in ("num_hidden_layers", "n_layer", "num_layers"):
            if key in self.config:
                return int(self.config[key])
        raise KeyError("the config states no number of layers")

    def with_layers(self, count: int) -> Setup:
        """The same setup on a model of ``count`` blocks."""
        config = dict(self.config)
        for key in ("num_hidden_layers", "n_layer", "num_layers"):
            if key in config:
                config[key] = count
        for key in ("layer_types", "mlp_layer_types", "no_rope_layers"):
            if isinstance(config.get(key), list):
                config[key] = config[key][:count]
        return Setup(**{**asdict(self), "config": config})


def read_setup(row: dict[str, Any]) -> Setup:
    """A row of setups.jsonl; unknown fields are an error that names them."""
    known = {f.name for f in fields(Setup)}
    unknown = sorted(set(row) - known)
    if unknown:
        raise ValueError(f"unknown fields: {', '.join(unknown)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    return Setup(**values)
