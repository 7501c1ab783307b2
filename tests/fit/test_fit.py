"""The inverse answers: what is called largest fits and the next does not; what is called least does it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cli.app import run
from planner.fit.job import JobSize, course
from planner.fit.largest import GRID_BATCHES, LENGTH_STEP_TOKENS, fits, grid, largest_of_each, last_true, priced
from planner.fit.offers import offers
from planner.fit.sweep import COLUMNS, read_axis
from planner.hardware.catalogue import find_gpu
from planner.hardware.parse import parse_machine
from planner.model.catalogue import resolve
from planner.plan.make import make_plan
from planner.plan.plan import Request
from planner.training import TrainingSetup

STEPS = {"micro_batch_size": 1, "seq_len": LENGTH_STEP_TOKENS, "lora_rank": 1}


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = run(["fit", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


@given(edge=st.integers(0, 300), most=st.integers(1, 300))
def test_the_last_number_that_holds_is_found(edge: int, most: int) -> None:
    assert last_true(lambda number: number <= edge, most) == min(edge, most)


@pytest.mark.parametrize(
    ("gpus", "model", "method"),
    [("1xRTX4090", "8B", "qlora"), ("1xA100-80GB", "7B", "lora"), ("1xRTX3060-12GB", "1B", "full")],
)
def test_the_largest_fits_and_one_more_does_not(gpus: str, model: str, method: str) -> None:
    setup, spec, machine = TrainingSetup(model=model, method=method), resolve(model), parse_machine(gpus)
    for each in largest_of_each(setup, spec, machine):
        if each.value is None:
            continue
        there = priced(setup.but(**{each.field: each.value}), spec, machine)
        assert there is not None and fits(there, machine) and there.required_bytes == each.required_bytes
        if each.bounded_by == "memory":
            beyond = priced(setup.but(**{each.field: each.value + STEPS[each.field]}), spec, machine)
            assert beyond is None or not fits(beyond, machine)


def test_what_never_fits_has_no_largest() -> None:
    setup, machine = TrainingSetup(model="70B", method="full"), parse_machine("1x8GB")
    assert {each.value for each in largest_of_each(setup, resolve("70B"), machine)} == {None}


def test_the_map_grows_along_both_sides() -> None:
    cells = grid(TrainingSetup(model="7B"), resolve("7B"), parse_machine("1xRTX4090"))
    assert [row[0].micro_batch_size for row in cells] == list(GRID_BATCHES)
    needs = [[cell.required_bytes or 0 for cell in row] for row in cells]
    for line in [*needs, *zip(*needs, strict=True)]:
        assert list(line) == sorted(line)


def test_steps_are_counted_as_the_guide_printed_them() -> None:
    """Mission G3: 591 samples, 2 x 4, one GPU, 3 epochs."""
    setup = TrainingSetup(model="8B", micro_batch_size=2, gradient_accumulation_steps=4)
    run_of = course(JobSize(samples=591, epochs=3), setup, parse_machine("1xH100-80GB"), None)
    assert (run_of.steps_per_epoch, run_of.steps, run_of.warmup_steps, run_of.hours) == (74, 222, 23, None)


@settings(max_examples=25)
@given(samples=st.integers(1, 10**7), epochs=st.floats(0.1, 10), micro=st.integers(1, 64), steps=st.integers(1, 64))
def test_a_job_has_at_least_a_step_and_sees_its_samples(samples: int, epochs: float, micro: int, steps: int) -> None:
    setup = TrainingSetup(model="8B", micro_batch_size=micro, gradient_accumulation_steps=steps, seq_len=100)
    found = course(JobSize(samples=samples, epochs=epochs), setup, parse_machine("2xRTX4090"), None)
    assert found.steps >= 1 and found.steps_per_epoch * micro * steps * 2 >= samples
    assert found.tokens >= samples * epochs * 100


def test_the_least_number_of_a_card_is_offered() -> None:
    request, spec = Request(model="8B", method="full"), resolve("8B")
    kinds = [find_gpu(name) for name in ("A100-80GB", "H200", "RTX3060-12GB")]
    found = {offer.gpus: offer for offer in offers(request, spec, kinds, most=8)}
    assert set(found) == {"2xA100-80GB", "1xH200"} or set(found) == {"2xA100-80GB", "2xH200"}
    assert all(offer.price.required_bytes <= offer.capacity_bytes for offer in found.values())


def test_prices_order_and_a_deadline_cuts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text('RTX4090 = 0.4\nA100-80GB = 1.0\n"H100-80GB" = 50.0\n')
    words = ("--model", "8B", "--method", "lora", "--samples", "50000", "--prices", str(prices))
    code, answer = asked(capsys, *words)
    costs = [each["cost"] for each in answer["hardware"]]
    assert code == 0 and costs == sorted(costs) and len(costs) == 3
    hours = [each["job"]["hours"] for each in answer["hardware"]]
    code, answer = asked(capsys, *words, "--deadline", f"{min(hours) * 1.01:.3f}h", "--max-gpus", "1")
    assert code == 0 and [each["gpus"] for each in answer["hardware"]] == ["1xH100-80GB"]


def test_models_by_size_say_how_each_can_be_trained(capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = asked(capsys, "--gpus", "1xRTX4090")
    classes = {each["size"]: each["plan"] and each["plan"]["class"] for each in answer["models"]}
    assert code == 0
    assert (classes["0.5B"], classes["7B"], classes["405B"]) == ("full", "lora", None)


def test_a_sweep_prices_every_combination(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "sweep.csv"
    words = ("--model", "7B", "--gpus", "1xRTX4090", "--sweep", "seq_len=512..2048", "--sweep", "method=lora,qlora")
    assert run(["fit", *words, "--csv", str(out)]) == 0
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [(row["seq_len"], row["method"]) for row in rows[:3]] == [
        ("512", "lora"),
        ("512", "qlora"),
        ("1024", "lora"),
    ]
    assert len(rows) == 6 and set(rows[0]) == {"seq_len", "method", *COLUMNS}
    capsys.readouterr()
    _, answer = asked(capsys, *words)
    assert [str(each["required_bytes"]) for each in answer["sweep"]] == [row["required_bytes"] for row in rows]
    assert run(["fit", *words, "--csv", str(out)]) == 2
    assert "exists" in capsys.readouterr().err


def test_a_sweep_is_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "sweep.svg"
    words = ("--model", "7B", "--gpus", "1xRTX4090", "--sweep", "method=lora,qlora", "--sweep", "seq_len=512..4096")
    assert run(["fit", *words, "--plot", str(out)]) == 0
    assert f"drawn: {out}" in capsys.readouterr().err
    picture = ElementTree.fromstring(out.read_text())
    space = "{http://www.w3.org/2000/svg}"
    memory, speed = picture.findall(f"{space}svg")
    assert [title.text for title in picture.iter(f"{space}title")] == [
        "lora, qlora in GiB over seq_len",
        "lora, qlora in tokens/s over seq_len",
    ]
    for chart in (memory, speed):
        lines = [line.attrib["points"].split() for line in chart.iter(f"{space}polyline")]
        assert [len(points) for points in lines] == [4, 4]
    heights = [float(point.split(",")[1]) for point in memory.find(f"{space}polyline").attrib["points"].split()]
    assert heights == sorted(heights, reverse=True)  # memory grows with the length, and up is less on a page
    assert any(text.text == "capacity 23.6 GiB" for text in memory.iter(f"{space}text"))
    assert run(["fit", *words, "--plot", str(out)]) == 2
    assert "exists: name a new file" in capsys.readouterr().err


def test_cards_that_hold_a_model_up_are_left_out_of_its_plan(capsys: pytest.CaptureFixture[str]) -> None:
    """As the main job does: two 24 GB cards and one of 8 GB, which would decide for all three."""
    code, answer = asked(capsys, "--gpus", "2xRTX3090,1xRTX4060")
    plans = {each["size"]: each["plan"] for each in answer["models"]}
    assert code == 0
    assert (plans["7B"]["gpus"], plans["7B"]["count"], plans["7B"]["class"]) == ("2xRTX3090", 2, "lora")
    whole = make_plan(
        Request(model="7B", gpus="2xRTX3090,1xRTX4060"), resolve("7B"), parse_machine("2xRTX3090,1xRTX4060")
    )
    assert whole.chosen is not None and plans["7B"]["setup"] == whole.chosen.setup.to_dict()
    assert run(["fit", "--gpus", "2xRTX3090,1xRTX4060"]) == 0
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert next(words for words in told if words[:1] == ["7B"])[-1] == "2xRTX3090"


def test_a_range_doubles() -> None:
    assert read_axis("micro-batch-size=1..9").values == ("1", "2", "4", "8")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model", "7B", "--sweep", "seqlen=1"], "did you mean seq_len?"),
        (["--model", "7B", "--sweep", "seq_len=9..2"], "write the smaller whole number first"),
        (["--model", "7B", "--sweep", "seq_len"], "names no values"),
        (["--model", "7B", "--cards", "RTX4091"], "did you mean RTX4090"),
        (["--model", "7B", "--deadline", "3h"], "--deadline needs --samples"),
        (["--model", "7B", "--samples", "9", "--deadline", "soon"], "no positive number"),
        (["--model", "7B", "--max-gpus", "x"], "is not a count"),
        (["--model", "7B", "--prices", "nowhere.toml"], "nowhere.toml"),
        (["--model", "7B", "--csv", "x.csv"], "--csv belongs to --sweep"),
        (["--model", "7B", "--plot", "x.svg"], "--plot belongs to --sweep"),
        (["--model", "7B", "--gpus", "1x24GB", "--sweep", "seq_len=512,1024", "--plot", "x.png"], "is no SVG file"),
        (["--model", "7B", "--gpus", "1x24GB", "--sweep", "method=lora", "--plot", "x.svg"], "several numbers"),
        (
            [
                "--model",
                "7B",
                "--gpus",
                "1x24GB",
                "--sweep",
                "seq_len=512,1024",
                "--sweep",
                "lora_rank=1,2,3,4,5,6,7,8,9",
                "--plot",
                "x.svg",
            ],
            "tells 8 lines apart, and this sweep has 9",
        ),
        (["--model", "7C", "--gpus", "1x24GB"], "is not in the catalogue"),
    ],
)
def test_wrong_words_are_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.startswith("error: ")


def test_screens_name_what_was_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit", "--gpus", "1xRTX4090", "--model", "8B", "--method", "qlora", "--samples", "1000"]) == 0
    text = capsys.readouterr().out
    assert "micro_batch_size" in text and "does not fit" in text and "1,000 steps" in text
    assert run(["fit", "--model", "70B", "--cards", "A40", "--max-gpus", "2"]) == 0
    assert "1xA40" in capsys.readouterr().out
    assert run(["fit", "--model", "405B", "--cards", "T4", "--max-gpus", "1"]) == 1
    assert "no card of the list" in capsys.readouterr().out
