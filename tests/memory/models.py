"""A 7B and an 8B model from their config dicts, priced up to the layout."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from planner.memory.layout import Layout, Unit
from planner.memory.optimizer import OptimizerCost, optimizer_cost
from planner.memory.regime import Regime, resolve_regime
from planner.memory.sharding import lay_out
from planner.memory.units import Parts, build_parts
from planner.model.interpret import interpret
from planner.model.spec import ModelSpec
from planner.training import TrainingSetup

_SHAPE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "mistral-7b": _SHAPE | {"model_type": "mistral", "vocab_size": 32000},
    "llama-3-8b": _SHAPE | {"model_type": "llama", "vocab_size": 128256},
    "mixtral-8x7b": _SHAPE
    | {"model_type": "mixtral", "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2},
}


@lru_cache(maxsize=8)
def spec_of(name: str) -> ModelSpec:
    return interpret(CONFIGS[name], id=name)


class Priced:
    """A setup on ``ranks`` GPUs up to its layout."""

    def __init__(self, ranks: int, *, model: str = "llama-3-8b", **fields: Any) -> None:
        self.setup = TrainingSetup(model=model, **fields)
        self.spec = spec_of(model)
        self.ranks = ranks
        self.regime: Regime = resolve_regime(self.setup, self.spec)
        self.parts: Parts = build_parts(self.setup, self.spec, self.regime)
        self.cost: OptimizerCost = optimizer_cost(self.setup, self.regime, self.parts.tensors)
        self.layout: Layout = lay_out(
            self.setup, self.regime, self.units, self.cost, ranks, min(ranks, 8), self.spec.hidden
        )

    @property
    def units(self) -> tuple[Unit, ...]:
        return self.parts.units

    @property
    def at_step(self) -> int:
        """Bytes while the optimizer runs."""
        layout = self.layout
        gradients = layout.gradients_at_step
        assert gradients is not None
        return layout.weights + layout.optimizer + layout.resident_buffers + gradients + layout.step_temporaries

    @property
    def constant_in_backward(self) -> int:
        """Bytes in backward that do not depend on the batch, a layer's own window apart."""
        layout = self.layout
        gradients = layout.gradients_carried + sum(u.count * layout.gradients[u.name] for u in self.units)
        held = layout.weights + layout.optimizer + layout.resident_buffers
        return held + gradients + layout.gathered_backward + layout.reducing
