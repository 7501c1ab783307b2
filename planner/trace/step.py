"""Drives two training steps the way transformers' Trainer does, with phases marked in the ledger."""

from __future__ import annotations

import contextlib
import gc
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from planner.trace import attention
from planner.trace.build import CUDA, DTYPES, blocks_of, build
from planner.trace.job import Job
from planner.trace.ledger import Ledger
from planner.trace.losses import install_loss, preference_loss
from planner.trace.named_cache import with_cache
from planner.trace.optimizers import make_optimizer
from planner.trace.tracker import Tracker, local, watch_modules

STEPS = 2
MAX_GRAD_NORM = 1.0
BUCKET_BYTES = 25 * 1024 * 1024  # torch's DistributedDataParallel, bucket_cap_mb
FIRST_BUCKET_BYTES = 1024 * 1024


@dataclass(kw_only=True)
class Bench:
    """What one step needs."""

    job: Job
    model: Any
    reference: Any
    batch: dict[str, torch.Tensor]
    tracker: Tracker
    mode: FakeTensorMode
    optimizer: Any = None
    trained: list[Any] = field(default_factory=list)
    stepped: list[Any] = field(default_factory=list)  # this rank's parts of them, where they are sharded

    def aim(self) -> None:
        """Looks up what trains, and makes the optimizer over this rank's parts of it."""
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        wide = {id(m.weight) for m in self.model.modules() if isinstance(m, torch.nn.Embedding)}
        self.stepped = [p if local(p) is p else torch.nn.Parameter(local(p)) for p in self.trained]
        embeddings = {id(own) for own, p in zip(self.stepped, self.trained, strict=True) if id(p) in wide}
        self.optimizer = make_optimizer(self.stepped, embeddings, self.job)

    def hand_over(self) -> None:
        """Gives the parts their gradients, which are said to be such."""
        for own, parameter in zip(self.stepped, self.trained, strict=True):
            self.tracker.note_gradient(parameter)
            if own is not parameter and parameter.grad is not None:
                own.grad, parameter.grad = local(parameter.grad), None


def trace(job: Job, *, op_log: bool = False) -> tuple[Ledger, torch.nn.Module]:
    """Runs the job's step twice on fake tensors, and evaluation if it has one; returns the log and the model."""
    attention.install(flash=job.flash)
    tracker = Tracker(Ledger(), op_log=op_log)
    tracker.experts = int(job.config.get("num_local_experts", 0)) if job.experts_apart else 0
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    gc.collect()
    gc.disable()
    try:
        bench = _prepared(job, tracker, mode)
        with torch.autograd.set_multithreading_enabled(False):
            for number in range(STEPS):
                _step(bench, number)
            if job.eval_micro_batch_size is not None:
                _evaluate(bench, job.eval_micro_batch_size)
    finally:
        gc.enable()
    return tracker.ledger, bench.model


def _prepared(job: Job, tracker: Tracker, mode: FakeTensorMode) -> Bench:
    with mode:
        model = build(job)
        install_loss(model, job)
        reference = _reference(job)
        batch = _batch(job, job.sequences)
    bench = Bench(job=job, model=model, reference=reference, batch=batch, tracker=tracker, mode=mode)
    if job.parallelism == "fsdp2":
        from planner.trace.sharded import shard

        shard(bench)
    note_resident(tracker, model, batch)
    if reference is not None:
        note_resident(tracker, reference, {})
    with tracker:  # some optimizers make their states at once
        bench.aim()
    if job.parallelism == "ddp":
        _buckets(bench)
    watch_modules(tracker, model, blocks_of(model))
    if job.parallelism != "fsdp2":  # whose gradients are no autograd ones
        for parameter in bench.trained:
            parameter.register_post_accumulate_grad_hook(tracker.note_gradient)
    return bench


def _reference(job: Job) -> Any:
    """The frozen model that full DPO compares with, held in the compute dtype (LLaMA-Factory create_ref_model)."""
    if job.stage != "dpo" or job.is_adapter:
        return None
    frozen = replace(job, method="full", base_dtype=job.compute_dtype, gradient_checkpointing=False)
    model: Any = build(frozen)
    return model.eval().requires_grad_(False)


def _batch(job: Job, sequences: int) -> dict[str, torch.Tensor]:
    shape = (sequences, job.seq_len)
    batch = {name: torch.zeros(shape, dtype=torch.int64, device=CUDA) for name in ("input_ids", "labels")}
    if job.padded:
        batch["attention_mask"] = torch.ones(shape, dtype=torch.int64, device=CUDA)
    return batch


def note_resident(tracker: Tracker, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
    """What lives before the first step: weights, their scales, buffers, the batch."""
    for name, parameter in model.named_parameters():
        tracker.note(local(parameter), "parameter", name)
        for part in getattr(getattr(parameter, "quant_state", None), "parts", ()):
            tracker.note(part, "quantization scales", name)
    for name, buffer in model.named_buffers():
        tracker.note(buffer, "buffer", name)
    for name, tensor in batch.items():
        tracker.note(tensor, "batch", name)


def _buckets(bench: Bench) -> None:
    """DDP's Reducer copies gradients into buckets that live as long as the model (reducer.cpp), in reverse order."""
    with bench.mode:
        made, held, limit = [], 0, FIRST_BUCKET_BYTES
        dtype = None
        for parameter in reversed(bench.trained):
            if held and (held >= limit or parameter.dtype != dtype):
                made.append(torch.empty(held, dtype=torch.uint8, device=CUDA))
                held, limit = 0, BUCKET_BYTES
            held, dtype = held + parameter.nbytes, parameter.dtype
        if held:
            made.append(torch.empty(held, dtype=torch.uint8, device=CUDA))
    for bucket in made:
        bench.tracker.note(bucket, "gradient bucket", "")
    bench.tracker.keep.extend(made)


def _step(bench: Bench, number: int) -> None:
    job, ledger, tracker = bench.job, bench.tracker.ledger, bench.tracker
    for micro in range(job.gradient_accumulation_steps):
        if job.parallelism == "fsdp2":
            bench.model.set_requires_gradient_sync(micro == job.gradient_accumulation_steps - 1)
        with bench.mode, tracker:
            ledger.enter(f"forward {number}.{micro}")
            loss, outputs = _loss(bench)
            ledger.enter(f"backward {number}.{micro}")
            loss.backward()  # type: ignore[no-untyped-call]
            del loss, outputs
    bench.hand_over()
    with tracker:
        ledger.enter(f"clip {number}")
        with bench.mode:
            _clip(bench.stepped)
        ledger.enter(f"optimizer {number}")
        with _stepping(bench):
            bench.optimizer.step()
        ledger.enter(f"zero {number}")
        bench.optimizer.zero_grad(set_to_none=True)
    ledger.mark(f"step {number} done")


def _stepping(bench: Bench) -> Any:
    """foreach optimizers read their step counts, real numbers on the host: those may not be fake."""
    host_counts = bench.job.optim in ("adamw_torch", "adagrad", "rmsprop")
    return contextlib.nullcontext() if host_counts else bench.mode


def _loss(bench: Bench) -> tuple[torch.Tensor, Any]:
    """Trainer.compute_loss: the outputs are dropped with this frame; a loop written by hand names them longer."""
    job = bench.job
    outputs: Any = None
    if job.stage in ("dpo", "orpo", "simpo"):
        reference = partial(_reference_outputs, bench) if job.stage == "dpo" else None
        loss = preference_loss(partial(_outputs, job, bench.model), reference, bench.batch, job.stage)
    else:
        outputs = _outputs(job, bench.model, **bench.batch)
        loss = outputs["loss"]
    held = outputs if job.loss == "loop" else None  # a loop by hand names them
    return loss / job.gradient_accumulation_steps, held


def _outputs(job: Job, model: Any, **batch: Any) -> Any:
    """The model under autocast, its outputs converted to fp32, as accelerate wraps it."""
    if job.autocast is None or job.parallelism == "fsdp2":  # there the wrapped model brings its own
        return with_cache(job, model, batch)
    from accelerate.utils.operations import convert_to_fp32

    with torch.autocast("cuda", dtype=DTYPES[job.autocast]):
        outputs = with_cache(job, model, batch)
    return convert_to_fp32(outputs)


def _reference_outputs(bench: Bench, **batch: Any) -> Any:
    """A frozen copy answers, or, for adapters, the base beneath them."""
    if bench.reference is not None:
        return _outputs(bench.job, bench.reference, **batch)
    with bench.model.disable_adapter():
        return _outputs(bench.job, bench.model, **batch)


def _evaluate(bench: Bench, sequences: int) -> None:
    """Trainer.prediction_step: no graph, loss and logits handed out."""
    pairs = bench.job.sequences // bench.job.micro_batch_size
    with bench.mode:
        batch = _batch(bench.job, sequences * pairs)
    bench.model.eval()
    with bench.mode, bench.tracker, torch.no_grad():
        bench.tracker.ledger.enter(f"eval {STEPS - 1}.0")
        for name, tensor in batch.items():
            bench.tracker.note(tensor, "batch", name)
        outputs = _outputs(bench.job, bench.model, **batch)
        del outputs


def _clip(trained: list[Any]) -> None:
    """torch.nn.utils.clip_grad_norm_, as accelerate calls it."""
    grads = [p.grad for p in trained if p.grad is not None]
    groups: dict[Any, list[Any]] = {}
    for grad in grads:
        groups.setdefault(grad.dtype, []).append(grad)
    norms = [norm for group in groups.values() for norm in torch._foreach_norm(group, 2.0)]
    total = torch.linalg.vector_norm(torch.stack([norm.to(torch.float32) for norm in norms]))
    factor = torch.clamp(MAX_GRAD_NORM / (total + 1e-6), max=1.0)
    for group in groups.values():
        torch._foreach_mul_(group, factor.to(group[0].dtype))
