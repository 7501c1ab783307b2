"""Loss paths other than the installed transformers' own, and those that name pairs of answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy, logsigmoid

from planner.trace import releases
from planner.trace.job import Job

Forward = Callable[..., Any]


def install_loss(model: Any, job: Job) -> None:
    """Puts the job's loss path into the model; the installed transformers' own is left alone."""
    if releases.runs_own_code(job):
        return
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if job.loss in ("hf_4_48", "in_model"):
        base.loss_function = {"hf_4_48": _shifted_float_loss, "in_model": _shifted_loss}[job.loss]


def _shifted_float_loss(logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, **_: Any) -> torch.Tensor:
    """transformers 4.46 to 4.48: an fp32 copy of the logits, then a contiguous copy without the last token."""
    return _shifted_loss(logits.float(), labels, vocab_size)


def _shifted_loss(logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, **_: Any) -> torch.Tensor:
    """Modeling files that computed the loss themselves: no fp32 copy."""
    shift_logits = logits[..., :-1, :].contiguous()
    shift_labels = labels[..., 1:].contiguous()
    return cross_entropy(shift_logits.view(-1, shift_logits.size(-1)), shift_labels.view(-1))


def preference_loss(forward: Forward, reference: Forward | None, batch: dict[str, Any], stage: str) -> torch.Tensor:
    """The step of dpo, orpo and simpo as LLaMA-Factory 0.9.5 runs it: chosen and rejected in one batch.

    The policy's fp32 logits are held to the end, for its metrics; only dpo asks a reference.
    """
    policy, held = _logps(forward, batch)
    chosen, rejected = policy.chunk(2)
    margin = chosen - rejected
    if reference is not None:
        with torch.no_grad():
            base, _ = _logps(reference, batch)
        base_chosen, base_rejected = base.chunk(2)
        margin = margin - (base_chosen - base_rejected)
    if stage == "orpo":
        margin = margin - (torch.log1p(-torch.exp(chosen)) - torch.log1p(-torch.exp(rejected)))
        loss = (-chosen - 0.1 * logsigmoid(margin)).mean()
    else:
        loss = -logsigmoid(0.1 * margin).mean()
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
