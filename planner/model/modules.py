"""The Linear modules of a block by name: what LoRA targets, quantization replaces and matmuls read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal[
    "q", "k", "v", "qkv", "o",  # attention
    "q_a", "q_b", "kv_a", "kv_b",  # latent attention (MLA)
    "gate", "up", "gate_up", "down",  # dense feed-forward
    "router", "expert_gate", "expert_up", "expert_gate_up", "expert_down",
    "shared_gate", "shared_up", "shared_gate_up", "shared_down", "shared_router",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Linear:
    """``copies`` weights of shape (outputs, inputs); ``name`` as peft sees it (``q_proj``).

    ``stacked``: the weight is a slice of a 3-D parameter and no nn.Linear, so neither LoRA's "all" nor
    bitsandbytes reaches it.
    """

    name: str
    role: Role
    inputs: int
    outputs: int
    bias: bool = False
    copies: int = 1
    stacked: bool = False

    @property
    def parameters(self) -> int:
        """Weights and biases of all copies."""
        return self.copies * (self.inputs * self.outputs + (self.outputs if self.bias else 0))
