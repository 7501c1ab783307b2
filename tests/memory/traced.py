"""Rows of tests/data/traced.jsonl as setups: traces of the real training step on fake tensors (tools/trace)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from planner.hardware.parse import parse_machine
from planner.memory.estimate import estimate
from planner.memory.overhead import workspace_bytes
from planner.memory.result import Estimate
from planner.model.interpret import interpret
from planner.model.spec import ModelSpec
from planner.training import TrainingSetup

PATH = Path(__file__).resolve().parent.parent / "data" / "traced.jsonl"
MACHINE = parse_machine("1xA100-80GB")
WORKSPACE_BYTES = workspace_bytes(MACHINE)  # cuBLAS workspaces: inside an estimate, absent from a trace
SAME_NAME = (
    "stage", "method", "lora_rank", "lora_target", "lora_dropout", "kbit_upcast", "gradient_accumulation_steps",
    "additional_target", "double_quantization", "liger_kernel", "padded", "seq_len", "micro_batch_size", "attention",
    "gradient_checkpointing",
)  # fmt: skip
LOSSES = {"transformers-4.48": {"transformers": "4.48"}}
STACKED_EXPERTS = frozenset({"mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3"})


@dataclass(frozen=True)
class Traced:
    """One traced setup."""

    row: dict[str, Any]

    @property
    def asked(self) -> dict[str, Any]:
        """What was traced, in the tracer's own words."""
        asked: dict[str, Any] = self.row["setup"]
        return asked

    @property
    def name(self) -> str:
        return str(self.asked["name"])

    @property
    def model_type(self) -> str:
        return str(self.asked["config"]["model_type"])

    @property
    def group(self) -> str:
        """The mode, without the family, the number of layers and checkpointing."""
        mode = re.split(r"-[24]-(?=full|lora|dora|qlora|dpo|orpo|rm|kto|freeze)", self.name)[-1]
        mode = mode.removesuffix("-reentrant").removesuffix("-gc")
        experts = any(word in self.model_type for word in ("mixtral", "moe", "deepseek", "gpt_oss"))
        return f"{mode}, experts" if experts else mode

    @property
    def peak_bytes(self) -> int:
        return int(self.row["peak_allocated_bytes"])

    @property
    def tokens(self) -> int:
        pairs = 2 if self.asked.get("stage") == "dpo" else 1
        return int(self.asked.get("micro_batch_size", 1) * self.asked.get("seq_len", 2048) * pairs)

    @property
    def unstated(self) -> str | None:
        """Why a setup of the contract cannot say this, or None where one can."""
        asked = self.asked
        if asked.get("optim") == "adamw_forloop":
            return "transformers has no name for AdamW's for-loop"
        wraps = asked.get("method", "full") == "lora" and asked.get("lora_target", "all") == "all"
        if wraps and self.model_type in STACKED_EXPERTS:
            return 'peft 0.21 reaches stacked experts with "all-linear"; LLaMA-Factory\'s peft 0.18 does not'
        return None

    @property
    def spec(self) -> ModelSpec:
        return replace(interpret(self.asked["config"], id=self.name), stored_dtype="bf16")

    @property
    def setup(self) -> TrainingSetup:
        asked = self.asked
        fields = {name: asked[name] for name in SAME_NAME if name in asked}
        fields["method"] = "dora" if asked.get("dora") else asked.get("method", "full")
        fields.setdefault("gradient_checkpointing", False)
        if fields["method"] == "full":
            fields["param_dtype"] = asked.get("param_dtype", "bf16")
            fields["compute_dtype"] = asked.get("autocast") or fields["param_dtype"]
        else:
            fields["adapter_dtype"] = asked.get("adapter_dtype", "fp32")
            fields["compute_dtype"] = "bf16"
            fields.setdefault("kbit_upcast", "none")
        versions: dict[str, str] = dict(LOSSES.get(asked.get("loss", "torch"), {}))
        if asked.get("use_reentrant"):
            versions["transformers"] = "4.57"  # the newest line that checkpoints reentrantly
        if asked.get("liger_kernel"):
            fields["loss"] = "fused_linear" if asked.get("fused_linear") else "torch"
        # the tracer casts all that trains, as LLaMA-Factory does; peft alone copies whole modules as they are
        engine = "llamafactory" if asked.get("additional_target") else "transformers"
        if asked.get("autocast") is None and engine == "transformers" and fields["method"] != "full":
            engine = "transformers-pure"
        return TrainingSetup(
            model=self.name, engine=engine, optim=asked.get("optim", "adamw_torch_fused"), versions=versions,
            **fields,
        )  # fmt: skip

    @property
    def estimate(self) -> Estimate:
        return _estimate(self.name)

    @property
    def error(self) -> float:
        """Predicted / traced - 1, without cuBLAS workspaces."""
        return (self.estimate.allocated_bytes - WORKSPACE_BYTES) / self.peak_bytes - 1


@lru_cache(maxsize=1)
def all_rows() -> dict[str, Traced]:
    """Every committed row by its name; a later row of the same name wins."""
    lines = PATH.read_text(encoding="utf-8").splitlines()
    return {row.name: row for row in (Traced(json.loads(line)) for line in lines if line.strip())}


@lru_cache(maxsize=4096)
def _estimate(name: str) -> Estimate:
    row = all_rows()[name]
    return estimate(row.setup, row.spec, MACHINE)


@lru_cache(maxsize=1)
def stated() -> tuple[Traced, ...]:
    """The rows that the contract can state."""
    return tuple(row for row in all_rows().values() if row.unstated is None)
