"""Several data sets in one run: what an epoch of them is, what their lengths are, and what LLaMA-Factory is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cli.app import run
from planner.data.lengths import measure
from planner.data.mixing import Mixing, mixing
from planner.data.source import data_source
from planner.emit.folder import plan_files
from planner.errors import InputError, UnsupportedError
from planner.plan.plan import Request
from planner.targets.yaml_text import load_yaml
from planner.training import TrainingSetup
from tests.data_lengths.test_lengths import marks, model_folder, planned, written
from tests.emit.plans import machine, plan_of

UNDER = Mixing(strategy="interleave_under", probs=(0.75, 0.25))


def rows(number: int, words: int) -> list[dict[str, Any]]:
    return [{"instruction": "a", "output": "b " * words} for _ in range(number)]


@pytest.fixture
def two(tmp_path: Path) -> str:
    """A hundred short samples and twenty long ones."""
    short, long = written(tmp_path / "chat.jsonl", rows(100, 10)), written(tmp_path / "code.json", rows(20, 500))
    return f"{short},{long}"


@pytest.mark.parametrize(
    ("strategy", "probs", "samples", "shares"),
    [
        ("concat", (), 120, (100 / 120, 20 / 120)),
        ("interleave_under", (), 40, (0.5, 0.5)),
        ("interleave_over", (), 200, (0.5, 0.5)),
        ("interleave_under", (0.75, 0.25), 80, (0.75, 0.25)),  # 20 / 0.25 before 100 / 0.75
        ("interleave_over", (0.75, 0.25), 133, (0.75, 0.25)),
    ],
)
def test_what_an_epoch_is(strategy: str, probs: tuple[float, ...], samples: int, shares: tuple[float, ...]) -> None:
    mix = mixing(strategy, probs)
    assert mix.samples((100, 20)) == samples
    assert mix.shares((100, 20)) == pytest.approx(shares)
    assert mix.samples((100, None)) is None


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=4))
def test_undersampling_is_never_more_than_all_and_oversampling_never_less(counts: list[int]) -> None:
    under, over = mixing("interleave_under").samples(counts), mixing("interleave_over").samples(counts)
    assert under is not None and over is not None
    assert under <= sum(counts) <= over


@pytest.mark.parametrize(
    ("strategy", "probs", "words"),
    [
        ("interleave", None, "did you mean interleave_over or interleave_under"),
        ("concat", "0.5,0.5", "goes with --mix-strategy interleave_under"),
        ("interleave_over", "0.5,0.4", "add up to 0.9"),
        ("interleave_over", "0.5,x", "is not valid: numbers above 0"),
        ("interleave_over", "1.5,-0.5", "is not valid: numbers above 0"),
    ],
)
def test_a_mixture_that_cannot_be_is_one_sentence(strategy: str, probs: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        mixing(strategy, probs)
    with pytest.raises(InputError, match=words):
        Request(model="7B", mix_strategy=strategy, interleave_probs=probs or ())  # type: ignore[arg-type]


def test_numbers_and_sets_go_together(two: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 3 numbers, and --data names 2"):
        data_source(two, "sft", mixing("interleave_over", "0.5,0.25,0.25"))
    with pytest.raises(InputError, match="mixes several data sets, and --data names one"):
        data_source(two.partition(",")[0], "sft", mixing("interleave_over"))
    with pytest.raises(InputError, match="mixes several data sets"):
        data_source(None, "sft", mixing("interleave_over"))
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("train.jsonl", "valid.jsonl"):
        written(folder / name, rows(5, 5))
    with pytest.raises(InputError, match="1 validation files beside 2 data sets"):
        data_source(f"{folder},{two.partition(',')[0]}", "sft", UNDER)
    assert data_source(f"{folder},{two.partition(',')[0]}", "sft").eval_dataset == "folder_train_valid"


def test_sets_are_registered_by_their_names(two: str, tmp_path: Path) -> None:
    again = tmp_path / "more"
    again.mkdir()
    source = data_source(f"{two},{written(again / 'chat.jsonl', rows(5, 5))}", "sft")
    assert source.names == ("chat", "code", "chat_2")
    assert source.samples == 125
    assert {entry["file_name"].rpartition(".")[2] for entry in source.info.values()} == {"jsonl", "json"}


def test_a_name_with_a_comma_is_one_set(tmp_path: Path) -> None:
    file = written(tmp_path / "a,b.jsonl", rows(3, 3))
    assert data_source(str(file), "sft").dataset == "train"


def test_lengths_are_those_of_the_mixture(two: str, tmp_path: Path) -> None:
    from planner.model.catalogue import resolve

    spec = resolve(str(model_folder(tmp_path / "model")))
    short, long = 11 + marks(2), 501 + marks(2)
    plain = measure(two, "sft", spec)
    assert plain is not None and plain.whole and plain.exact
    assert plain.lengths == (short,) * 100 + (long,) * 20
    assert [part.share for part in plain.mixture] == [0.8333, 0.1667]
    even = measure(two, "sft", spec, mixing("interleave_over"))
    assert even is not None
    assert even.mean == pytest.approx((short + long) / 2, rel=0.001)
    assert (even.samples, even.quantile(0.5), even.quantile(0.51), even.longest) == (200, short, long, plain.longest)
    rare = measure(two, "sft", spec, mixing("interleave_over", "0.995,0.005"))
    assert rare is not None and rare.quantile(0.99) == short and rare.lengths[-1] == long


def test_llamafactory_is_told(two: str) -> None:
    plan = plan_of(TrainingSetup(model="-", parallelism="none"), on=machine(1), data=two)
    values = load_yaml(plan_files(plan)["train.yaml"], place="train.yaml")
    assert (values["dataset"], values["mix_strategy"]) == ("chat,code", "concat")
    assert "interleave_probs" not in values
    request = Request(model="7B", data=two, mix_strategy="interleave_under", interleave_probs=(0.75, 0.25))
    mixed = plan_files(replaced(plan, request))
    values = load_yaml(mixed["train.yaml"], place="train.yaml")
    assert (values["mix_strategy"], values["interleave_probs"]) == ("interleave_under", "0.75,0.25")
    assert set(json.loads(mixed["dataset_info.json"])) == {"chat", "code"}
    assert "interleave_under, 0.75 : 0.25" in mixed["README.md"]


def replaced(plan: Any, request: Request) -> Any:
    from dataclasses import replace

    return replace(plan, request=request)


def test_the_scripts_read_sets_one_after_the_other(two: str) -> None:
    for engine in ("embedded", "transformers"):
        setup = TrainingSetup(model="-", engine=engine, parallelism="none")
        plan = plan_of(setup, on=machine(1), data=two)
        name = "train.json" if engine == "embedded" else "train_args.json"
        assert json.loads(plan_files(plan)[name])["data"]["dataset"] == "chat,code"
        with pytest.raises(UnsupportedError, match="one after the other"):
            plan_files(replaced(plan, Request(model="7B", data=two, mix_strategy="interleave_over")))
    with pytest.raises(UnsupportedError, match="its script reads one"):
        plan_files(plan_of(TrainingSetup(model="-", engine="trl", parallelism="none"), on=machine(1), data=two))


def test_a_plan_for_a_mixture(two: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two --data and a comma list are the same; the request is kept, so that the folder is the same again."""
    model, (one, other) = model_folder(tmp_path / "model"), two.split(",")
    words = ("--model", str(model), "--mix-strategy", "interleave_over", "--interleave-probs", "0.9,0.1")
    apart = planned(capsys, tmp_path, *words, "--data", one, "--data", other)
    listed = planned(capsys, tmp_path, *words, "--data", two)
    assert apart["request"] == listed["request"]
    assert apart["request"]["interleave_probs"] == [0.9, 0.1]
    assert apart["data"]["samples"] == 200  # 20 / 0.1
    assert [part["name"] for part in apart["data"]["mixture"]] == ["chat", "code"]
    assert any("is 90% chat, 10% code, about 200 samples" in each for each in apart["assumptions"])


def test_a_folder_of_a_mixture_is_read_again(two: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from planner.run.job import load_job
    from planner.run.worst import rehearsal

    model, out = model_folder(tmp_path / "model"), tmp_path / "plan"
    words = ["--model", str(model), "--gpus", "1x24GB", "--out", str(out), "--data", two]
    assert run([*words, "--mix-strategy", "interleave_over", "--interleave-probs", "0.9,0.1"]) == 0
    capsys.readouterr()
    job = load_job(out, {})
    assert (job.data.samples, job.edits) == (200, ())
    tried = rehearsal(job.setup, job.texts, ranks=1)
    assert tried is not None
    assert (tried.overrides["mix_strategy"], tried.overrides["interleave_probs"]) == ("concat", None)


def test_the_scripts_own_reader_joins_sets(two: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import importlib.util

    place = Path(__file__).resolve().parents[2] / "templates" / "trainer" / "samples.py"
    spec = importlib.util.spec_from_file_location("samples_of_the_script", place)
    assert spec is not None and spec.loader is not None
    samples = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(samples)
    monkeypatch.setattr(samples, "HERE", tmp_path)
    (tmp_path / "dataset_info.json").write_text(json.dumps(data_source(two, "sft").info))

    class Words:
        """A token a word."""

        chat_template, eos_token = None, " ."

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": list(range(len(text.split())))}

    data = {"stage": "sft", "cutoff_len": 600, "packing": False}
    assert len(samples.encode(Words(), "chat,code", data)) == 120
    assert len(samples.encode(Words(), "code", data)) == 20
