"""rules/gpus.toml: every row valid, every name found, figures as the sources print them."""

from __future__ import annotations

import copy

import pytest

from planner.errors import InputError
from planner.hardware import catalogue, schema
from planner.hardware.parse import reserve_bytes
from planner.rulebook.load import read_rules
from planner.units import GIB, MIB


def test_every_row_is_valid():
    assert schema.problems(read_rules("gpus")) == []


def test_the_catalogue_is_broad():
    assert len(catalogue.rows()) >= 110
    assert len({row["architecture"] for row in catalogue.rows()}) >= 15


@pytest.mark.parametrize(
    "name",
    """
    GTX1080Ti RTX2080Ti RTX2080Ti-22GB RTX3060-12GB RTX3080-10GB RTX3080-12GB RTX3080-20GB RTX3090 RTX4090
    RTX4090-48GB RTX5090 A2000-6GB A6000 RTX6000Ada P40 V100-16GB V100-32GB T4 A10 A30 A40 A100-40GB A100-80GB
    L4 L40 L40S H100-80GB H100-NVL H200 GH200-96GB B200 MI210 MI250X MI300X MI325X MI355X Ascend-910B3
    """.split(),
)
def test_cards_that_users_name(name):
    assert catalogue.short_name(catalogue._by_id()[catalogue.find_gpu(name).id]) == name


def test_every_row_is_reached_by_its_own_short_name():
    for row in catalogue.rows():
        assert catalogue.find_gpu(catalogue.short_name(row)).id == row["id"]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("RTX4090", "rtx-4090-24gb"),
        ("4090", "rtx-4090-24gb"),
        ("rtx 4090", "rtx-4090-24gb"),
        ("GeForce RTX 4090", "rtx-4090-24gb"),
        ("RTX 3090 24GB", "rtx-3090-24gb"),
        ("A100-80GB", "a100-sxm4-80gb"),
        ("A100 80GB", "a100-sxm4-80gb"),
        ("a100 80 gb", "a100-sxm4-80gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm5-80gb"),
        ("H100-96GB", "h100-96gb"),
        ("L4", "l4-24gb"),
        ("L40", "l40-48gb"),
        ("7900XTX", "rx-7900-xtx-24gb"),
    ],
)
def test_names_are_read_with_any_case_space_and_dash(written, expected):
    assert catalogue.find_gpu(written).id == expected


@pytest.mark.parametrize(
    ("written", "offered"),
    [
        ("RTX3080", ["RTX3080-10GB", "RTX3080-12GB", "RTX3080-20GB"]),
        ("A100", ["A100-40GB", "A100-80GB"]),
        ("H100", ["H100-80GB", "H100-NVL"]),
        ("3060", ["RTX3060-8GB", "RTX3060-12GB"]),
        ("RTX6000", ["Quadro-RTX6000", "RTX6000Ada"]),
    ],
)
def test_a_name_of_several_cards_asks_which(written, offered):
    with pytest.raises(InputError) as refused:
        catalogue.find_gpu(written)
    assert all(name in refused.value.sentence for name in offered)
    assert repr(written) in refused.value.sentence


def test_a_size_that_the_vendor_does_not_sell_must_be_named():
    assert catalogue.find_gpu("RTX4090").nominal_bytes == 24 * GIB
    assert catalogue.find_gpu("RTX4090-48GB").nominal_bytes == 48 * GIB
    assert catalogue.find_gpu("2080 Ti").nominal_bytes == 11 * GIB


def test_unknown_names_offer_the_nearest():
    with pytest.raises(InputError, match=r"'RTX4091' is not in the catalogue; did you mean RTX4090 "):
        catalogue.find_gpu("RTX4091")
    with pytest.raises(InputError, match=r"no 'A100-60GB'.* known as A100-40GB or A100-80GB"):
        catalogue.find_gpu("A100-60GB")


def test_plain_names_say_which_board_they_are_read_as():
    assert "SXM4" in (catalogue.reading("A100-80GB") or "")
    assert catalogue.reading("A100-SXM4-80GB") is None
    assert catalogue.reading("A100-PCIe-80GB") is None


# Totals as nvidia-smi prints them beside the name; dense figures of the vendors' tables.
@pytest.mark.parametrize(
    ("name", "driver_mib", "capability", "dtype", "dense_tflops", "gb_per_s"),
    [
        ("RTX4090", 24564, (8, 9), "bf16", 165.2, 1008),
        ("RTX3090", 24576, (8, 6), "bf16", 71.0, 936),
        ("RTX5090", 32607, (12, 0), "bf16", 209.5, 1792),
        ("T4", 15360, (7, 5), "fp16", 65.0, 320),
        ("A10", 23028, (8, 6), "bf16", 125.0, 600),
        ("A100-80GB", 81920, (8, 0), "bf16", 312.0, 2039),
        ("A100-80GB", 81920, (8, 0), "tf32", 156.0, 2039),
        ("H100-80GB", 81559, (9, 0), "bf16", 989.4, 3350),
        ("H100-80GB", 81559, (9, 0), "fp8", 1978.9, 3350),
        ("H200", 143771, (9, 0), "bf16", 989.4, 4800),
        ("L40S", 46068, (8, 9), "bf16", 362.0, 864),
        ("V100-16GB", 16384, (7, 0), "fp16", 125.0, 900),
        ("B200", 183359, (10, 0), "bf16", 2250.0, 7700),
    ],
)
def test_figures_of_the_sources(name, driver_mib, capability, dtype, dense_tflops, gb_per_s):
    found = catalogue.find_gpu(name)
    assert found.memory_reported
    assert found.memory_bytes == driver_mib * MIB
    assert found.compute_capability == capability
    assert found.dense_tflops[dtype] == dense_tflops
    assert found.bandwidth_bytes_per_s == gb_per_s * 1e9


def test_links_are_kept_in_one_direction():
    a100 = catalogue.find_gpu("A100-80GB")
    assert a100.nvlink_bytes_per_s == 300e9
    assert a100.pcie_bytes_per_s == pytest.approx(31.5e9, rel=0.01)
    assert catalogue.find_gpu("RTX4090").nvlink_bytes_per_s is None


def test_what_no_source_says_is_absent():
    ascend = catalogue.find_gpu("Ascend-910B3")
    assert ascend.dense_tflops == {}
    assert ascend.bandwidth_bytes_per_s is None
    assert not ascend.memory_reported


def test_low_precision_is_never_slower_than_high():
    for row in catalogue.rows():
        rates = [row.get("tflops", {}).get(dtype) for dtype in ("fp32", "tf32", "bf16", "fp8")]
        known = [rate for rate in rates if rate is not None]
        assert known == sorted(known), row["id"]


def test_the_search_matches_words_and_architectures():
    assert {kind.id for kind in catalogue.search_gpus("3080 ti")} == {"rtx-3080-ti-12gb"}
    assert all(kind.architecture == "hopper" for kind in catalogue.search_gpus("hopper"))
    assert len(catalogue.search_gpus("")) == len(catalogue.rows())
    assert catalogue.search_gpus("voodoo") == []


def test_the_reserve_of_an_anonymous_card_covers_what_drivers_keep():
    seen = [row for row in catalogue.rows() if "cuda_mib" in row["memory"] and "ECC" not in row.get("note", "")]
    assert len(seen) >= 14
    for row in seen:
        nominal = row["memory"]["gib"] * GIB
        assert nominal - reserve_bytes(nominal) <= row["memory"]["cuda_mib"] * MIB, row["id"]
        assert nominal - reserve_bytes(nominal) >= 0.97 * row["memory"]["cuda_mib"] * MIB, row["id"]


def test_what_cuda_offers_is_kept_beside_the_drivers_total():
    h100 = catalogue.find_gpu("H100-80GB")
    assert h100.cuda_bytes == 81082 * MIB
    assert h100.memory_bytes == 81559 * MIB


def test_bad_rows_are_reported_all_at_once_with_file_row_and_field():
    document = copy.deepcopy(read_rules("gpus"))
    rows = document["gpu"]
    rows[0]["bandwith_gb_per_s"] = 3
    rows[1]["memory"]["driver_mib"] = 99999
    rows[2]["architecture"] = "pascall"
    rows[3]["tflops"] = {"fp8": 10.0}
    rows[4]["id"] = rows[5]["id"]
    del rows[6]["source"]
    found = schema.problems(document)
    assert any("bandwith_gb_per_s: not a key, nearest is 'bandwidth_gb_per_s'" in line for line in found)
    assert any(f"{rows[1]['id']!r}: memory.driver_mib" in line for line in found)
    assert any("architecture: unknown, nearest is 'pascal'" in line for line in found)
    assert any("tflops.fp8: its architecture does not compute it" in line for line in found)
    assert any("used 2 times" in line for line in found)
    assert any(f"{rows[6]['id']!r}: source" in line for line in found)
    assert all(line.startswith("gpus.toml: ") for line in found)
    with pytest.raises(InputError, match=r"bandwith.*pascal"):
        schema.validate(document)
