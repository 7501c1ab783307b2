"""Three steps of every family named, under AutoTP over all ranks, or on one without. Prints name -> steps."""

import json
import os
import sys

import deepspeed
import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

deepspeed.init_distributed("gloo")
ranks = dist.get_world_size()
SHAPE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 128, "head_dim": 16, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
OWN = {"gemma2": {"query_pre_attn_scalar": 16}, "gemma3_text": {"query_pre_attn_scalar": 16}}
EAGER = ("gemma2",)
PLAIN = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_clipping": 1.0,
    "bf16": {"enabled": True},
    "zero_allow_untested_optimizer": True,
    "zero_optimization": {"stage": 1, "reduce_bucket_size": 100000, "allgather_bucket_size": 100000},
}


def steps_of(name):
    torch.manual_seed(0)
    family, _, tied = name.partition("+")
    config = AutoConfig.for_model(family, **SHAPE | OWN.get(family, {}) | {"tie_word_embeddings": bool(tied)})
    config._attn_implementation = "eager" if family in EAGER else "sdpa"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.train()
    model.gradient_checkpointing_enable()
    settings = dict(PLAIN)
    if ranks > 1:
        settings["tensor_parallel"] = {"autotp_size": ranks, "vocab_parallel_lm_head": True}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    chance, seen = torch.Generator().manual_seed(1), []
    for _ in range(3):
        ids = torch.randint(3, SHAPE["vocab_size"], (2, 32), generator=chance)
        loss = engine(input_ids=ids, labels=ids, use_cache=False).loss
        engine.backward(loss)
        engine.step()
        seen.append((loss.item(), float(engine.get_global_grad_norm())))
    return seen


found = {}
for name in sys.argv[1].split(","):
    try:
        found[name] = steps_of(name)
    except (ValueError, AssertionError, NotImplementedError, KeyError) as problem:
        found[name] = f"{type(problem).__name__}: {problem}"
if dist.get_rank() == 0:
    print("RESULT " + json.dumps(found), flush=True)
dist.barrier()
os._exit(0)
