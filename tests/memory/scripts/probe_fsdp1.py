"""Two ranks on CPU: layer-sized tensors alive when backward ends, FSDP1 over frozen layers with adapters."""

import gc
import json
import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as Fsdp
from torch.utils.checkpoint import checkpoint

warnings.simplefilter("ignore")
LAYERS, TOKENS, WIDTH = 8, 1000, 64
# where the checkpoint lies: "around" FSDP's unit, as transformers' loops put it until 4.51, or "within" it
reentrant, within, sharded = sys.argv[1] != "plain", sys.argv[1] == "within", sys.argv[2] == "fsdp"
dist.init_process_group("gloo")


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False)
        self.low = nn.Linear(WIDTH, 4, bias=False)
        self.high = nn.Linear(4, WIDTH, bias=False)

    def __call__(self, x):
        return checkpoint(super().__call__, x, use_reentrant=True) if within else super().__call__(x)

    def forward(self, x):
        return x + torch.tanh(self.base(x) + self.high(self.low(x)))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x) if within else checkpoint(layer.__call__, x, use_reentrant=reentrant)
        return x


class AtTheEnd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        gc.collect()
        found = [o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter)]
        found += [o.grad for o in found if o.is_leaf and o.grad is not None]
        alive = {t.untyped_storage().data_ptr() for t in found if t.numel() == TOKENS * WIDTH}
        if dist.get_rank() == 0:
            print("RESULT " + json.dumps({"alive": len(alive), "layers": LAYERS}), flush=True)
        return grad


def wrap(module, recurse, nonwrapped_numel):
    trained_leaf = isinstance(module, nn.Linear) and module.weight.requires_grad
    return recurse or isinstance(module, Layer) or trained_leaf


model = Model()
if sharded:
    model = Fsdp(model, auto_wrap_policy=wrap, use_orig_params=True, device_id=torch.device("cpu"))
model(AtTheEnd.apply(torch.randn(TOKENS, WIDTH, requires_grad=True))).sum().backward()
dist.barrier()
dist.destroy_process_group()
