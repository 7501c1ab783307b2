"""Liger kernels on fake tensors: its Python allocates what it allocates, and its Triton kernels do nothing."""

from __future__ import annotations

from typing import Any

import torch
import triton
from setups import Setup
from torch._subclasses.fake_tensor import DataDependentOutputException

_item = torch.Tensor.item


def _item_or_one(tensor: torch.Tensor) -> Any:
    """Liger counts the targets that are not ignored; a fake tensor has no count, and no allocation depends on it."""
    try:
        return _item(tensor)
    except DataDependentOutputException:
        return 1


def apply(model: Any, setup: Setup) -> None:
    """Patches the model as ``use_liger_kernel`` does; the fused linear loss only where the setup asks for it."""
    triton.runtime.jit.KernelInterface.__getitem__ = lambda *_: lambda *_args, **_kwargs: None
    torch.Tensor.item = _item_or_one
    torch.equal = lambda *_: False  # asks whether the loss was scaled; scaling writes in place
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

    options: dict[str, bool] = {"fused_linear_cross_entropy": setup.fused_linear, "cross_entropy": False, **setup.extra}
    _apply_liger_kernel_to_instance(model, **options)
