"""Saved machines: exact round trips, and one sentence for whatever is not one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InputError
from planner.hardware.load import load_machine
from planner.hardware.machine import Gpu, Holder, Links, Machine
from planner.hardware.observed import machine_from_answer
from planner.hardware.parse import parse_machine
from planner.hardware.store import machine_document, machine_from_json, machine_to_json

ANSWERS = sorted((Path(__file__).parent / "answers").glob("*.json"))


@pytest.mark.parametrize("path", ANSWERS, ids=lambda path: path.stem)
def test_probed_machines_round_trip(path):
    seen = machine_from_answer(json.loads(path.read_text(encoding="utf-8")))
    assert machine_from_json(machine_to_json(seen)) == seen


@pytest.mark.parametrize("text", ["3x20GB", "2x8xH100-80GB", "2xRTX3090,1xRTX4090", "1xMI300X", "8xAscend-910B3"])
def test_machines_of_flags_round_trip(text):
    machine = parse_machine(text, "64GB")
    assert machine_from_json(machine_to_json(machine)) == machine


sizes = st.integers(1, 1 << 50)
maybe = st.none() | sizes
holders = st.builds(Holder, pid=st.integers(0, 1 << 22), name=st.none() | st.text(max_size=8), used_bytes=maybe)
gpus = st.builds(
    Gpu,
    index=st.integers(0, 127),
    name=st.text(max_size=12),
    kind=st.none() | st.sampled_from([parse_machine(name).gpus[0].kind for name in ("RTX4090", "MI300X", "T4")]),
    capacity_bytes=sizes,
    total_bytes=maybe,
    free_bytes=st.none() | st.integers(0, 1 << 50),
    compute_capability=st.none() | st.tuples(st.integers(3, 15), st.integers(0, 9)),
    uuid=st.none() | st.text(max_size=8),
    mig=st.booleans(),
    holders=st.lists(holders, max_size=3).map(tuple),
)
links = st.builds(Links, nvlink=st.none() | st.booleans(), bytes_per_s=st.none() | st.floats(0, 1e13))
machines = st.builds(
    Machine,
    gpus=st.lists(gpus, max_size=4).map(tuple),
    nodes=st.integers(1, 99),
    source=st.sampled_from(["flags", "file", "probe"]),
    links=links,
    ram_bytes=maybe,
    cpu_cores=st.none() | st.integers(1, 512),
    software=st.dictionaries(st.text(max_size=6), st.text(max_size=6), max_size=3),
    warnings=st.lists(st.text(max_size=20), max_size=3).map(tuple),
)


@given(machines)
def test_any_machine_round_trips(machine):
    assert machine_from_json(machine_to_json(machine)) == machine


def changed(**changes):
    return json.dumps({**machine_document(parse_machine("1xRTX4090")), **changes})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not a saved machine"),
        ("3", "not a saved machine"),
        ("{}", "no `format`"),
        (changed(format=99), "format 99 is not 1"),
        (changed(gpu=[]), "gpu is not a key; did you mean gpus?"),
        (changed(nodes="two"), "nodes"),
        (changed(nodes=0), "nodes is 0"),
        (changed(gpus=None), "gpus"),
        (changed(gpus=[{"index": 0}]), "gpus.0"),
        (changed(gpus=[3]), "gpus.0"),
        (changed(ram_bytes=-5), "ram_bytes is -5"),
        (changed(ram_bytes=1.5), "ram_bytes"),
        (changed(links={"nvlnk": True}), "links.nvlnk is not a key; did you mean nvlink?"),
        (changed(source="dream"), "source"),
    ],
)
def test_bad_files_are_one_sentence_with_the_place(text, words):
    with pytest.raises(InputError) as refused:
        machine_from_json(text, place="desk.json")
    assert refused.value.sentence.startswith("desk.json: ")
    assert words in refused.value.sentence
    assert "\n" not in refused.value.sentence


@given(st.text(max_size=60) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_junk_is_never_more_than_bad_input(text):
    with pytest.raises(InputError):
        machine_from_json(text)


def test_a_saved_probe_is_what_commands_plan_from(tmp_path):
    path = tmp_path / "machine.json"
    seen = machine_from_answer(json.loads((ANSWERS[0].parent / "busy.json").read_text(encoding="utf-8")))
    path.write_text(machine_to_json(seen), encoding="utf-8")
    assert load_machine(gpus=None, ram=None, machine_file=str(path)) == seen
    assert load_machine(gpus=None, ram="8GB", machine_file=str(path)).ram_bytes == 8 << 30
    with pytest.raises(InputError, match="give one of them"):
        load_machine(gpus="3x20GB", ram=None, machine_file=str(path))
    with pytest.raises(InputError, match="--ram is 400 characters long"):
        load_machine(gpus=None, ram="9" * 400, machine_file=str(path))


def test_a_saved_machine_without_gpus_needs_one_named(tmp_path):
    path = tmp_path / "machine.json"
    path.write_text(machine_to_json(Machine(gpus=(), source="probe")), encoding="utf-8")
    with pytest.raises(InputError, match="lists no GPU"):
        load_machine(gpus=None, ram=None, machine_file=str(path))
