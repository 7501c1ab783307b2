"""Lengths of the user's data: read right in every format, honest about what was not counted, and used by the plan."""

from __future__ import annotations

import csv
import json
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cli.app import run
from planner.data import rows as rows_module
from planner.data.lengths import TOKENS_PER_MESSAGE, TOKENS_PER_SAMPLE, Lengths, count, measure
from planner.data.rows import sampled
from planner.data.tokens import Counter, letters
from planner.model.catalogue import resolve

WORDS = Counter("words", True, lambda text: len(text.split()))
ALPACA = {"columns": {"prompt": "instruction", "response": "output"}}
SAMPLES = [{"instruction": "a b c", "output": "d " * number} for number in range(1, 101)]


def marks(parts: int) -> int:
    return TOKENS_PER_SAMPLE + parts * TOKENS_PER_MESSAGE


def written(path: Path, samples: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(each) + "\n" for each in samples))
    elif path.suffix == ".json":
        path.write_text(json.dumps(samples, indent=1))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, samples[0])
            writer.writeheader()
            writer.writerows(samples)
    else:
        columns = pytest.importorskip("pyarrow").Table.from_pylist(samples)
        if path.suffix == ".parquet":
            pytest.importorskip("pyarrow.parquet").write_table(columns, path, row_group_size=30)
        else:
            ipc = pytest.importorskip("pyarrow.ipc")
            with ipc.new_stream(path, columns.schema) as stream:
                stream.write_table(columns)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".arrow"])
def test_every_format_gives_the_same_lengths(suffix: str, tmp_path: Path) -> None:
    found = sampled(written(tmp_path / f"data{suffix}", SAMPLES), len(SAMPLES))
    assert found is not None
    lengths = count(found, ALPACA, WORDS, shown="x")
    assert lengths is not None
    assert lengths.lengths == tuple(3 + number + marks(2) for number in range(1, 101))
    assert found.whole is (suffix != ".arrow")


def test_turns_and_pairs_count_every_text() -> None:
    talk = {"messages": [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}], "system": "s s s"}
    entry = {"columns": {"messages": "messages", "system": "system"}, "tags": {"content_tag": "content"}}
    found = count(rows_module.Sampled(iter([talk]), 1, True), entry, WORDS, shown="x")
    assert found is not None and found.lengths == (6 + marks(3),)
    pair = {"prompt": "p", "chosen": "c c", "rejected": "r r r"}
    entry = {"columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}}
    found = count(rows_module.Sampled(iter([pair]), 1, True), entry, WORDS, shown="x")
    assert found is not None and found.lengths == (3 + marks(2), 4 + marks(2))


def test_a_large_file_is_read_by_a_fair_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(rows_module, "MOST_ROWS", 3000)
    chance = random.Random(1)
    samples = [{"instruction": "a", "output": "b " * chance.choice([1, 10, 200])} for _ in range(20_000)]
    found = sampled(written(tmp_path / "big.jsonl", samples), None)
    assert found is not None and not found.whole
    read = [len(row["output"].split()) for row in found.rows]
    assert len(read) == 3000
    true = statistics.fmean(len(each["output"].split()) for each in samples)
    assert abs(statistics.fmean(read) / true - 1) < 0.1


def test_a_long_file_is_sampled_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "MOST_ROWS", 10)
    found = sampled(written(tmp_path / "data.json", SAMPLES), len(SAMPLES))
    assert found is not None and (found.step, found.whole) == (10, False)


def test_an_array_that_breaks_off_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"instruction": "a", "output": "b"}\n{"instruction": \n')
    assert run(["--gpus", "1x24GB", "--model", "1B", "--data", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "is not JSON" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@given(lengths=st.lists(st.integers(1, 10**5), min_size=1, max_size=300), share=st.sampled_from([0.01, 0.5, 0.99, 1.0]))
def test_a_quantile_is_exceeded_by_no_more_than_the_rest(lengths: list[int], share: float) -> None:
    found = lengths_of(lengths)
    bound = found.quantile(share)
    assert bound in lengths
    assert sum(each <= bound for each in lengths) >= share * len(lengths) - 1e-9
    assert found.share_cut(found.recommended) <= 0.01
    assert found.recommended % 8 == 0


def lengths_of(lengths: list[int], *, exact: bool = True) -> Lengths:
    return Lengths(
        path="x", samples=len(lengths), whole=True, exact=exact, counted_by="words", lengths=tuple(sorted(lengths))
    )


def test_only_what_was_counted_exactly_is_called_longest() -> None:
    assert lengths_of([5, 17]).longest == 24
    assert lengths_of([5, 17], exact=False).longest is None


@given(st.text(max_size=200))
def test_letters_are_never_fewer_tokens_than_a_third(text: str) -> None:
    assert len(text) / 3 <= letters(text) <= len(text) + 1


def model_folder(folder: Path) -> Path:
    """A small Llama with a tokenizer of whole words beside it."""
    tokenizers = pytest.importorskip("tokenizers")
    folder.mkdir()
    config = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4}
    config |= {"num_attention_heads": 8, "vocab_size": 32000, "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def planned(capsys: pytest.CaptureFixture[str], tmp_path: Path, *words: str) -> Any:
    code = run([*words, "--gpus", "1x24GB", "--out", str(tmp_path / "plan"), "--force", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert code == 0, answer
    return answer


def test_the_plan_is_for_the_longest_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Mission E: a configuration that does not fit at full length ran, because the samples were short."""
    data, model = written(tmp_path / "data.jsonl", SAMPLES), model_folder(tmp_path / "model")
    answer = planned(capsys, tmp_path, "--model", str(model), "--data", str(data), "--seq-len", "4096")
    longest = -(-(103 + marks(2)) // 8) * 8
    assert answer["chosen"]["setup"]["seq_len"] == longest
    assert answer["data"]["quantiles"]["1"] == 103 + marks(2) and answer["data"]["exact"]
    assert any("that cuts nothing" in each for each in answer["warnings"])
    assert f"cutoff_len: {longest}" in (tmp_path / "plan" / "train.yaml").read_text()


def test_packed_samples_fill_what_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, model = written(tmp_path / "data.jsonl", SAMPLES), model_folder(tmp_path / "model")
    answer = planned(capsys, tmp_path, "--model", str(model), "--data", str(data), "--seq-len", "4096", "--packing")
    assert answer["chosen"]["setup"]["seq_len"] == 4096


def test_without_the_tokenizer_lengths_are_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = [{"instruction": "a", "output": "word " * 9000}]
    data = written(tmp_path / "data.jsonl", SAMPLES * 10 + long * 20)
    answer = planned(capsys, tmp_path, "--model", "1B", "--data", str(data))
    assert answer["chosen"]["setup"]["seq_len"] == 2048
    assert any("2.0% of the samples are longer than 2048" in each for each in answer["warnings"])
    assert any("not on this machine" in each for each in answer["assumptions"])


def test_the_screen_says_what_the_data_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = written(tmp_path / "data.jsonl", SAMPLES)
    assert run(["--gpus", "1x24GB", "--model", "1B", "--data", str(data), "--out", str(tmp_path / "plan")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "100 samples of" in text and "3 epochs" in text and "--seq-len" in text


def test_a_parquet_file_without_pyarrow_is_planned_for_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = written(tmp_path / "data.parquet", SAMPLES)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert measure(str(data), "sft", resolve("1B")) is None
    answer = planned(capsys, tmp_path, "--model", "1B", "--data", str(data))
    assert any("needs pyarrow" in each for each in answer["warnings"])
