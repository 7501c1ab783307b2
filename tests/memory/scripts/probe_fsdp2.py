"""Two ranks on CPU: bytes of all live tensors at points of a step under FSDP2, in units of one 16-bit layer."""

import gc
import json
import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

warnings.simplefilter("ignore")
accumulation = int(sys.argv[1])
dist.init_process_group("gloo")
LAYERS, WIDTH, VOCABULARY = 6, 256, 1024
LAYER_BYTES = 2 * 2 * WIDTH * WIDTH
seen = {}


def live_bytes():
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                tensor = getattr(tensor, "_local_tensor", tensor)
                if tensor is not None and tensor.device.type == "cpu":
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


class Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, name):
        ctx.name = name
        seen.setdefault("forward " + name, live_bytes())
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        seen.setdefault("backward " + ctx.name, live_bytes())
        return grad, None


class Layer(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.number = number
        self.up, self.down = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))

    def forward(self, x):
        return self.down(self.up(Tap.apply(x, str(self.number))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer(number) for number in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            x = checkpoint(layer.__call__, x, use_reentrant=False)
        return self.head(Tap.apply(x, "loss"))


model = Model()
mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)
mesh = init_device_mesh("cpu", (2,))
for layer in model.layers:
    fully_shard(layer, mesh=mesh, mp_policy=mixed, reshard_after_forward=True)
fully_shard(model, mesh=mesh, mp_policy=mixed, reshard_after_forward=True)
for _ in range(2):
    before = live_bytes()
    for micro in range(accumulation):
        seen.clear()
        model.set_requires_gradient_sync(micro == accumulation - 1)
        model(torch.zeros(1, 1, dtype=torch.long)).float().sum().backward()
    seen["end"] = live_bytes()
    for parameter in model.parameters():
        parameter.grad = None
if dist.get_rank() == 0:
    print("RESULT " + json.dumps({name: (size - before) / LAYER_BYTES for name, size in seen.items()}), flush=True)
dist.barrier()
dist.destroy_process_group()
