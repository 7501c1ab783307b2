"""GRPO's generation: worked out by hand for Llama-3-8B, and against live bytes of TRL's own on the CPU.

L 32 layers, h 4096, V 128256, K 1024 elements of a layer's keys. 2048 tokens: 1536 of a prompt, 512 of a completion.
"""

from __future__ import annotations

from typing import Any

import pytest

from planner.hardware.parse import parse_machine
from planner.memory import generation
from planner.memory.estimate import _work, estimate
from planner.memory.result import Estimate
from planner.model.catalogue import resolve
from planner.model.interpret import interpret
from planner.training import TrainingSetup

LLAMA = resolve("Meta-Llama-3-8B")
L, H, V, K, PROMPT, COMPLETION = 32, 4096, 128_256, 1024, 1536, 512
TRL: dict[str, Any] = {"stage": "grpo", "engine": "trl", "micro_batch_size": 2, "gradient_accumulation_steps": 8}

# tests/engines/scripts/live_generation.py on torch 2.13, transformers 5.23, trl 1.16: the most bytes alive in the
# prompts' pass and in the last token's, and the cache. tests/engines/test_generation.py takes them anew.
TINY = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8192, "hidden_size": 256,
    "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
    "max_position_embeddings": 1024, "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip
TINY_PROMPT, TINY_COMPLETION = 192, 12
LIVE = {
    ("full", "fp32", "bf16"): (46_325_592, 20_484_440, 6_651_904),
    ("lora", "fp32", "bf16"): (70_704_984, 9_309_704, 6_651_904),
    ("lora", "bf16", "bf16"): (51_437_400, 5_531_144, 3_325_952),
    ("full", "fp32", "none"): (58_122_072, 9_309_704, 6_651_904),
}


def predicted(method: str, held: str, autocast: str) -> tuple[int, int, int]:
    """The same three figures of the tiny model; its lengths are not those that a plan would have."""
    setup = TrainingSetup(
        model="-", stage="grpo", engine="trl", method=method, param_dtype=held,
        compute_dtype="fp32" if autocast == "none" else autocast, seq_len=TINY_PROMPT + TINY_COMPLETION,
        micro_batch_size=2, gradient_accumulation_steps=8,
    )  # fmt: skip
    step = generation._uncast(_work(setup, interpret(TINY), parse_machine("1x24GB")).timeline.step)
    rollout = generation.Rollout(sequences=16, prompt_tokens=TINY_PROMPT, completion_tokens=TINY_COMPLETION)
    prompts, last = (
        max(live.activations + live.logits + live.temporaries for live in moments)
        for moments in (generation._prompts(step, rollout), generation._last_token(step, rollout))
    )
    return prompts, last, generation._cache(step, 16, TINY_PROMPT + TINY_COMPLETION - 1)


@pytest.mark.parametrize("case", LIVE)
def test_within_its_bounds_of_the_bytes_that_trl_held_alive(case: tuple[str, str, str]) -> None:
    prompts, last, cache = predicted(*case)
    assert cache == LIVE[case][2]
    assert prompts / LIVE[case][0] == pytest.approx(1, abs=0.13)
    assert last / LIVE[case][1] == pytest.approx(1, abs=0.15)


def run(gpus: str = "1xA100-80GB", **fields: Any) -> Estimate:
    return estimate(TrainingSetup(model=LLAMA.id, **(TRL | fields)), LLAMA, parse_machine(gpus))


def rolled(**fields: Any) -> list[generation.Live]:
    setup = TrainingSetup(model=LLAMA.id, **(TRL | fields))
    step = _work(setup, LLAMA, parse_machine("1xA100-80GB")).timeline.step
    return list(generation.moments(step, generation.rollout_of(setup)))


def test_the_last_token_of_a_16_bit_base_by_hand() -> None:
    """16 sequences: keys and values 2K in 16 bit a layer, one layer's keys twice; 8V of the token before, 2V made."""
    *_, growing, last = rolled(method="lora", param_dtype="bf16")
    cache = L * 2 * 2 * K * 16 * (PROMPT + COMPLETION - 1)
    assert growing.activations == cache + 2 * K * 16 * (PROMPT + COMPLETION - 1)
    assert (last.activations, last.logits) == (cache, (8 + 2) * V * 16)


def test_full_fine_tuning_caches_in_fp32_and_casts_every_matrix_for_each_token() -> None:
    *_, growing, last = rolled(method="full")
    assert last.activations == 2 * L * 2 * 2 * K * 16 * (PROMPT + COMPLETION - 1)
    assert last.logits == (8 + 2 + 4) * V * 16
    assert last.temporaries - growing.temporaries == 2 * V * H  # the head's 16-bit copy


def test_all_micro_batches_of_a_step_are_generated_together() -> None:
    """Neither a smaller micro batch nor more accumulation makes generation smaller; more GPUs do."""
    small = rolled(method="lora", micro_batch_size=1, gradient_accumulation_steps=16)
    assert small == rolled(method="lora", micro_batch_size=16, gradient_accumulation_steps=1)
    half = rolled(method="lora", micro_batch_size=1, gradient_accumulation_steps=8)
    assert [live.activations for live in half] == pytest.approx([live.activations / 2 for live in small], rel=0.01)


def test_only_completions_are_scored() -> None:
    """The loss's tiles read the hidden states of 512 of 2048 tokens, so its activations differ by three quarters."""
    whole, scored = run(stage="sft", method="lora").phases["loss"], run(method="lora").phases["loss"]
    assert scored.logits < whole.logits


def test_deepspeed_3_gathers_the_whole_model_to_generate() -> None:
    forward = run(gpus="8xA100-80GB", method="full", parallelism="zero3").phases["forward"]
    assert forward.communication >= 2 * 8_030_261_248 * 7 // 8
    assert run(gpus="8xA100-80GB", method="full", parallelism="fsdp2").phases["forward"].communication < 8 * 2**30


def test_evaluation_generates_too() -> None:
    none, some = run(method="lora"), run(method="lora", eval_micro_batch_size=8)
    assert "eval" not in none.phases
    assert some.phases["eval"].activations > 8 * (PROMPT + COMPLETION - 1) * L * 2 * 2 * K


def test_the_estimate_says_what_it_takes_for_granted_and_that_nobody_measured_it() -> None:
    answer = run(method="lora")
    said = " ".join(answer.assumptions)
    assert "num_generations 8, max_completion_length 512 of the 2048 tokens" in said
    assert "generates for the 16 sequences of a GPU's step at once" in said
    assert "GRPO, which no published run covers: no published run, a floor alone" in said
    assert any("stage grpo is priced from its source code; no published peak" in each for each in answer.warnings)
    low, high = answer.interval["allocated_bytes"]
    assert high - low > 0.25 * answer.allocated_bytes


@pytest.mark.parametrize(("batch", "number"), [(64, 8), (63, 7), (12, 6), (8, 8), (2, 2), (1, None), (11, None)])
def test_whole_groups_of_completions(batch: int, number: int | None) -> None:
    assert generation.generations(batch) == number


@pytest.mark.parametrize(("length", "completion"), [(2048, 512), (1024, 512), (600, 300), (64, 32), (1, 1)])
def test_a_completion_is_trls_default_and_at_most_half(length: int, completion: int) -> None:
    assert generation.completion_tokens(length) == completion


def test_a_sliding_window_is_all_that_its_layers_keep() -> None:
    spec = resolve("gemma-2-9b")
    setup = TrainingSetup(model=spec.id, **(TRL | {"seq_len": 16384, "param_dtype": "bf16"}))
    step = _work(setup, spec, parse_machine("1xA100-80GB")).timeline.step
    windows = {layer.block.attention.sliding_window for layer in step.parts.layers}
    assert 4096 in windows
    assert generation._cache(step, 1, 16000) < 0.7 * generation._cache(step, 1, 4096) * 16000 / 4096
