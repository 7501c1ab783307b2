"""Counts by component; the parts sum to the total, and nf4 bytes are those of the published file."""

import pytest

from planner.model.catalogue import resolve, specs
from planner.model.count import count
from planner.model.stored import stored_bytes_nf4, stored_bytes_plain

# Remote code that transformers does not have: the sums of the checkpoints' tensors (total_size of their index files,
# divided by two bytes; ChatGLM's less its 32 rotary frequencies), as known, without the files opened again.
PUBLISHED = {
    "Qwen/Qwen-1_8B": 1_836_828_672,
    "Qwen/Qwen-7B": 7_721_324_544,
    "Qwen/Qwen-14B": 14_167_290_880,
    "Qwen/Qwen-72B": 72_287_920_128,
    "baichuan-inc/Baichuan-7B": 7_000_559_616,
    "baichuan-inc/Baichuan-13B-Base": 13_264_901_120,
    "baichuan-inc/Baichuan2-7B-Base": 7_505_973_248,
    "baichuan-inc/Baichuan2-13B-Base": 13_896_668_160,
    "zai-org/chatglm2-6b": 6_243_584_000,
    "zai-org/chatglm3-6b": 6_243_584_000,
    "zai-org/glm-4-9b-chat": 9_399_951_360,
    "internlm/internlm2-1_8b": 1_889_110_016,
    "internlm/internlm2-7b": 7_737_708_544,
    "internlm/internlm2-20b": 19_861_149_696,
    "zai-org/chatglm-6b": 6_173_286_400,
    "deepseek-ai/deepseek-moe-16b-base": 16_375_728_128,
    "LGAI-EXAONE/EXAONE-3.0-7.8B-Instruct": 7_818_448_896,
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_remote_code_families_equal_their_published_totals(model):
    spec = resolve(model)
    assert spec.remote_code
    assert spec.parameters == PUBLISHED[model]


def test_llama3_8b_by_component():
    counted = count(resolve("Llama-3-8B"))
    ((layers, block),) = counted.by_run
    assert layers == 32
    assert (block.attention, block.mlp, block.norms) == (41_943_040, 176_160_768, 8192)
    assert (counted.embedding, counted.head, counted.final_norm) == (525_336_576, 525_336_576, 4096)
    assert counted.total == 8_030_261_248


def test_tied_weights_count_once():
    counted = count(resolve("Llama-3.2-1B"))
    assert counted.head == 0
    assert counted.total == 1_235_814_400


def test_only_the_chosen_experts_are_active():
    counted = count(resolve("Mixtral-8x7B"))
    assert counted.total - counted.active == 32 * 6 * 3 * 4096 * 14336
    dense = count(resolve("Llama-3-8B"))
    assert dense.active == dense.total


def test_opt_350m_projects_its_narrow_embedding():
    counted = count(resolve("opt-350m"))
    assert counted.embedding == 50272 * 512 + 2 * 512 * 1024
    assert counted.positions == 2050 * 1024
    assert counted.final_norm == 0
    assert counted.total == 331_196_416


def test_components_of_every_model_sum_to_its_parameters():
    for spec in specs():
        counted = count(spec)
        assert counted.total == spec.parameters, spec.id
        assert sum(number * block.total for number, block in counted.by_run) == counted.blocks
        assert 0 < counted.active <= counted.total


def test_nf4_bytes_of_llama3_8b_are_those_of_the_published_file():
    spec = resolve("Llama-3-8B")
    assert stored_bytes_nf4(spec) == 5_702_295_552
    assert stored_bytes_nf4(spec, maps=True) == 5_702_295_552 + 224 * (64 + 1024)
    single = stored_bytes_nf4(spec, double=False)
    elements = 32 * 218_103_808
    assert single - stored_bytes_nf4(spec) == elements // 16 - elements // 64 - elements // 4096


def test_stacked_experts_stay_in_16_bit():
    spec = resolve("Mixtral-8x7B")
    assert stored_bytes_nf4(spec) > 3 * stored_bytes_nf4(spec, stacked_experts=False)


def test_plain_bytes_follow_the_stored_dtype():
    assert stored_bytes_plain(resolve("gpt2")) == 4 * 124_439_808
    assert stored_bytes_plain(resolve("Llama-3-8B")) == 2 * 8_030_261_248
