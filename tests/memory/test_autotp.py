"""AutoTP's share of one GPU: by its rules, and by what real ranks hold and allocate."""

from __future__ import annotations

import json
from typing import Any

import pytest

from planner.hardware.parse import parse_machine
from planner.memory.deepspeed_config import default_deepspeed_config
from planner.memory.estimate import estimate, price
from planner.memory.split import split
from planner.model.catalogue import resolve
from planner.model.count import count
from planner.model.interpret import interpret
from planner.training import TrainingSetup
from tests.memory.probes import probe

LLAMA = resolve("Meta-Llama-3-8B")
TIED = resolve("Llama-3.2-1B")
CUT: dict[str, Any] = {"method": "full", "parallelism": "zero1", "tensor_parallel": 4}
MACHINE = parse_machine("8xH100-80GB", "2TB")
SHAPE = {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip


def test_the_embedding_of_an_untied_model_stays_whole() -> None:
    part = split(TrainingSetup(model=LLAMA.id, **CUT), LLAMA, 8).spec
    assert count(part).embedding == count(LLAMA).embedding
    assert count(part).head == count(LLAMA).head // 4
    tied = split(TrainingSetup(model=TIED.id, **CUT), TIED, 8).spec
    assert count(tied).embedding == count(TIED).embedding // 4


def test_a_json_without_the_parallel_head_keeps_all_logits() -> None:
    config = default_deepspeed_config(1, "none", LLAMA.hidden, 4)
    setup = TrainingSetup(model=LLAMA.id, seq_len=8192, **CUT)
    whole = setup.but(ds_config=config | {"tensor_parallel": {"autotp_size": 4}})
    assert split(whole, LLAMA, 8).spec.vocab == LLAMA.vocab
    assert price(setup.but(ds_config=config), LLAMA, MACHINE) == price(setup, LLAMA, MACHINE)
    assert price(whole, LLAMA, MACHINE).allocated_bytes > price(setup, LLAMA, MACHINE).allocated_bytes


def test_every_rank_reads_the_whole_model_on_the_host() -> None:
    setup = TrainingSetup(model=LLAMA.id, **CUT)
    whole = 4 * LLAMA.parameters  # LLaMA-Factory makes trained weights fp32 where they lie
    assert estimate(setup, LLAMA, MACHINE).host_bytes > 8 * whole
    halved = estimate(setup.but(param_dtype="bf16"), LLAMA, MACHINE).host_bytes
    assert 4 * whole < halved < 5 * whole
    assert estimate(setup.but(tensor_parallel=1), LLAMA, MACHINE).host_bytes < 1.1 * whole


@pytest.mark.engines
@pytest.mark.parametrize(("batch", "length", "vocab"), [(2, 256, 8192), (1, 512, 16384)])
def test_real_ranks_allocate_what_is_priced(batch: int, length: int, vocab: int) -> None:
    """Two ranks, one step, live bytes of every storage: forward with the loss, backward, optimizer."""
    shape = SHAPE | {"vocab_size": vocab}
    config = default_deepspeed_config(1, "none", 256, 2)
    config["zero_optimization"] |= {"reduce_bucket_size": 100_000, "allgather_bucket_size": 100_000}
    run = {"train_micro_batch_size_per_gpu": batch, "gradient_accumulation_steps": 1, "bf16": {"enabled": True}}
    asked = {"config": shape, "deepspeed": run | config, "batch": batch, "length": length}
    seen = probe("probe_autotp.py", json.dumps(asked), ranks=2)
    spec = interpret(shape | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"})
    setup = TrainingSetup(
        model="-", method="full", parallelism="zero1", tensor_parallel=2, seq_len=length, micro_batch_size=batch,
        param_dtype="bf16", ds_config=config,
    )  # fmt: skip
    told = estimate(setup, spec, parse_machine("2x24GB"))
    phases = {name: sum(vars(parts).values()) for name, parts in told.phases.items()}
    held = told.phases["loss"].weights + told.phases["loss"].optimizer + WORKSPACES
    assert told.phases["loss"].weights == 2 * seen["elements"]
    for measured, name in (("forward", "loss"), ("backward", "backward"), ("optimizer", "optimizer")):
        assert phases[name] - held == pytest.approx(seen[measured] - seen["start"], rel=0.01), name


WORKSPACES = 2 * (2 * 4096 * 1024 + 8 * 16 * 1024)  # cuBLAS's, which a CPU has not
