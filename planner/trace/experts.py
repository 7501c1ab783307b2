"""Experts as transformers 4 kept them: Linear modules apart, called one after another for the tokens sent to them.

Which tokens go where depends on data; here every expert gets the same number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import one_hot, silu, softmax


class Expert(torch.nn.Module):
    """Mixtral's w1, w2 and w3."""

    def __init__(self, hidden: int, inner: int, dtype: torch.dtype) -> None:
        super().__init__()
        options: dict[str, Any] = {"bias": False, "dtype": dtype, "device": "cuda:0"}
        self.w1 = torch.nn.Linear(hidden, inner, **options)
        self.w2 = torch.nn.Linear(inner, hidden, **options)
        self.w3 = torch.nn.Linear(hidden, inner, **options)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The product of two projections, projected back."""
        out: torch.Tensor = self.w2(silu(self.w1(hidden)) * self.w3(hidden))
        return out


class SparseBlock(torch.nn.Module):
    """Mixtral's expert block of transformers 4.36 to 4.57."""

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        super().__init__()
        count, hidden = config.num_local_experts, config.hidden_size
        self.chosen = config.num_experts_per_tok
        self.gate = torch.nn.Linear(hidden, count, bias=False, dtype=dtype, device="cuda:0")
        self.experts = torch.nn.ModuleList(Expert(hidden, config.intermediate_size, dtype) for _ in range(count))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Every expert's share of the tokens, weighted and added at its place."""
        shape, flat = hidden.shape, hidden.view(-1, hidden.shape[-1])
        logits = self.gate(flat)
        weights, chosen = torch.topk(softmax(logits, dim=1, dtype=torch.float), self.chosen, dim=-1)
        weights /= weights.sum(dim=-1, keepdim=True)
        weights = weights.to(hidden.dtype)
        out = torch.zeros_like(flat)
        mask = one_hot(chosen, num_classes=len(self.experts)).permute(2, 1, 0)
        each = flat.shape[0] * self.chosen // len(self.experts)
        for expert in self.experts:
            rank, place = (torch.zeros(each, dtype=torch.int64, device=flat.device) for _ in range(2))
            current = flat[None, place].reshape(-1, flat.shape[-1])
            out.index_add_(0, place, (expert(current) * weights[place, rank, None]).to(hidden.dtype))
        del mask
        return out.reshape(shape)


def take_apart(model: Any) -> None:
    """Puts these blocks in place of the installed Mixtral's, whose experts are stacked."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "MixtralSparseMoeBlock":
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, SparseBlock(model.config, next(module.parameters()).dtype))
