"""The flags are the contract's fields: none missing, none invented, each reaching the setup under its own name."""

from __future__ import annotations

from typing import Any

import pytest

from planner.cli.commands.plan import request_from
from planner.cli.flags import ESTIMATE_FLAGS, PLAN_FLAGS, comma_list, given
from planner.cli.io import open_setup_values
from planner.errors import InputError
from planner.training import FIELD_NAMES, setup_from_mapping

NO_PIN = {"gradient_accumulation_steps"}


def names(flags: Any) -> list[str]:
    return [flag.name for flag in flags]


def blank(**given_values: Any) -> dict[str, Any]:
    return dict.fromkeys(names(PLAN_FLAGS)) | given_values


def test_every_field_of_a_setup_is_a_flag_of_estimate() -> None:
    assert set(names(ESTIMATE_FLAGS)) - {"ram", "machine", "from", "json"} == set(FIELD_NAMES)


def test_the_main_job_takes_every_field_but_the_accumulation_it_computes() -> None:
    assert set(FIELD_NAMES) - set(names(PLAN_FLAGS)) == NO_PIN


@pytest.mark.parametrize("flags", [PLAN_FLAGS, ESTIMATE_FLAGS])
def test_no_flag_is_there_twice(flags: Any) -> None:
    assert len(names(flags)) == len(set(names(flags)))


def test_flags_are_spelled_with_dashes() -> None:
    assert {flag.option for flag in ESTIMATE_FLAGS} >= {"--lora-rank", "--eval-micro-batch-size", "--from"}


WORDS = {
    "model": ("7B", "7B"),
    "method": ("qlora", "qlora"),
    "lora_rank": ("16", 16),
    "lora_target": ("q_proj,v_proj", ("q_proj", "v_proj")),
    "lora_dropout": ("0.05", 0.05),
    "additional_target": ("embed_tokens,lm_head", ("embed_tokens", "lm_head")),
    "quantization_bit": ("8", 8),
    "double_quantization": (False, False),
    "seq_len": ("4096", 4096),
    "packing": (True, True),
    "gradient_checkpointing": ("selective", "selective"),
    "parallelism": ("zero3", "zero3"),
    "versions": ("transformers=4.48,accelerate=1.11", {"transformers": "4.48", "accelerate": "1.11"}),
}


def test_versions_may_be_json_too() -> None:
    assert open_setup_values({"versions": '{"transformers": "4.48"}'}) == {"versions": {"transformers": "4.48"}}


@pytest.mark.parametrize("name", WORDS)
def test_words_of_flags_become_typed_values(name: str) -> None:
    word, value = WORDS[name]
    setup = setup_from_mapping({"model": "7B"} | open_setup_values({name: word}))
    assert getattr(setup, name) == value


@pytest.mark.parametrize(("word", "value"), [("true", True), ("false", False), ("4", 4), ("1", 1)])
def test_checkpointing_takes_words_and_numbers(word: str, value: object) -> None:
    setup = setup_from_mapping({"model": "7B", "gradient_checkpointing": word})
    assert setup.gradient_checkpointing == value
    assert type(setup.gradient_checkpointing) is type(value)


def test_the_request_holds_what_was_said_and_pins_only_that() -> None:
    values = blank(
        model="7B", lora_rank="16", micro_batch_size="2", allow=["a,b", "c"], global_batch="32", method="auto"
    )
    request = request_from(values)
    assert request.pinned == {"lora_rank": 16, "micro_batch_size": 2}
    assert request.allow == {"a", "b", "c"}
    assert request.global_batch == 32
    assert request.method is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"global_batch": "0"}, ("--global-batch", "'0'")),
        ({"global_batch": "-4"}, ("--global-batch", "'-4'")),
        ({"objective": "quantity"}, ("--objective", "quality")),
        ({"method": "loar"}, ("method", "lora")),
        ({"seq_len": "-5"}, ("seq_len", "-5")),
        ({"seq_len": "long"}, ("seq_len", "long")),
        ({"parallelism": "zero4"}, ("parallelism", "zero")),
        ({"versions": "transformers"}, ("--versions", "transformers=4.48")),
        ({"ds_config": "nowhere.json"}, ("--ds-config", "nowhere.json")),
        ({"lora_rank": "-1"}, ("lora_rank", "-1")),
        ({"gradient_checkpointing": "sometimes"}, ("gradient_checkpointing", "sometimes")),
        ({"quantization_bit": "5"}, ("quantization_bit", "5")),
        ({"model": None}, ("model", "7B")),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_it(values: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        request_from(blank(model="7B") | values)
    assert "\n" not in caught.value.sentence
    for word in words:
        assert word in caught.value.sentence


def test_lists_of_flags() -> None:
    assert comma_list(["a, b", "c,,"]) == {"a", "b", "c"}
    assert comma_list(None) == frozenset()
    assert given({"seq_len": "5", "out": None}, PLAN_FLAGS) == {"seq_len": "5"}
