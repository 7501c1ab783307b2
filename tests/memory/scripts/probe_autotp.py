"""Two ranks on CPU under DeepSpeed's AutoTP: what a rank holds and what lives in a step, in bytes; one JSON line.

Live bytes are those of every storage that an operation made and nobody has let go of.
"""

import json
import os
import sys
import weakref

import deepspeed
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

asked = json.loads(sys.argv[1])
deepspeed.init_distributed("gloo")
torch.manual_seed(0)


class Live(TorchDispatchMode):
    """Counts storages that are born while it watches."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.note(leaf.untyped_storage())
        return out

    def note(self, storage):
        key = storage._cdata
        if key in self.known or not storage.nbytes():
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone(_):
            if self.known.pop(key, None) is not None:
                self.now -= size

        self.known[key] = weakref.ref(storage, gone)

    def take_peak(self):
        peak, self.peak = self.peak, self.now
        return peak


config = AutoConfig.for_model("llama", **asked["config"])
config._attn_implementation = "sdpa"
model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
model.train()
model.gradient_checkpointing_enable({"use_reentrant": True})
model.enable_input_require_grads()
seen = {}
live = Live()
with live:
    for parameter in model.parameters():
        live.note(parameter.untyped_storage())
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(model.parameters(), fused=True), config=asked["deepspeed"]
    )
    for _ in range(3):
        ids = torch.randint(3, asked["config"]["vocab_size"], (asked["batch"], asked["length"]))
        live.take_peak()
        seen["start"] = live.now
        loss = engine(input_ids=ids, labels=ids, use_cache=False).loss
        seen["forward"] = live.take_peak()
        engine.backward(loss)
        del loss
        seen["backward"] = live.take_peak()
        engine.step()
        seen["optimizer"] = live.take_peak()
seen["elements"] = sum(p.numel() for p in engine.module.parameters())
if dist.get_rank() == 0:
    print("RESULT " + json.dumps(seen), flush=True)
dist.barrier()
os._exit(0)
