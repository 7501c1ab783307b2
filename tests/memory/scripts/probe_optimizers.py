"""Bytes of optimizer state and of the second step's temporaries on CPU, for shapes given as JSON; one JSON line."""

import json
import sys
import weakref

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

names, shapes, dtype = json.loads(sys.argv[1]), json.loads(sys.argv[2]), getattr(torch, sys.argv[3])


class Meter(TorchDispatchMode):
    """The most bytes alive at once in storages that operations made while the meter ran."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.sizes = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage(), given)
        return made

    def count(self, storage, given):
        name = storage._cdata
        if name in given or name in self.sizes:
            return
        self.sizes[name] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.forget, name)

    def forget(self, name):
        self.live -= self.sizes.pop(name, 0)


def build(name, parameters):
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(parameters, lr=1e-3, scale_parameter=False, relative_step=False)
    if name in ("sgd", "adagrad", "rmsprop"):
        kind = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "rmsprop": torch.optim.RMSprop}[name]
        return kind(parameters, lr=1e-3, foreach=True)
    if name == "adamw_torch":
        return torch.optim.AdamW(parameters, lr=1e-3, foreach=True)
    import bitsandbytes as bnb

    made = {
        "adamw_8bit": lambda: bnb.optim.AdamW(parameters, optim_bits=8),
        "paged_adamw_32bit": lambda: bnb.optim.AdamW(parameters, optim_bits=32),
        "lion_8bit": lambda: bnb.optim.Lion(parameters, lr=1e-3, optim_bits=8),
        "lion_32bit": lambda: bnb.optim.Lion(parameters, lr=1e-3, optim_bits=32),
        "ademamix": lambda: bnb.optim.AdEMAMix(parameters, lr=1e-3, optim_bits=32),
        "rmsprop_bnb": lambda: bnb.optim.RMSprop(parameters, lr=1e-3, optim_bits=32),
    }
    return made[name]()


def measure(name):
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(*shape).to(dtype)) for shape in shapes]
    optimizer = build(name, parameters)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        meter = Meter()
        with meter:
            optimizer.step()
    tensors = {
        value.untyped_storage().data_ptr(): value.numel() * value.element_size()
        for state in optimizer.state.values()
        for key, value in state.items()
        if torch.is_tensor(value) and value.dim() and not key.startswith("qmap")
    }
    return {"states": sum(tensors.values()), "temporaries": meter.peak}


print("RESULT " + json.dumps({name: measure(name) for name in names}), flush=True)
