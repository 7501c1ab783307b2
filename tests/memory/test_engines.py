"""What engines with code of their own hold beside what transformers would: litgpt and hand-written loops.

Sources: litgpt model.py, lora.py and finetune/lora.py; bitsandbytes autograd/_functions.py before 0.43.2; the published
peaks of litgpt's configurations.
"""

from __future__ import annotations

from typing import Any

import pytest

from planner.hardware.parse import parse_machine
from planner.memory.estimate import as_built, estimate
from planner.memory.result import Estimate
from planner.model.catalogue import resolve
from planner.model.modules import block_linears
from planner.training import TrainingSetup

MACHINE = parse_machine("1xA10G-24GB")


def priced(model: str, **fields: Any) -> Estimate:
    setup = TrainingSetup(model=model, engine="litgpt", **{"seq_len": 512, "gradient_checkpointing": False, **fields})
    return estimate(setup, resolve(model), MACHINE)


def test_litgpt_never_ties_the_head() -> None:
    spec = resolve("gemma-2b")
    assert spec.tied_embeddings
    assert priced("gemma-2b").total_parameters > spec.parameters + spec.vocab * spec.hidden


@pytest.mark.parametrize(
    ("versions", "elements"),
    [
        pytest.param({"litgpt": "0.4", "bitsandbytes": "0.43.2"}, 0, id="nothing kept"),
        pytest.param({"litgpt": "0.1", "bitsandbytes": "0.42"}, 1, id="this batch's"),
        pytest.param({"litgpt": "0.4", "bitsandbytes": "0.42"}, 2, id="and the last one's"),
    ],
)
def test_inputs_of_packed_products(versions: dict[str, str], elements: int) -> None:
    """Llama-2-7B reads h, h, h and 11,008 elements a token in every layer; one h of these a batch keeps anyway."""
    fields: dict[str, Any] = {"method": "qlora", "lora_target": ("q_proj", "v_proj"), "micro_batch_size": 2}
    none = priced("llama-2-7b", **fields, versions={"litgpt": "0.4", "bitsandbytes": "0.43.2"})
    some = priced("llama-2-7b", **fields, versions=versions)
    this, last = 32 * (2 * 4096 + 11_008) * 2 * 1024, 32 * (3 * 4096 + 11_008) * 2 * 1024
    expected = (0, this, this + last)[elements]
    assert some.allocated_bytes - none.allocated_bytes == pytest.approx(expected, rel=0.03)


def test_old_bitsandbytes_costs_a_trainer_its_inputs_too() -> None:
    setup = TrainingSetup(
        model="llama-2-7b", engine="transformers", method="qlora", lora_target=("q_proj",), gradient_checkpointing=False
    )
    spec = resolve("llama-2-7b")
    new, old = (
        estimate(setup.but(versions={"bitsandbytes": text}), spec, MACHINE).allocated_bytes
        for text in ("0.43.2", "0.43.1")
    )
    assert old > new


def own(engine: str, model: str, **fields: Any) -> Estimate:
    setup = TrainingSetup(model=model, engine=engine, **{"method": "full", "param_dtype": "bf16", **fields})
    return estimate(setup, resolve(model), parse_machine("1xH100-80GB"))


def test_own_modeling_files_drop_nothing_in_residual_branches() -> None:
    """Phi-2's config drops a tenth of both branches in training: a mask of one byte an element each."""
    fields: dict[str, Any] = {"method": "lora", "gradient_checkpointing": False, "seq_len": 1024, "loss": "torch"}
    spec = resolve("phi-2")
    assert spec.dropout
    kept = [own(name, "phi-2", **fields).phases["forward"].activations for name in ("litgpt", "pytorch")]
    assert kept[1] - kept[0] >= 2 * spec.hidden * spec.layers * 1024


def test_litgpt_builds_gate_and_up_apart_whatever_the_checkpoint_does() -> None:
    spec = resolve("phi-3-mini-4k-instruct")
    roles = {}
    for engine in ("litgpt", "transformers"):
        built = as_built(TrainingSetup(model=spec.id, engine=engine), spec)
        roles[engine] = {lin.role for lin in block_linears(built, built.runs[0].block)}
    assert {"gate", "up"} < roles["litgpt"]
    assert "gate_up" in roles["transformers"]


def test_compiled_rotation_leaves_litgpts_whole_projection_beside_new_queries_and_keys() -> None:
    """4h bytes a token and layer more than where they turn in place; seen in litgpt 0.5 compiled on the CPU."""
    fields: dict[str, Any] = {"gradient_checkpointing": False, "loss": "torch", "optim": "sgd"}
    kept = {
        name: own("litgpt", "llama-2-7b", seq_len=1024, **{name: True}, **fields).phases["loss"].activations
        for name in ("torch_compile", "liger_kernel")
    }
    assert kept["torch_compile"] - kept["liger_kernel"] == pytest.approx(32 * 4 * 4096 * 1024, rel=1 / 31)


def test_torchtune_holds_a_table_of_every_position() -> None:
    spec = resolve("llama-3.1-8b")
    tune, bare = (own(name, spec.id).phases["load"].weights for name in ("torchtune", "torchtitan"))
    half = own("torchtitan", spec.id, param_dtype="bf16").phases["load"].weights
    assert bare == half
    assert tune - bare == 4 * 131_072 * 128


def test_only_transformers_trainer_keeps_embeddings_in_32_bit_states() -> None:
    spec = resolve("llama-3.1-8b")
    trainer, tune = (
        own(name, spec.id, optim="adamw_8bit").phases["optimizer"].optimizer for name in ("transformers", "torchtune")
    )
    assert trainer - tune == pytest.approx(2 * 3 * spec.vocab * spec.hidden, rel=0.01)


def test_the_root_units_norm_runs_in_16_bit_under_fsdp() -> None:
    """The final norm of a mixed precision run keeps and hands out 2h a token, not the 4h of fp32 weights' stream."""
    setup = TrainingSetup(
        model="mistral-7b", engine="transformers", versions={"transformers": "4.45"}, method="full", loss="fused",
        unsloth=True, param_dtype="fp32", compute_dtype="bf16", seq_len=4096, micro_batch_size=8, parallelism="fsdp",
    )  # fmt: skip
    spec = resolve(setup.model)
    four, two = (estimate(setup.but(seq_len=length), spec, parse_machine("4xA100-80GB")) for length in (4096, 2048))
    slope = (four.phases["loss"].activations - two.phases["loss"].activations) / (8 * 2048)
    assert slope == pytest.approx(32 * 2 * 4096 + 2 * 2 * 4096 + 32 + 4, abs=8)


def titan(seq_len: int, **fields: Any) -> Estimate:
    setup = TrainingSetup(
        model="Llama-3.1-8B", engine="torchtitan", stage="pt", method="full", gpus="8xH100-80GB", packing=True,
        parallelism="fsdp2", param_dtype="fp32", compute_dtype="bf16", seq_len=seq_len, **fields,
    )  # fmt: skip
    return estimate(setup, resolve(setup.model), parse_machine("8xH100-80GB"))


def test_torchtitan_runs_blocks_in_16_bits_with_fp32_parameters() -> None:
    """Its MixedPrecisionPolicy gathers bf16: a block keeps what a bf16 one keeps, 200,840 bytes a token of Llama-3-8B.

    The logits, of which none is named any more in backward, come on top.
    """
    short, long = (
        titan(seq_len, gradient_checkpointing=False).phases["backward"].activations for seq_len in (1024, 2048)
    )
    assert (long - short) / 1024 / 32 == pytest.approx(200_840, rel=0.01)


def test_torchtitan_keeps_every_second_product_from_the_first_on() -> None:
    """q, v, gate and down of q, k, v, o, gate, up, down, attention's output, its sums and the block's input."""
    short, long = (
        titan(seq_len, gradient_checkpointing="selective").phases["loss"].activations for seq_len in (4096, 8192)
    )
    kept = 2 * (4096 + 1024 + 14_336 + 4096) + 2 * 4096 + 4 * 32 + 2 * 4096
    assert (long - short) / 4096 / 32 == pytest.approx(kept, rel=0.02)


def test_torchtitan_reserves_the_logits_that_it_deleted() -> None:
    """12 bytes a logit live at once, and no block of 4 bytes each fits into the 2 that its deleted prediction left."""
    (short_live, short), (long_live, long) = (
        (each.allocated_bytes, each.reserved_bytes)
        for each in (titan(seq_len, gradient_checkpointing="selective") for seq_len in (4096, 8192))
    )
    per_logit = ((long - short) - (long_live - short_live)) / 4096 / 128_256
    assert 2 <= per_logit < 3.5  # 1.0 is the share that blocks of unlike purposes add


def by_hand(engine: str, **fields: Any) -> Estimate:
    """GPT-2 of 12 layers in fp32, two sequences of 512 tokens, as a hand-written loop trains it."""
    setup = TrainingSetup(
        model="gpt2", engine=engine, stage="pt", method="full", seq_len=512, micro_batch_size=2, param_dtype="fp32",
        compute_dtype="fp32", optim="adamw_torch", **{"gradient_checkpointing": False, **fields},
    )  # fmt: skip
    return estimate(setup, resolve(setup.model), MACHINE)


def test_outputs_of_the_last_step_lie_beside_the_next_forward_pass() -> None:
    """``outputs = model(...)``: fp32 logits, and keys and values of 768 fp32 numbers in each of the 12 layers."""
    running, one = by_hand("pytorch"), by_hand("pytorch-step")
    held = (4 * 50_257 + 12 * 2 * 4 * 768) * 1024
    for phase in ("forward", "loss"):
        assert running.phases[phase].total - one.phases[phase].total == held
    assert running.phases["backward"].total == one.phases["backward"].total


def test_checkpointing_switches_the_cache_off() -> None:
    running, one = (by_hand(engine, gradient_checkpointing=True) for engine in ("pytorch", "pytorch-step"))
    assert running.phases["forward"].total - one.phases["forward"].total == 4 * 50_257 * 1024


def test_a_cache_copies_keys_and_values_out_of_a_fused_projection() -> None:
    """The views' fused tensor stays for the queries; a trainer makes no cache. 2 x 768 numbers a layer and token."""
    hand, trainer = by_hand("pytorch-step"), by_hand("transformers-pure")
    gap = hand.phases["forward"].activations - trainer.phases["forward"].activations
    assert gap == pytest.approx(12 * 2 * 4 * 768 * 1024, rel=0.1)


def test_outputs_are_still_named_in_the_optimizers_step() -> None:
    hand, trainer = by_hand("pytorch-step"), by_hand("transformers-pure")
    held = (4 * 50_257 + 12 * 2 * 4 * 768) * 1024
    assert hand.phases["optimizer"].total - trainer.phases["optimizer"].total == held
