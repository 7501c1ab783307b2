"""The --gpus grammar: golden machines, one sentence for everything else."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from planner.errors import InputError
from planner.hardware.catalogue import kind, rows, short_name
from planner.hardware.machine import Links
from planner.hardware.parse import format_gpus, parse_machine, reserve_bytes
from planner.units import GIB, MIB


def test_anonymous_cards_are_nominal_less_a_stated_reserve():
    machine = parse_machine("3x20GB", "12GB")
    assert [gpu.index for gpu in machine.gpus] == [0, 1, 2]
    assert {gpu.nominal_bytes for gpu in machine.gpus} == {20 * GIB}
    assert {gpu.capacity_bytes for gpu in machine.gpus} == {20 * GIB - int(0.6 * GIB)}
    assert {gpu.reserve_bytes for gpu in machine.gpus} == {int(0.6 * GIB)}
    assert machine.ram_bytes == 12 * GIB
    assert machine.smallest.total_bytes is None
    assert machine.smallest.has_bf16 is None
    said = " ".join(machine.assumptions)
    assert "0.6 GiB of 20.0 GiB" in said
    assert "compute capability 8.0" in said


def test_nothing_is_probed_and_the_rest_is_unknown():
    machine = parse_machine("2xRTX4090")
    assert machine.source == "flags"
    assert machine.links == Links()
    assert machine.ram_bytes is None
    assert machine.cpu_cores is None
    assert machine.disk_free_bytes is None
    assert machine.driver is None


def test_named_cards_have_the_total_that_cuda_offers_a_program():
    gpu = parse_machine("1xRTX4090").gpus[0]
    assert gpu.total_bytes == 24564 * MIB
    assert gpu.capacity_bytes == 24207 * MIB  # 23.64 GiB, as in torch's messages
    assert gpu.reserve_bytes == gpu.total_bytes - gpu.capacity_bytes
    assert gpu.compute_capability == (8, 9)
    assert gpu.has_bf16 is True
    assert parse_machine("T4").gpus[0].has_bf16 is False


def test_a_named_card_without_a_known_total_keeps_a_reserve_and_says_so():
    machine = parse_machine("1xMI325X")
    assert machine.gpus[0].capacity_bytes == 256 * GIB - reserve_bytes(256 * GIB)
    assert any("no source for the driver's total" in sentence for sentence in machine.assumptions)
    assert machine.gpus[0].has_bf16 is True


def test_a_named_card_of_which_cuda_told_nobody_leaves_out_what_others_do_and_says_so():
    machine = parse_machine("1xA100-PCIe-80GB")
    gpu, known = machine.gpus[0], parse_machine("1xA100-SXM4-80GB").gpus[0]
    assert gpu.total_bytes - gpu.capacity_bytes == known.total_bytes - known.capacity_bytes == 870 * MIB
    assert any("the driver's 80.0 GiB; 0.85 GiB less" in sentence for sentence in machine.assumptions)
    smaller = parse_machine("1xRTX3070-Laptop").gpus[0]
    assert smaller.total_bytes - smaller.capacity_bytes == 252 * MIB  # the RTX 4060's


def test_nodes_are_counted_apart():
    machine = parse_machine("2x8xH100-80GB")
    assert (machine.nodes, machine.gpus_per_node, machine.world_size) == (2, 8, 16)


def test_groups_mix_cards():
    machine = parse_machine("2xRTX3090,1xRTX4090")
    assert [gpu.kind.id for gpu in machine.gpus] == ["rtx-3090-24gb", "rtx-3090-24gb", "rtx-4090-24gb"]
    assert machine.smallest.kind.id == "rtx-4090-24gb"
    assert parse_machine("1x20GB, 1xRTX4090").gpus_per_node == 2


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("20GB", "1x20GB"),
        (" 3 x 20 gb ", "3x20GB"),
        ("3×20GiB", "3x20GB"),
        ("24576MB", "1x24GB"),
        ("7.5GB", "1x7680MB"),
        ("4090", "1xRTX4090"),
        ("3x4090", "3xRTX4090"),
        ("7900XTX", "1xRX7900XTX"),
        ("2x7900xtx", "2xRX7900XTX"),
        ("2x4x7900xtx", "2x4xRX7900XTX"),
        ("1x8xMI300X", "8xMI300X"),
        ("1xa100 80gb", "1xA100-80GB"),
        ("1xRTX4090,1xRTX4090", "2xRTX4090"),
        ("2x4xH200,2x1x80GB", "2x4xH200,2x1x80GB"),
    ],
)
def test_ways_to_write_it(text, canonical):
    machine = parse_machine(text)
    assert format_gpus(machine) == canonical
    assert parse_machine(canonical).gpus == machine.gpus
    assert parse_machine(canonical).nodes == machine.nodes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3x", "no GPU after it"),
        ("0x20GB", "asks for 0 GPUs"),
        ("-1x20GB", "asks for -1 GPUs"),
        ("-1xRTX4090", "asks for -1 GPUs"),
        ("x20GB", "no count before the x"),
        ("3xx20GB", "no count before the x"),
        ("3x20", "write 3x20GB"),
        ("20", "no unit"),
        ("", "empty"),
        ("   ", "empty"),
        (",", "empty group"),
        ("3x20GB,", "empty group"),
        ("3x-20GB", "negative"),
        ("0GB", "positive number"),
        ("0.5GB", "sizes from 1GB to 1024GB"),
        ("2000GB", "sizes from 1GB to 1024GB"),
        ("3x20TB", "sizes from 1GB to 1024GB"),
        ("2x3x4x20GB", "three counts"),
        ("2x8xH100-80GB,1xRTX4090", "nodes must be alike"),
        ("99999999999999999999x20GB", "more than any cluster"),
        ("1xRTX4090,1xMI300X", "mixes cards of amd and nvidia"),
        ("200x20GB", "asks for 200 GPUs in one machine"),
        ("3xRTX9999", "not in the catalogue"),
        ("2xRTX3080", "RTX3080-10GB or RTX3080-12GB or RTX3080-20GB"),
        ("1" * 600, "600 characters"),
        ("3x" + "9" * 400 + "GB", "--gpus"),
    ],
)
def test_bad_text_is_one_sentence_that_names_it(text, words):
    with pytest.raises(InputError) as refused:
        parse_machine(text)
    assert words in refused.value.sentence
    assert "\n" not in refused.value.sentence
    assert "--gpus" in refused.value.sentence
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("ram", ["", "x", "-4GB", "0", "9" * 500, "12 parsecs"])
def test_bad_ram_is_one_sentence(ram):
    with pytest.raises(InputError, match="--ram"):
        parse_machine("3x20GB", ram)


sizes = st.integers(1, 1024).map(lambda gib: f"{gib}GB") | st.integers(1024, 1 << 20).map(lambda mib: f"{mib}MB")
sizes |= st.decimals(1, 1024, places=3).map(lambda gib: f"{gib}GB")
counts = st.integers(1, 16)


def groups_of(vendor: str) -> st.SearchStrategy[str]:
    names = st.sampled_from([short_name(row) for row in rows() if kind(row).vendor == vendor])
    return st.tuples(counts, sizes | names).map(lambda pair: f"{pair[0]}x{pair[1]}")


machines = st.sampled_from(["nvidia", "amd", "ascend"]).flatmap(
    lambda vendor: st.lists(groups_of(vendor), min_size=1, max_size=6)
)


@given(machines, st.integers(1, 64))
def test_every_valid_text_round_trips(parts, nodes):
    text = ",".join(f"{nodes}x{part}" for part in parts)
    machine = parse_machine(text)
    again = parse_machine(format_gpus(machine))
    assert again == machine
    assert machine.nodes == nodes
    assert all(0 < gpu.capacity_bytes <= (gpu.total_bytes or gpu.nominal_bytes) for gpu in machine.gpus)


@given(st.text(max_size=40) | st.text(alphabet="0123456789x×,.-+GBRT A", max_size=24))
@example("１x20GB")
@example("²x20GB")
@example("1x٢٠GB")
@example("20gbx3")
@example("1e5GB")
def test_junk_is_never_more_than_bad_input(text):
    try:
        machine = parse_machine(text)
    except InputError as refused:
        assert refused.sentence
    else:
        assert machine.gpus


@given(st.integers(1, 1024), st.integers(1, 1024))
def test_a_larger_card_never_holds_less(one_gib, other_gib):
    small, large = sorted((one_gib, other_gib))
    assert small * GIB - reserve_bytes(small * GIB) <= large * GIB - reserve_bytes(large * GIB)


def test_the_same_text_is_the_same_record():
    assert parse_machine("2xRTX4090", "64GB") is parse_machine("2xRTX4090", "64GB")
    assert hash(parse_machine("3x20GB")) == hash(parse_machine("3x20GB"))


def test_shared_memory_leaves_the_system_its_part():
    spark = parse_machine("1xGB10").smallest
    assert spark.kind is not None and spark.kind.system_bytes == 4608 * MIB
    assert spark.capacity_bytes == (122548 - 4608) * MIB
    assert any(
        "4.5 GiB of the shared memory is taken to be the system's" in each
        for each in parse_machine("1xGB10").assumptions
    )
    thor = parse_machine("1xJetson-Thor")
    assert thor.smallest.capacity_bytes == 125767 * MIB
    assert any("holds is not known; `plan probe`" in each for each in thor.assumptions)
    with pytest.raises(InputError, match="Jetson-AGX-Orin-64GB or Jetson-AGX-Orin-32GB"):
        parse_machine("1xJetson-AGX-Orin")
    assert parse_machine("1xJetson-Orin-NX-8GB").smallest.kind == parse_machine("1xJetson-Orin-Nano").smallest.kind
