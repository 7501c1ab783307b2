"""Two ranks on CPU: the bytes that DeepSpeed's engine holds, by stage and accumulation steps; one JSON line."""

import json
import os
import sys

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

stage, accumulation = int(sys.argv[1]), int(sys.argv[2])
deepspeed.init_distributed("gloo")
torch.manual_seed(0)
WIDTH = 64
model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4)]).bfloat16()
seen = {"elements": sum(p.numel() for p in model.parameters())}
engine, *_ = deepspeed.initialize(
    model=model,
    optimizer=torch.optim.AdamW(model.parameters()),
    config={
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "bf16": {"enabled": True},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": 10_000,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": 4096,
            "stage3_max_reuse_distance": 0,
            "stage3_max_live_parameters": 8192,
        },
    },
)
zero = engine.optimizer


def size(tensors):
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def note(name, value):
    seen[name] = max(seen.get(name, 0), value)


if stage < 3:
    fp32 = zero.single_partition_of_fp32_groups
    seen["weights"] = size(zero.bit16_groups_flat)
    reduce = zero.reduce_ipg_grads

    def reduce_and_note(*args, **kwargs):
        note("bucket", sum(size(bucket.buffer) for bucket in zero.ipg_buckets.values()))
        reduce(*args, **kwargs)
        note("gradient_part", size([zero.grads_in_partition]))

    zero.reduce_ipg_grads = reduce_and_note
else:
    fp32 = zero.fp32_partitioned_groups_flat
    seen["weights"] = size([zero.lp_param_buffer])
    seen["bucket"] = size([bucket.buffer for bucket in zero.ipg_buckets.values()])
    seen["gradient_part"] = size([zero.grad_partitions_flat_buffer])
seen["master"] = size(fp32)
update = zero._optimizer_step


def update_and_note(group):
    note("fp32_gradient", size([p.grad for p in fp32]))
    return update(group)


zero._optimizer_step = update_and_note


def note_live(*_):
    gathered = [p.ds_numel for p in engine.module.parameters() if p.ds_status.name != "NOT_AVAILABLE"]
    note("live_elements", sum(gathered))


if stage == 3:
    for layer in engine.module:
        layer.register_forward_pre_hook(note_live)
for _ in range(3 if stage == 3 else accumulation):  # stage 3 prefetches from the second step on
    loss = engine(torch.randn(3, WIDTH, dtype=torch.bfloat16)).float().pow(2).mean()
    engine.backward(loss)
    if stage < 3:
        note("carried", sum(size(held) for held in zero.all_grad_tensors.values() if held))
    note("carried", size([p.grad for p in engine.module.parameters()]))
    engine.step()
states = [v for s in zero.optimizer.state.values() for v in s.values() if torch.is_tensor(v) and v.numel() > 1]
seen["states"] = size(states)
if dist.get_rank() == 0:
    print("RESULT " + json.dumps(seen), flush=True)
# Everything is measured. DeepSpeed's shared-memory transport may abort where one rank is gone before the other.
dist.barrier()
os._exit(0)
