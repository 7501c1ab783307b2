"""Which engine is chosen among what is installed, and that asking imports nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from planner.errors import InputError, UnsupportedError
from planner.targets.choose import choose_engine, installed
from planner.training import TrainingSetup

BASIC = {"torch": "2.13.0", "transformers": "5.23.0", "accelerate": "1.15.0", "peft": "0.21.2"}
TRL, LF = BASIC | {"trl": "1.16.0"}, BASIC | {"llamafactory": "0.9.5", "trl": "0.24.0"}
SETUP = TrainingSetup(model="7B")


@pytest.mark.parametrize(
    ("packages", "stage", "engine", "words"),
    [
        (LF, "sft", "llamafactory", "quick fine-tuning"),
        (TRL, "sft", "trl", "LLaMA-Factory is not installed"),
        (BASIC, "sft", "embedded", "lies in the folder itself"),
        (TRL, "dpo", "trl", "has this stage"),
    ],
)
def test_the_choice_and_its_reason(packages: dict, stage: str, engine: str, words: str) -> None:
    choice = choose_engine(packages, SETUP.but(stage=stage), stage, 1)
    assert choice.value == engine
    assert words in choice.because


def test_an_old_trl_is_not_taken() -> None:
    choice = choose_engine(BASIC | {"trl": "0.24.0"}, SETUP, "sft", 1)
    assert choice.value == "embedded"
    assert "TRL is 0.24.0, and its files are written for 1.15 or newer" in choice.because


def test_what_the_setup_needs_beside_the_engine_counts() -> None:
    with pytest.raises(UnsupportedError, match=r"LLaMA-Factory lacks deepspeed; TRL .*; the embedded .* deepspeed"):
        choose_engine(LF, SETUP.but(parallelism="zero3"), "sft", 2)
    assert choose_engine(LF | {"deepspeed": "0.18"}, SETUP.but(parallelism="zero3"), "sft", 2).value == "llamafactory"


def test_nothing_that_is_installed_is_one_sentence() -> None:
    with pytest.raises(UnsupportedError, match=r"no engine that is installed runs stage ppo: .*TRL has no stage ppo"):
        choose_engine(TRL, SETUP, "ppo", 1)


def test_grpo_goes_to_trl_and_says_why() -> None:
    choice = choose_engine(LF | TRL, SETUP, "grpo", 1)
    assert (choice.value, "LLaMA-Factory has no stage grpo" in choice.because) == ("trl", True)
    with pytest.raises(UnsupportedError, match=r"LLaMA-Factory has no stage grpo; TRL is 0.24.0, and its files"):
        choose_engine(LF, SETUP, "grpo", 1)


def test_many_gpus_name_megatron_and_emit_nothing_for_it() -> None:
    assert "Megatron-LM" not in choose_engine(LF, SETUP, "sft", 32).because
    choice = choose_engine(LF, SETUP, "sft", 64)
    assert choice.value == "llamafactory"
    assert "Megatron-LM" in choice.because


def test_another_python_is_asked() -> None:
    assert installed(sys.executable) == installed()
    link = installed(Path(sys.executable).resolve())
    assert all(isinstance(text, str) for text in link.values())


def test_what_is_no_python_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not answer as a Python"):
        installed(tmp_path / "python")
    with pytest.raises(InputError, match="does not answer as a Python"):
        installed("/bin/echo")
