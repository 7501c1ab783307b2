"""The DPO step as LLaMA-Factory 0.9.5 runs it: chosen and rejected in one batch, then the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Forward = Callable[..., Any]


def dpo_loss(forward: Forward, reference: Forward, batch: dict[str, Any]) -> torch.Tensor:
    """Loss of one batch of pairs; the policy's fp32 logits are held to the end, for its metrics."""
    policy, held = _logps(forward, batch)
    with torch.no_grad():
        base, _ = _logps(reference, batch)
    chosen, rejected = policy.chunk(2)
    base_chosen, base_rejected = base.chunk(2)
    margin = (chosen - rejected) - (base_chosen - base_rejected)
    loss = -torch.nn.functional.logsigmoid(0.1 * margin).mean()
    del held
    return loss


def _logps(forward: Forward, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = {name: tensor.detach().clone() for name, tensor in batch.items()}
    labels = inputs.pop("labels")
    logits = forward(**inputs).logits.to(torch.float32)
    labels = labels[:, 1:].clone()
    mask = labels != -100
    labels.masked_fill_(~mask, 0)
    picked = torch.gather(logits[:, :-1, :].log_softmax(-1), dim=2, index=labels.unsqueeze(2)).squeeze(2)
    return (picked * mask).sum(-1), logits
