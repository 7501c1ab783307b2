"""Loss paths other than the installed transformers' own."""

from __future__ import annotations

from typing import Any

import torch
from setups import Setup


def install_loss(model: Any, setup: Setup) -> None:
    """Puts the setup's loss path into the model; ``torch`` leaves the installed one alone."""
    if setup.loss == "torch":
        return
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.loss_function = {"transformers-4.48": _shifted_float_loss}[setup.loss]


def _shifted_float_loss(logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, **_: Any) -> torch.Tensor:
    """transformers up to 4.48: an fp32 copy of the logits, then a contiguous copy without the last token."""
    logits = logits.float()
    shift_logits = logits[..., :-1, :].contiguous()
    shift_labels = labels[..., 1:].contiguous()
    return torch.nn.functional.cross_entropy(shift_logits.view(-1, vocab_size), shift_labels.view(-1))
