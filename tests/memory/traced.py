"""Rows of tests/data/traced.jsonl: traces of the real training step on fake tensors, in the contract's fields.

``make trace-matrix`` writes them (tools/trace_matrix.py).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from planner.hardware.machine import Machine
from planner.hardware.parse import parse_machine
from planner.memory.estimate import estimate
from planner.memory.result import Estimate
from planner.model.interpret import interpret
from planner.model.spec import ModelSpec
from planner.training import TrainingSetup, setup_from_mapping

PATH = Path(__file__).resolve().parent.parent / "data" / "traced.jsonl"
MODES = r"-\d+-(?=full|lora|dora|qlora|dpo|orpo|simpo|freeze)"


@dataclass(frozen=True)
class Traced:
    """One traced setup."""

    row: dict[str, Any]

    @property
    def asked(self) -> dict[str, Any]:
        """The setup as it was stated."""
        asked: dict[str, Any] = self.row["setup"]
        return asked

    @property
    def name(self) -> str:
        return str(self.row["name"])

    @property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.row["config"]
        return config

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])

    @property
    def group(self) -> str:
        """The mode, without the family, the number of layers and checkpointing."""
        mode = re.split(MODES, self.name, maxsplit=1)[-1]
        mode = mode.removesuffix("-reentrant").removesuffix("-gc")
        experts = any(
            word in self.model_type for word in ("mixtral", "_moe", "deepseek", "gpt_oss", "minimax", "qwen3_next")
        )
        return f"{mode}, experts" if experts else mode

    @property
    def peak_bytes(self) -> int:
        return int(self.row["allocated_bytes"])

    @property
    def tokens(self) -> int:
        return self.setup.micro_batch_size * self.setup.sequences_per_sample * self.setup.seq_len

    @property
    def machine(self) -> Machine:
        return parse_machine(str(self.asked["gpus"]))

    @property
    def spec(self) -> ModelSpec:
        return replace(interpret(self.config, id=self.name), stored_dtype="bf16")

    @property
    def setup(self) -> TrainingSetup:
        return setup_from_mapping(self.asked)

    @property
    def estimate(self) -> Estimate:
        return _estimate(self.name)

    @property
    def error(self) -> float:
        """Predicted / traced - 1."""
        return self.estimate.allocated_bytes / self.peak_bytes - 1

    def phase_error(self, phase: str) -> float:
        """The same for one phase."""
        return self.estimate.phases[phase].total / int(self.row["phases"][phase]) - 1

    @property
    def same_phase(self) -> bool:
        """The phase of the peak, or one as high: bytes of the two phases within a third of a percent."""
        own, other = self.row["peak_phase"], self.estimate.peak_phase
        traced = self.row["phases"]
        return own == other or (other in traced and traced[other] >= self.peak_bytes * (1 - TIE))


TIE = 0.003


@lru_cache(maxsize=1)
def all_rows() -> dict[str, Traced]:
    """Every committed row by its name."""
    lines = PATH.read_text(encoding="utf-8").splitlines()
    return {row.name: row for row in (Traced(json.loads(line)) for line in lines if line.strip())}


@lru_cache(maxsize=4096)
def _estimate(name: str) -> Estimate:
    row = all_rows()[name]
    return estimate(row.setup, row.spec, row.machine)
