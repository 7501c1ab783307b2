"""Bytes of optimizer state after one step on CPU, for tensors of the shapes given as JSON; one JSON line."""

import json
import sys

import torch
from torch import nn

names, shapes, dtype = json.loads(sys.argv[1]), json.loads(sys.argv[2]), getattr(torch, sys.argv[3])


def build(name, parameters):
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(parameters, lr=1e-3, scale_parameter=False, relative_step=False)
    if name in ("sgd", "adagrad", "rmsprop"):
        return {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "rmsprop": torch.optim.RMSprop}[name](
            parameters, lr=1e-3
        )
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


def state_bytes(name):
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(*shape).to(dtype)) for shape in shapes]
    optimizer = build(name, parameters)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    tensors = {
        value.untyped_storage().data_ptr(): value.numel() * value.element_size()
        for state in optimizer.state.values()
        for key, value in state.items()
        if torch.is_tensor(value) and value.dim() and not key.startswith("qmap")
    }
    return sum(tensors.values())


answers = {}
for name in names:
    try:
        answers[name] = state_bytes(name)
    except Exception as problem:  # an optimizer that has no CPU kernel says so
        answers[name] = f"{type(problem).__name__}: {problem}"
print("RESULT " + json.dumps(answers), flush=True)
