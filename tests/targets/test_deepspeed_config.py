"""The buckets that are emitted are the buckets that are priced."""

from __future__ import annotations

import pytest

from planner.errors import InputError, UnsupportedError
from planner.memory.deepspeed_config import default_deepspeed_config, read_buckets


def test_stage_3_states_what_auto_resolves_to() -> None:
    stated = default_deepspeed_config(3, "none", 4096)
    auto = {
        "zero_optimization": stated["zero_optimization"]
        | dict.fromkeys(
            ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"), "auto"
        )
    }
    assert read_buckets(stated, 4096) == read_buckets(auto, 4096)
    assert read_buckets(stated, 4096).reduce_bucket_elements == 16_777_216
    assert read_buckets(stated, 4096).prefetch_elements == 15_099_494
    assert read_buckets(stated, 4096).persistence_elements == 40_960


@pytest.mark.parametrize("stage", [1, 2])
def test_stage_1_and_2_take_the_examples_buckets(stage: int) -> None:
    buckets = read_buckets(default_deepspeed_config(stage, "optimizer", 4096), 4096)
    assert buckets.stage == stage
    assert buckets.offload == "optimizer"
    assert buckets.reduce_bucket_elements == buckets.allgather_bucket_elements == 500_000_000
    assert not buckets.overlap_comm


@pytest.mark.parametrize("offload", ["none", "optimizer", "params", "all", "nvme"])
def test_offload_reads_back(offload: str) -> None:
    assert read_buckets(default_deepspeed_config(3, offload, 64), 64).offload == offload


@pytest.mark.parametrize("offload", ["params", "all", "nvme"])
def test_parameters_stay_on_the_gpu_below_stage_3(offload: str) -> None:
    with pytest.raises(UnsupportedError, match="zero3"):
        default_deepspeed_config(2, offload, 64)


def test_absent_keys_mean_deepspeeds_own_defaults() -> None:
    buckets = read_buckets({"zero_optimization": {"stage": 3}}, 4096)
    assert buckets.reduce_bucket_elements == 500_000_000
    assert buckets.prefetch_elements == 50_000_000
    assert buckets.persistence_elements == 100_000
    assert buckets.overlap_comm


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"zero_optimization": {"stage": 4}}, "stage 4"),
        ({"zero_optimization": {"stage": 2, "allgather_bucket_size": "auto"}}, "allgather_bucket_size"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": "big"}}, "'big'"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "gpu"}}}, "'gpu'"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}, "offload_optimizer"),
        ({"zero_optimization": {"stage": 2}, "data_types": {"grad_accum_dtype": "int8"}}, "'int8'"),
        ({"zero_optimization": True}, "not an object"),
    ],
)
def test_what_deepspeed_would_misread_is_refused(config: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_buckets(config, 64, place="ds.json")
