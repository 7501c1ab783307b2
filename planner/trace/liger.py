"""Liger kernels on fake tensors: its Python allocates what it allocates, and its Triton kernels do nothing."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from planner.errors import UnsupportedError
from planner.trace.job import Job

_item = torch.Tensor.item


def _item_or_one(tensor: torch.Tensor) -> Any:
    """Liger counts the targets that are not ignored; a fake tensor has no count, and no allocation depends on it."""
    try:
        return _item(tensor)
    except DataDependentOutputException:
        return 1


def apply(model: Any, job: Job) -> None:
    """Patches the model as ``use_liger_kernel`` does; the fused linear loss only where the job asks for it.

    Raises UnsupportedError where Liger is not installed or has no kernels for the model.
    """
    _require(model.config.model_type)
    import triton
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

    triton.runtime.jit.KernelInterface.__getitem__ = lambda *_: lambda *_args, **_kwargs: None
    setattr(torch.Tensor, "item", _item_or_one)  # noqa: B010 - mypy knows the method
    setattr(torch, "equal", lambda *_: False)  # noqa: B010 - asks whether the loss was scaled; scaling writes in place
    fused = {"fused_linear_cross_entropy": job.loss == "fused_linear", "cross_entropy": False}
    _apply_liger_kernel_to_instance(model, **fused)


def _require(model_type: str) -> None:
    if find_spec("liger_kernel") is None or find_spec("triton") is None:
        raise UnsupportedError(
            "liger_kernel is traced through Liger's own Python, which is not installed here",
            hint="pip install --no-deps liger-kernel triton",
        )
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UnsupportedError(f"the installed Liger has no kernels for model_type {model_type!r}")
