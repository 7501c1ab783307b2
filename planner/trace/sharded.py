"""FSDP2 on one of N ranks: torch's own ``fully_shard`` over its fake process group, with streams that do nothing.

The units are accelerate's: every block; from 1.14 on the embedding by itself and the final norm with the head, before
that both in the root. Parameters are freed by ``UntypedStorage.resize_``, which the tracker is told of.
"""

from __future__ import annotations

import contextlib
import types
from typing import Any

import torch

from planner.trace.build import DTYPES, blocks_of
from planner.trace.job import Job
from planner.trace.tracker import Tracker


class InertEvent:
    """An event that has always happened."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.record = self.wait = self.synchronize = lambda *_, **__: self

    def query(self) -> bool:
        """Done."""
        return True


class InertStream:
    """A stream on which nothing runs."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.wait_event = self.wait_stream = self.synchronize = lambda *_: None

    def is_capturing(self) -> bool:
        """No graph is recorded."""
        return False

    def record_event(self, event: Any = None) -> Any:
        """An event that has happened."""
        return event or InertEvent()


_CURRENT = InertStream()


def shard(bench: Any) -> None:
    """Cuts the bench's model over the job's ranks, as accelerate does, and prepares the tracker for it."""
    job: Job = bench.job
    _make_streams_inert()
    _join_fake_group(job.ranks)
    _watch_resizes(bench.tracker)
    bench.tracker.sharded = True
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cuda", (job.ranks,))  # of real numbers
    with bench.mode:
        _upcast(bench.model, job)
        _cut(bench.model, job, mesh)
        if job.autocast is not None:
            _autocast_inside(bench.model, DTYPES[job.autocast])


def _make_streams_inert() -> None:
    cuda: Any = torch.cuda
    cuda.Stream, cuda.Event = InertStream, InertEvent
    cuda.current_stream = cuda.default_stream = lambda *_: _CURRENT
    cuda.stream = lambda *_: contextlib.nullcontext()
    cuda.set_device = lambda *_: None
    accelerator: Any = torch.accelerator
    accelerator.current_stream = cuda.current_stream
    tensor: Any = torch.Tensor
    tensor.record_stream = lambda *_: None


def _join_fake_group(ranks: int) -> None:
    import torch.distributed as dist
    import torch.distributed._tools.fake_collectives  # noqa: F401 - collectives on fake tensors
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group(backend="fake", rank=0, world_size=ranks, store=FakeStore())


def _watch_resizes(tracker: Tracker) -> None:
    storage_type: Any = torch.UntypedStorage
    resize = storage_type.resize_

    def resize_and_tell(storage: Any, size: int) -> Any:
        before = storage.nbytes()
        out = resize(storage, size)
        tracker.resized(storage, before)
        return out

    storage_type.resize_ = resize_and_tell


def _upcast(model: Any, job: Job) -> None:
    """Under mixed precision what trains is held in fp32; accelerate before 1.12 casts all."""
    if job.autocast is None:
        return
    from planner.trace.build import exchange

    for name, parameter in list(model.named_parameters()):
        if (parameter.requires_grad or job.upcast_on_sharding) and parameter.dtype != torch.float32:
            fresh = torch.empty(parameter.shape, dtype=torch.float32, device=parameter.device)
            exchange(model, name, torch.nn.Parameter(fresh, requires_grad=parameter.requires_grad))
    model.tie_weights() if hasattr(model, "tie_weights") else None


def _cut(model: Any, job: Job, mesh: Any) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy()
    if job.autocast is not None:
        dtype = DTYPES[job.autocast]
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=dtype, output_dtype=dtype)
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
    for block in blocks_of(model):
        fully_shard(block, reshard_after_forward=True, **options)
    if job.outer_units_apart:
        _cut_outer(model, options)
    fully_shard(model, **options)


def _cut_outer(model: Any, options: dict[str, Any]) -> None:
    from torch.distributed.fsdp import fully_shard

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = embedding.weight is head.weight
    if not tied:
        fully_shard(embedding, reshard_after_forward=True, **options)
    norm = _final_norm(model)
    tail = [module for module in ((norm, embedding, head) if tied else (norm, head)) if module is not None]
    fully_shard(tail, reshard_after_forward=False, **options)


def _final_norm(model: Any) -> Any:
    """The norm behind the last block (accelerate's _find_final_norm: by its usual names)."""
    blocks = {id(part) for block in blocks_of(model) for part in block.modules()}
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if id(module) not in blocks and last in ("norm", "final_layernorm", "ln_f", "final_layer_norm"):
            return module
    return None


def _autocast_inside(model: Any, dtype: torch.dtype) -> None:
    """accelerate wraps the forward of the sharded model: autocast, then outputs in fp32."""
    from accelerate.utils.operations import convert_to_fp32

    forward = type(model).forward

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cuda", dtype=dtype):
            out = forward(self, *args, **kwargs)
        return convert_to_fp32(out)

    model.forward = types.MethodType(wrapped, model)
