"""FSDP 2 by PyTorch's own fully_shard: every decoder layer a group of its own, the rest of the model another one."""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard


def shard(model, accelerator, settings):
    """The model with parameters, gradients and states spread over the processes; layers are gathered one by one.

    What is computed has the autocast dtype, what is kept and stepped the dtype in which it was loaded.
    """
    compute = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": None}[accelerator.mixed_precision]
    how = {
        "mesh": init_device_mesh(accelerator.device.type, (accelerator.num_processes,)),
        "mp_policy": MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=compute),
    }
    names = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():
        if type(module).__name__ in names:
            fully_shard(module, **how)
    sharded = fully_shard(model, **how)
    for name, buffer in model.named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, buffer.to(accelerator.device))
    return sharded
