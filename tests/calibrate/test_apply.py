"""History in a plan: bounds follow it, point estimates do not, and both are said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import api
from planner.calibrate.apply import Local, calibrated_estimate, calibrated_price, measured_machine
from planner.calibrate.constants import Constants
from planner.calibrate.fit import fit
from planner.calibrate.observation import Observation
from planner.calibrate.recall import recall
from planner.calibrate.store import IMPORTED, store
from planner.cli.app import run
from planner.hardware.machine import Machine
from planner.hardware.parse import parse_machine
from planner.memory.estimate import estimate, price
from planner.memory.overhead import margins, trust_class
from planner.memory.result import Estimate
from planner.model.catalogue import resolve
from planner.plan.plan import Request
from planner.training import TrainingSetup
from tests.memory.golden_setups import SETUPS

from .observed import GPUS, observed

SETUP = TrainingSetup(model="Qwen2.5-7B", method="qlora", gpus=GPUS)
SPEC = resolve(SETUP.model)
MACHINE = parse_machine(GPUS, None)
METERS = ("allocated_bytes", "reserved_bytes", "device_bytes", "tokens_per_second")
CONSTANTS = Constants(
    measured_at="2026-11-20T00:00:00Z", gpu="NVIDIA GeForce RTX 4090", torch="2.13.0", context_bytes=512 << 20
)


def local(observations: list[Observation], constants: Constants | None = None) -> Local:
    one = observations[0] if observations else observed()
    found = fit(observations, machine_id=one.machine.id, engine=one.engine, release=one.predicted.release)
    return Local(calibration=found, constants=constants)


def after(observations: list[Observation], setup: TrainingSetup = SETUP) -> tuple[Estimate, Estimate]:
    plain = estimate(setup, SPEC, MACHINE)
    return plain, calibrated_estimate(plain, local(observations), setup, SPEC, MACHINE)


def test_the_published_margin_is_the_one_of_the_estimate() -> None:
    """What history starts from: the interval that planner.memory.overhead made of the same class."""
    for words in SETUPS.values():
        setup = TrainingSetup(**words)
        spec, machine = resolve(setup.model), parse_machine(setup.gpus or GPUS, None)
        found = estimate(setup, spec, machine)
        below, above = margins(trust_class(setup, spec, machine.world_size), 0.99)
        bounds = (int(found.allocated_bytes * (1 - below)), int(found.allocated_bytes * (1 + above)))
        assert found.interval["allocated_bytes"] == bounds


def test_runs_that_agree_narrow_the_bounds_and_required_bytes_follow() -> None:
    plain, told = after([observed(number, 0.0002) for number in range(12)])
    assert told.allocated_bytes == plain.allocated_bytes
    assert told.interval["allocated_bytes"][1] < plain.interval["allocated_bytes"][1]
    assert told.interval["allocated_bytes"][0] > plain.interval["allocated_bytes"][0]
    gained = plain.interval["allocated_bytes"][1] - told.interval["allocated_bytes"][1]
    assert plain.required_bytes - told.required_bytes == pytest.approx(gained, abs=2)
    assert any("12 runs on this machine with this engine counted" in each for each in told.assumptions)


def test_a_systematic_offset_is_said_and_the_estimate_is_not_moved() -> None:
    plain, told = after([observed(number, 0.031) for number in range(5)])
    assert (told.allocated_bytes, told.reserved_bytes) == (plain.allocated_bytes, plain.reserved_bytes)
    assert told.interval["allocated_bytes"][1] > plain.allocated_bytes * 1.031
    assert told.required_bytes > plain.required_bytes
    sentence = "runs on this machine allocated 3.1% more than predicted (5 runs); the estimate is not moved"
    assert any(each.startswith(sentence) for each in told.assumptions)


def test_a_run_that_ran_out_raises_required_above_what_it_had() -> None:
    out = observed(1, outcome="out_of_memory", meters=())
    _, told = after([out], TrainingSetup(**out.setup))
    assert out.predicted.capacity_bytes and told.required_bytes >= out.predicted.capacity_bytes
    assert any("run-1" in each and "plan history --forget" in each for each in told.assumptions)


def test_runs_of_another_machine_or_class_change_nothing() -> None:
    plain, told = after([observed(1, 0.2, method="dora")])
    assert told == plain


@given(
    st.lists(st.tuples(st.floats(-0.2, 0.2), st.sampled_from(["finished", "out_of_memory", "stopped"])), max_size=12),
    st.sampled_from([512, 2048, 4096]),
    st.booleans(),
)
def test_bounds_hold_the_prediction_and_required_the_upper_one(
    runs: list[tuple[float, str]], seq_len: int, measured: bool
) -> None:
    setup = SETUP.but(seq_len=seq_len)
    ones = [observed(n, off, outcome=outcome, meters=METERS[:3]) for n, (off, outcome) in enumerate(runs)]
    told = calibrated_estimate(
        estimate(setup, SPEC, MACHINE), local(ones, CONSTANTS if measured else None), setup, SPEC, MACHINE
    )
    for meter, (low, high) in told.interval.items():
        assert 0 <= low <= getattr(told, meter) <= high
    assert told.required_bytes >= told.interval["allocated_bytes"][1] + told.context_bytes - 1


@given(st.lists(st.floats(-0.05, 0.05), max_size=8), st.sampled_from([0.9, 0.99]), st.sampled_from(sorted(SETUPS)))
def test_search_and_screen_say_the_same(offs: list[float], coverage: float, name: str) -> None:
    setup = TrainingSetup(**SETUPS[name])
    spec, machine = resolve(setup.model), parse_machine(setup.gpus or GPUS, None)
    gpus, engine = setup.gpus or GPUS, setup.engine
    ones = [replace(observed(n, off, gpus=gpus), engine=engine) for n, off in enumerate(offs)]
    ones = [replace(one, predicted=replace(one.predicted, trust_class=trust_class(setup, spec, machine.world_size)))
            for one in ones]  # fmt: skip
    told = local(ones, CONSTANTS)
    plain = estimate(setup, spec, machine, coverage=coverage, replayed=False)
    shown = calibrated_estimate(plain, told, setup, spec, machine)
    sought = calibrated_price(price(setup, spec, machine, coverage=coverage), told, setup, spec, machine, coverage)
    for field in ("allocated_bytes", "reserved_bytes", "device_bytes", "required_bytes", "context_bytes"):
        assert getattr(shown, field) == getattr(sought, field)


def test_measured_context_stands_in_for_the_catalogues() -> None:
    plain = estimate(SETUP, SPEC, MACHINE)
    told = calibrated_estimate(plain, Local(constants=CONSTANTS), SETUP, SPEC, MACHINE)
    change = CONSTANTS.context_bytes - plain.context_bytes
    assert change != 0
    assert told.context_bytes == CONSTANTS.context_bytes
    assert told.required_bytes == plain.required_bytes + change
    assert told.device_bytes == plain.device_bytes + change
    assert any("context (+" in each and "`plan calibrate` on 2026-11-20" in each for each in told.assumptions)


def test_a_communicator_counts_for_as_many_gpus_only() -> None:
    constants = replace(CONSTANTS, context_bytes=None, nccl_bytes=700 << 20, nccl_ranks=2)
    for gpus, counts in (("2xRTX4090", True), ("4xRTX4090", False), ("1xRTX4090", False)):
        setup, machine = SETUP.but(gpus=gpus), parse_machine(gpus, None)
        plain = estimate(setup, SPEC, machine)
        told = calibrated_estimate(plain, Local(constants=constants), setup, SPEC, machine)
        assert (told.context_bytes != plain.context_bytes) is counts


def test_the_verdict_follows() -> None:
    plain = estimate(SETUP, SPEC, MACHINE)
    tight = replace(plain, capacity_bytes=plain.required_bytes, verdict="fits")
    told = calibrated_estimate(tight, local([observed(n, 0.05) for n in range(3)]), SETUP, SPEC, MACHINE)
    assert told.verdict == "uncertain"


def test_measured_rates_are_what_the_speed_model_then_reaches() -> None:
    from planner.speed.estimate import predict_speed

    rated = predict_speed(SETUP, SPEC, MACHINE)
    slow = replace(CONSTANTS, matmul_tflops={"bf16": 50.0}, bandwidth_bytes_per_s=4e11)
    measured = predict_speed(SETUP, SPEC, measured_machine(MACHINE, slow))
    assert rated and measured and measured.tokens_per_s < rated.tokens_per_s / 2
    assert measured_machine(MACHINE, None) is MACHINE
    assert predict_speed(SETUP, SPEC, measured_machine(MACHINE, CONSTANTS)) == rated


def test_history_reaches_estimate_and_plan_and_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, planned = api.estimate(SETUP), api.plan(Request(model="Qwen2.5-7B", method="qlora", gpus=GPUS))
    store().record(*(observed(number, 0.05, meters=METERS) for number in range(3)))
    told, again = api.estimate(SETUP), api.plan(Request(model="Qwen2.5-7B", method="qlora", gpus=GPUS))
    assert told.required_bytes > plain.required_bytes
    assert planned.chosen and again.chosen
    assert "3 runs on this machine" in " ".join(again.assumptions)
    assert again.chosen.estimate.required_bytes > planned.chosen.estimate.required_bytes or (
        again.chosen.setup != planned.chosen.setup
    )
    speed, before = again.chosen.speed, planned.chosen.speed
    if again.chosen.setup == planned.chosen.setup:
        assert speed and before and speed.tokens_per_s == before.tokens_per_s
    monkeypatch.setenv("VRAMPLAN_HISTORY", "off")
    assert api.estimate(SETUP) == plain


def test_the_inverse_question_sees_the_same_history() -> None:
    from planner.fit.largest import priced

    plain = priced(SETUP, SPEC, MACHINE)
    store().record(*(observed(number, 0.05) for number in range(3)))
    told, shown = priced(SETUP, SPEC, MACHINE), api.explain(SETUP, SPEC, MACHINE)
    assert plain and told and plain.required_bytes < told.required_bytes == shown.required_bytes


def test_imported_rows_are_shown_and_never_counted() -> None:
    plain = api.estimate(SETUP)
    store().record(observed(1, 0.2), origin=IMPORTED)
    assert api.estimate(SETUP) == plain


def test_cards_without_a_name_are_no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    store().record(observed(1, 0.2, gpus="3x20GB"))
    assert recall(parse_machine("3x20GB", None), "llamafactory") is None
    assert isinstance(MACHINE, Machine)


def test_a_damaged_store_is_a_warning_and_the_answer_stays(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["estimate", "--model", "7B", "--gpus", GPUS, "--json"]
    run(words)
    before = json.loads(capsys.readouterr().out)
    path = store().path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged " * 1000)
    assert run(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["required_bytes"] == before["required_bytes"]
    (warning,) = set(told["warnings"]) - set(before["warnings"])
    assert "set aside as history.damaged-1.sqlite" in warning and warning.endswith("planned without it")
    run(words)
    assert json.loads(capsys.readouterr().out) == before


def test_without_a_store_the_main_job_does_not_load_sqlite(tmp_path: Path) -> None:
    ask = (
        "import sys; from planner.cli.app import run; "
        "run(['--gpus', '3x20GB', '--model', '7B']); print('sqlite3' in sys.modules)"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=tmp_path, env=os.environ | {"PYTHONPATH": root},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "False"
