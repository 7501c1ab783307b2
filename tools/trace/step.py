"""Drives two training steps the way transformers' Trainer does, with phases marked in the ledger."""

from __future__ import annotations

import contextlib
import gc
from functools import partial
from typing import Any

import attention
import torch
from build import CUDA, blocks_of, build
from ledger import Ledger
from losses import install_loss
from preference import dpo_loss
from setups import DTYPES, Setup
from torch._subclasses.fake_tensor import FakeTensorMode
from tracker import Tracker, watch_modules

STEPS = 2


def trace(setup: Setup) -> tuple[Ledger, torch.nn.Module]:
    """Runs the setup's step twice on fake tensors; returns the log and the model."""
    attention.install()
    ledger = Ledger()
    tracker = Tracker(ledger)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    gc.collect()
    gc.disable()
    try:
        with mode:
            model = build(setup)
            install_loss(model, setup)
            reference = build(setup).eval().requires_grad_(False) if _needs_reference(setup) else None
            batch = _batch(setup)
        _note_resident(tracker, model, batch)
        if reference is not None:
            _note_resident(tracker, reference, {})
        watch_modules(tracker, model, blocks_of(model))
        optimizer = _optimizer(model, setup)
        with torch.autograd.set_multithreading_enabled(False):
            for number in range(STEPS):
                _step(setup, model, reference, optimizer, batch, tracker, mode, number)
    finally:
        gc.enable()
    return ledger, model


def _needs_reference(setup: Setup) -> bool:
    return setup.stage == "dpo" and setup.method == "full"


def _batch(setup: Setup) -> dict[str, torch.Tensor]:
    pair = 2 if setup.stage == "dpo" else 1
    shape = (setup.micro_batch_size * pair, setup.seq_len)
    batch = {name: torch.zeros(shape, dtype=torch.int64, device=CUDA) for name in ("input_ids", "labels")}
    if setup.padded:
        batch["attention_mask"] = torch.ones(shape, dtype=torch.int64, device=CUDA)
    return batch


def _note_resident(tracker: Tracker, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
    for name, parameter in model.named_parameters():
        tracker.note(parameter, "parameter", name)
        for key, part in _parts_of(parameter):
            tracker.note(part, f"quantization {key}", name)
    for name, buffer in model.named_buffers():
        tracker.note(buffer, "buffer", name)
    for name, tensor in batch.items():
        tracker.note(tensor, "batch", name)


def _parts_of(parameter: Any) -> list[tuple[str, torch.Tensor]]:
    """The scales that a 4-bit weight carries beside itself."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return []
    nested = state.state2
    parts = {"absmax": state.absmax, "code": state.code, "offset": state.offset}
    if nested is not None:
        parts |= {"nested absmax": nested.absmax, "nested code": nested.code}
    return [(key, part) for key, part in parts.items() if isinstance(part, torch.Tensor)]


def _step(
    setup: Setup,
    model: Any,
    reference: Any,
    optimizer: Any,
    batch: dict[str, Any],
    tracker: Tracker,
    mode: Any,
    number: int,
) -> None:
    ledger = tracker.ledger
    for micro in range(setup.gradient_accumulation_steps):
        with mode, tracker:
            ledger.enter(f"forward {number}.{micro}")
            loss = _loss(setup, model, reference, batch)
            ledger.enter(f"backward {number}.{micro}")
            loss.backward()
            del loss
    with tracker:
        trained = [p for p in model.parameters() if p.requires_grad]
        if setup.max_grad_norm:
            ledger.enter(f"clip {number}")
            _clip(trained, setup.max_grad_norm)
        ledger.enter(f"optimizer {number}")
        with _stepping(setup, mode):
            optimizer.step()
        ledger.enter(f"zero {number}")
        optimizer.zero_grad(set_to_none=True)
        del trained
    ledger.mark(f"step {number} done")


def _stepping(setup: Setup, mode: Any) -> Any:
    """foreach and for-loop Adam read their step counts, real numbers on the host: those may not be fake."""
    host_counts = setup.optim in ("adamw_torch", "adamw_forloop")
    return contextlib.nullcontext() if host_counts else mode


def _loss(setup: Setup, model: Any, reference: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Trainer.compute_loss: the outputs are dropped with this frame."""
    if setup.stage == "dpo":
        loss = dpo_loss(partial(_outputs, setup, model), partial(_reference_outputs, setup, model, reference), batch)
    else:
        loss = _outputs(setup, model, **batch)["loss"]
    return loss / setup.gradient_accumulation_steps


def _outputs(setup: Setup, model: Any, **batch: Any) -> Any:
    """The model under autocast, its outputs converted to fp32, as accelerate wraps it."""
    if setup.autocast is None:
        return model(**batch)
    from accelerate.utils.operations import convert_to_fp32

    with torch.autocast("cuda", dtype=getattr(torch, DTYPES[setup.autocast])):
        outputs = model(**batch)
    return convert_to_fp32(outputs)


def _reference_outputs(setup: Setup, model: Any, reference: Any, **batch: Any) -> Any:
    """A frozen copy answers, or, for adapters, the base beneath them."""
    if reference is not None:
        return _outputs(setup, reference, **batch)
    with model.disable_adapter():
        return _outputs(setup, model, **batch)


def _clip(trained: list[Any], limit: float) -> None:
    grads = [p.grad for p in trained if p.grad is not None]
    groups: dict[Any, list[Any]] = {}
    for grad in grads:
        groups.setdefault(grad.dtype, []).append(grad)
    norms = [norm for group in groups.values() for norm in torch._foreach_norm(group, 2.0)]
    total = torch.linalg.vector_norm(torch.stack([norm.to(torch.float32) for norm in norms]))
    factor = torch.clamp(limit / (total + 1e-6), max=1.0)
    for group in groups.values():
        torch._foreach_mul_(group, factor.to(group[0].dtype))


def _optimizer(model: Any, setup: Setup) -> Any:
    trained = [p for p in model.parameters() if p.requires_grad]
    kind = setup.optim
    if kind == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(trained, scale_parameter=False, relative_step=False, lr=1e-4)
    if kind.startswith("sgd"):
        return torch.optim.SGD(trained, lr=1e-3, foreach=True)
    flags = {
        "adamw_torch": {"foreach": True},
        "adamw_torch_fused": {"fused": True},
        "adamw_forloop": {"foreach": False, "fused": False},
    }[kind]
    return torch.optim.AdamW(trained, lr=1e-4, **flags)
