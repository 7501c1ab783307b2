"""What a traced job is made of, and what is refused: no torch is needed for either."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from planner.cli.app import run
from planner.errors import UnsupportedError
from planner.hardware.parse import parse_machine
from planner.model.catalogue import config_for, resolve
from planner.trace.job import Job, job_of
from planner.training import setup_from_mapping


def job(gpus: str = "1xA100-80GB", **setup: Any) -> Job:
    whole = setup_from_mapping({"model": "meta-llama/Llama-3.1-8B", "gpus": gpus, **setup})
    return job_of(whole, resolve(whole.model), config_for(whole.model), parse_machine(gpus))


@pytest.mark.parametrize(
    ("setup", "dtypes"),
    [
        ({"method": "full"}, ("fp32", "bf16", "fp32")),
        ({"method": "full", "engine": "transformers"}, ("bf16", None, "bf16")),
        ({"method": "lora"}, ("bf16", "bf16", "fp32")),
        ({"method": "qlora", "adapter_dtype": "bf16"}, ("bf16", None, "bf16")),
    ],
)
def test_dtypes_are_the_regimes(setup: dict[str, Any], dtypes: tuple[str, str | None, str]) -> None:
    made = job(**setup)
    held = made.adapter_dtype if made.is_adapter else made.trained_dtype
    assert (made.base_dtype, made.autocast, held) == dtypes


def test_cards_decide_over_kernels_and_workspaces() -> None:
    assert not job("1xT4", method="lora", compute_dtype="fp16").flash
    assert job("1xH100-80GB").workspace_bytes == 4 * 2**24 > job().workspace_bytes


def test_the_loss_path_is_the_asked_versions() -> None:
    assert job(engine="transformers", versions={"transformers": "4.48"}).loss == "hf_4_48"
    assert job(liger_kernel=True).loss == "fused_linear"


def test_units_of_fsdp2_follow_accelerate() -> None:
    four = {"gpus": "4xA100-80GB", "parallelism": "fsdp2", "method": "full"}
    assert not job(**four).outer_units_apart  # LLaMA-Factory's accelerate 1.11
    assert job(**four, engine="transformers").outer_units_apart


@pytest.mark.parametrize(
    ("setup", "named"),
    [
        ({"parallelism": "zero3", "gpus": "2xA100-80GB"}, "'zero3'"),
        ({"stage": "rm"}, "'rm'"),
        ({"stage": "dpo", "engine": "trl"}, "'trl'"),
        ({"method": "galore"}, "'galore'"),
        ({"engine": "torchtune"}, "'torchtune'"),
        ({"unsloth": True}, "unsloth"),
        ({"offload": "all"}, "'all'"),
        ({"torch_compile": True}, "torch_compile"),
        ({"gradient_checkpointing": "selective"}, "'selective'"),
        ({"optim": "adamw_torch_8bit"}, "'adamw_torch_8bit'"),
        ({"method": "qlora", "quantization_method": "gptq"}, "bitsandbytes"),
        ({"engine": "transformers", "versions": {"transformers": "4.45"}}, "hf_4_45"),
        ({"padded": True, "attention": "flash_attention_2"}, "padded"),
        ({"method": "qlora", "parallelism": "fsdp2", "gpus": "2xA100-80GB"}, "quantized"),
        ({"model": "mistralai/Mixtral-8x7B-v0.1", "engine": "transformers"}, "lora_target"),
        ({"loss": "chunked"}, "chunked"),
    ],
)
def test_what_cannot_be_traced_is_refused_by_name(setup: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedError, match="not traced") as found:
        job(**setup)
    assert named in found.value.sentence
    assert found.value.exit_code == 2


def test_missing_packages_are_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("planner.trace.run.find_spec", lambda name: None if name == "peft" else object())
    assert run(["trace", "--model", "8B", "--gpus", "1x24GB", "--json"]) == 6
    out, err = capsys.readouterr()
    assert json.loads(out)["hint"] == "pip install 'vramplan[trace]'"
    assert "needs peft, not installed" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--parallelism", "zero2"], "parallelism 'zero2'"),
        (["--capacity", "many"], "--capacity"),
        (["--method", "lorra"], "did you mean lora"),
        (["--from", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trace", "--model", "8B", "--gpus", "1x24GB", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_a_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from planner.trace import guard

    (tmp_path / "version.py").write_text("__version__ = 'none'\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(guard.shutil, "which", lambda _: None)
    with pytest.raises(UnsupportedError, match=r"C\+\+ compiler"):
        guard._compiled(tmp_path)


def test_a_torch_that_came_first_is_a_bug_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    from planner.trace import guard

    monkeypatch.setitem(sys.modules, "torch", object())
    with pytest.raises(RuntimeError, match="before torch"):
        guard.install()
