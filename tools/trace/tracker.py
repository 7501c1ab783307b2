"""Watches every operation on fake "cuda" tensors and logs when storages are born and die."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from ledger import Birth, Ledger
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from workspaces import workspace_bytes


class Tracker(TorchDispatchMode):
    """Put it above FakeTensorMode: it then sees whole operations, never their composite fallbacks."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self.held: dict[int, tuple[weakref.ref[Any], int]] = {}
        self.made_in: dict[int, str] = {}
        self.stack: list[str] = [""]
        self.count = 0
        self.op_log = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "prim":
            return func(*args, **(kwargs or {}))
        before = self.where()
        out = func(*args, **(kwargs or {}))
        name = str(func).removeprefix("aten.")
        if self.op_log:
            self.ledger.events.append(self._op_event(name, args, before))
        for leaf in tree_leaves(out):
            self.note(leaf, name, before)
        extra = workspace_bytes(name, args, kwargs or {}, out)
        if extra:
            self.ledger.spike(name + " workspace", extra, before)
        return out

    def _op_event(self, name: str, args: Any, where: str) -> Any:
        from ledger import Event

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
        shape, dtype = tuple(leaf.shape), str(leaf.dtype).removeprefix("torch.")
        self.ledger.birth(Birth(number, storage.nbytes(), op, shape, dtype, self.ledger.phase, where))
        self.held[key] = (weakref.ref(storage, self._dying(key, number)), number)

    def _dying(self, key: int, number: int) -> Callable[[Any], None]:
        def gone(_: Any) -> None:
            self.held.pop(key, None)
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

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave, always_call=True)
