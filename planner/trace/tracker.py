"""Watches every operation on fake "cuda" tensors and logs when storages are born and die."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from planner.trace.ledger import Birth, Event, Ledger
from planner.trace.workspaces import workspace_bytes


class Tracker(TorchDispatchMode):
    """Put it above FakeTensorMode: it then sees whole operations, never their composite fallbacks."""

    def __init__(self, ledger: Ledger, *, op_log: bool = False) -> None:
        super().__init__()
        self.ledger = ledger
        self.held: dict[int, tuple[weakref.ref[Any], int]] = {}
        self.made_in: dict[int, str] = {}
        self.stack: list[str] = [""]
        self.keep: list[Any] = []
        self.count = 0
        self.op_log = op_log
        self.sharded = False
        self.experts = 0  # where the model asks which tokens go to which of so many

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind.__name__ == "DTensor" for kind in types):  # it calls operations on its local tensors, seen here
            return NotImplemented
        if func.namespace == "prim":
            return func(*args, **(kwargs or {}))
        before = self.where()
        asked, func = func, _as_on_a_card(func, args, self.experts)
        out = func(*args, **(kwargs or {}))
        name = str(func if isinstance(func, torch._ops.OpOverload) else asked).removeprefix("aten.")
        if self.op_log:
            self.ledger.events.append(self._op_event(name, args, before))
        for leaf in tree_leaves(out):
            self.note(leaf, name, before)
        extra = workspace_bytes(name, args, kwargs or {}, out)
        if extra:
            self.ledger.spike(name + " workspace", extra, before)
        return out

    def _op_event(self, name: str, args: Any, where: str) -> Any:
        shapes = [short(leaf) for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)][:4]
        return Event("op", self.ledger.phase, where, f"{name}({', '.join(shapes)})")

    def note(self, leaf: Any, op: str, where: str) -> None:
        """Logs the storage under a tensor, if it is a fake cuda tensor's and new."""
        if not isinstance(leaf, FakeTensor) or leaf.device.type != "cuda":
            return
        storage = leaf.untyped_storage()
        key = storage._cdata
        if key in self.held or storage.nbytes() == 0:
            return
        self.count += 1
        number = self.count
        op = f"fsdp {op}" if self.sharded and _fsdp_calls() else op
        shape, dtype = tuple(leaf.shape), str(leaf.dtype).removeprefix("torch.")
        self.ledger.birth(Birth(number, storage.nbytes(), op, shape, dtype, self.ledger.phase, where))
        self.held[key] = (weakref.ref(storage, self._dying(key, number)), number)

    def resized(self, storage: Any, before: int) -> None:
        """A storage that is known, or was, has another size now: FSDP frees and takes parameters this way."""
        known = self.held.pop(storage._cdata, None)
        if known is None or storage.nbytes() == before:
            return
        number = known[1]
        if before:
            self.ledger.death(number)
        birth = self.ledger.births[number]
        if storage.nbytes():
            self.count += 1
            number = self.count
            again = replace(birth, number=number, nbytes=storage.nbytes(), phase=self.ledger.phase)
            self.ledger.birth(again)
        self.held[storage._cdata] = (weakref.ref(storage, self._dying(storage._cdata, number)), number)

    def note_gradient(self, parameter: torch.Tensor) -> None:
        """Says that the storage under a parameter's gradient is one."""
        grad = local(parameter.grad)
        known = self.held.get(grad.untyped_storage()._cdata) if grad is not None else None
        if known is not None:
            self.ledger.gradients.add(known[1])

    def _dying(self, key: int, number: int) -> Callable[[Any], None]:
        def gone(_: Any) -> None:
            if self.held.pop(key, None) is not None and number not in self.ledger.dead:
                self.ledger.death(number)

        return gone

    def where(self) -> str:
        """The module whose forward runs, or, in backward, the module whose node it belongs to."""
        node = torch._C._current_autograd_node()
        if node is not None and self.ledger.phase.startswith("backward") and len(self.stack) == 1:
            return f"{self.made_in.get(node._sequence_nr(), '?')} <{node.name()}>"
        if torch.is_grad_enabled():
            self.made_in[torch._C._autograd._get_sequence_nr() - 1] = self.stack[-1]
        return self.stack[-1]


# Backward formulas that write in place, except where they meet a tensor subclass (FunctionsManual.cpp).
IN_PLACE_IN_BACKWARD = {
    ("IndexBackward0", torch.ops.aten.index_put.default): torch.ops.aten.index_put_.default,
    ("TopkBackward0", torch.ops.aten.scatter.src): torch.ops.aten.scatter_.src,
    ("SortBackward0", torch.ops.aten.scatter.src): torch.ops.aten.scatter_.src,
    ("GatherBackward0", torch.ops.aten.scatter_add.default): torch.ops.aten.scatter_add_.default,
}
LAST_HOLDER = (4, 2)  # references to a tensor and its storage when only the engine and this call hold it


def _as_on_a_card(func: Any, args: Any, experts: int) -> Any:
    """The operation a card would run: autograd avoids writing into fake tensors, and into nothing else."""
    if func is torch.ops.aten.nonzero.default and experts:
        return partial(_dealt, experts)
    if func is torch.ops.aten._grouped_mm.default and args[0].dtype != torch.bfloat16:
        return _grouped_mm
    node = torch._C._current_autograd_node()
    if node is None or torch.is_grad_enabled():
        return func
    if func is torch.ops.aten.add.Tensor and _engine_accumulates(args[0]):
        return torch.ops.aten.add_.Tensor
    return IN_PLACE_IN_BACKWARD.get((node.name(), func), func)


def _dealt(experts: int, mask: Any) -> Any:
    """The places of one expert's tokens, which depend on data: every expert gets the same number."""
    return mask.new_empty((mask.numel() // experts, mask.dim()), dtype=torch.int64)


def _grouped_mm(left: Any, right: Any, offsets: Any, *_: Any, **__: Any) -> Any:
    """The grouped product's result in other types than bf16: a card loops over groups, the fake kernel refuses."""
    if left.dim() == 2 and right.dim() == 2:
        return left.new_empty((offsets.shape[0], left.shape[0], right.shape[1]))
    return left.new_empty((*left.shape[:-1], right.shape[-1]))


def _engine_accumulates(held: Any) -> bool:
    """True where the engine adds a second gradient into one that nobody else holds (input_buffer.cpp)."""
    if not isinstance(held, torch.Tensor) or _caller() != "_engine_run_backward":
        return False
    counts = (held._use_count(), torch._C._storage_Use_Count(held.untyped_storage()._cdata))
    extent = 1 + sum((size - 1) * stride for size, stride in zip(held.shape, held.stride(), strict=True))
    return counts == LAST_HOLDER and extent == held.numel()


def _caller() -> str:
    """The Python function that the operation was called from, past torch's wrappers of the tracker."""
    frame = sys._getframe(4)
    while frame.f_back is not None and frame.f_code.co_filename.endswith(("eval_frame.py", "_compile.py")):
        frame = frame.f_back
    return frame.f_code.co_name


def _fsdp_calls() -> bool:
    """True where FSDP's own code asks for memory."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        if "_fully_shard" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


def short(tensor: torch.Tensor) -> str:
    """``bf16[1,2048,4096]``"""
    names = {"bfloat16": "bf16", "float32": "f32", "float16": "f16", "int64": "i64", "uint8": "u8", "float64": "f64"}
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{names.get(dtype, dtype)}{list(tensor.shape)}".replace(" ", "")


def watch_modules(tracker: Tracker, model: torch.nn.Module, blocks: list[torch.nn.Module]) -> None:
    """Keeps the tracker's module stack, and marks the start and end of every decoder block."""
    numbers = {id(block): index for index, block in enumerate(blocks)}
    for name, module in model.named_modules():
        label = name or "model"

        def enter(module: Any, args: Any, label: str = label) -> None:
            tracker.stack.append(label)
            if id(module) in numbers:
                tracker.ledger.mark(f"block {numbers[id(module)]} starts")

        def leave(module: Any, args: Any, out: Any) -> None:
            tracker.stack.pop()
            if id(module) in numbers:
                tracker.ledger.mark(f"block {numbers[id(module)]} ends")
                if module is blocks[-1] and tracker.ledger.phase.startswith("forward"):
                    tracker.ledger.enter(tracker.ledger.phase.replace("forward", "loss"))

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave, always_call=True)


def local(tensor: Any) -> Any:
    """The part of this rank of a sharded parameter or gradient; any other tensor as it is."""
    return getattr(tensor, "_local_tensor", tensor)
