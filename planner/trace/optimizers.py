"""Optimizers as Trainer makes them: torch's and transformers' own code, and bitsandbytes' by what it allocates."""

from __future__ import annotations

from typing import Any

import torch

from planner.trace.job import BNB_OPTIMS, Job

SMALLEST_8BIT, SMALLEST_PAGED, BLOCK = 4096, 100_000, 256
WEIGHT_DECAY = 0.0  # Trainer's default


def make_optimizer(trained: list[Any], embeddings: set[int], job: Job) -> Any:
    """The optimizer over what trains; ``embeddings``: ids of those that are. Its first step makes its states."""
    groups = _groups(trained)
    if job.optim in BNB_OPTIMS:
        return Bitsandbytes(groups, embeddings, *BNB_OPTIMS[job.optim])
    if job.optim == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(groups, scale_parameter=False, relative_step=False, lr=1e-4)
    makers: dict[str, Any] = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "rmsprop": torch.optim.RMSprop}
    if job.optim in makers:
        return makers[job.optim](groups, lr=1e-4, foreach=True)
    how = {"fused": True} if job.optim == "adamw_torch_fused" else {"foreach": True}
    return torch.optim.AdamW(groups, lr=1e-4, **how)


def _groups(trained: list[Any]) -> list[dict[str, Any]]:
    matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class Bitsandbytes:
    """States of bitsandbytes' optimizers: its kernels update in place (optim/optimizer.py, Optimizer2State).

    8 bit from 4,096 values on with a scale per 256, except embeddings, which Trainer keeps in 32 bits; paged buffers
    of 100,000 values and more are unified memory, outside of the allocator; two code books are shared.
    """

    def __init__(self, groups: list[dict[str, Any]], wide: set[int], moments: int, bits: int, paged: bool) -> None:
        self.param_groups, self.moments, self.bits, self.paged = groups, moments, bits, paged
        self.wide = wide
        self.state: dict[int, list[torch.Tensor]] = {}
        self.code_books: list[torch.Tensor] = []

    def step(self) -> None:
        """Makes the states where they are missing."""
        if self.bits == 8 and not self.code_books:
            self.code_books = [torch.empty(256, dtype=torch.float32, device="cuda:0") for _ in range(self.moments)]
        for group in self.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in self.state and parameter.grad is not None:
                    self.state[id(parameter)] = self._made(parameter)

    def _made(self, parameter: torch.Tensor) -> list[torch.Tensor]:
        count = parameter.numel()
        small = self.bits == 8 and count >= SMALLEST_8BIT and id(parameter) not in self.wide
        made = []
        for _ in range(self.moments):
            if not (self.paged and count >= SMALLEST_PAGED):
                made.append(parameter.new_empty(count, dtype=torch.uint8 if small else torch.float32))
            if small:
                made.append(parameter.new_empty(-(-count // BLOCK), dtype=torch.float32))
        return made

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Lets go of the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
