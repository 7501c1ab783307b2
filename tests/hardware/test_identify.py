"""Driver name and total memory -> row, and nothing borrowed from a neighbour."""

from __future__ import annotations

import pytest

from planner.hardware.catalogue import rows
from planner.hardware.identify import identify, identify_shared, without_slice
from planner.units import GIB, MIB


@pytest.mark.parametrize(
    ("name", "total_mib", "expected"),
    [
        ("NVIDIA GeForce RTX 3080", 10240, "rtx-3080-10gb"),
        ("NVIDIA GeForce RTX 3080", 10018, "rtx-3080-10gb"),
        ("NVIDIA GeForce RTX 3080", 12288, "rtx-3080-12gb"),
        ("NVIDIA GeForce RTX 3080", 20480, "rtx-3080-20gb"),
        ("NVIDIA GeForce RTX 3080", 16384, None),
        ("NVIDIA GeForce RTX 2080 Ti", 22528, "rtx-2080-ti-22gb"),
        ("GeForce RTX 2080 Ti", 11019, "rtx-2080-ti-11gb"),
        ("NVIDIA GeForce RTX 4090", 49140, "rtx-4090-48gb"),
        ("NVIDIA GeForce RTX 4090", 24564, "rtx-4090-24gb"),
        ("nvidia geforce rtx 4090", 24217, "rtx-4090-24gb"),
        ("A100-SXM4-40GB", 40536, "a100-sxm4-40gb"),
        ("NVIDIA A100-SXM4-80GB", 81251, "a100-sxm4-80gb"),
        ("NVIDIA L4", 23034, "l4-24gb"),
        ("NVIDIA L40", 46068, "l40-48gb"),
        ("Tesla T4", 15109, "t4-16gb"),
        ("NVIDIA L", 23034, None),
        ("NVIDIA A100", 81920, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16376, "rtx-4090-laptop-16gb"),
        ("", 24564, None),
    ],
)
def test_whole_name_and_size_decide(name, total_mib, expected):
    found = identify(name, total_mib * MIB)
    assert (found.id if found else None) == expected


def test_without_a_total_only_a_name_of_one_size_identifies():
    assert identify("NVIDIA H200", None).id == "h200-sxm5-141gb"
    assert identify("NVIDIA GeForce RTX 3080", None) is None


def test_every_reported_total_identifies_its_own_row():
    for row in rows():
        look = identify_shared if row.get("unified") else identify
        total = row["memory"].get("driver_mib", row["memory"]["gib"] * 1024) * MIB
        for name in row["names"]:
            assert look(name, total).id == row["id"]
            assert look(name.upper(), int(0.94 * row["memory"]["gib"] * GIB)).id == row["id"]


def test_boards_of_one_name_are_told_apart_by_the_hosts_memory():
    found = {size: identify_shared("Orin (nvgpu)", int(size * GIB)) for size in (7.1, 6.3, 14.1, 15.3, 29.9, 61.4)}
    assert {size: kind.id for size, kind in found.items()} == {
        7.1: "jetson-orin-8gb",
        6.3: "jetson-orin-8gb",
        14.1: "jetson-orin-nx-16gb",
        15.3: "jetson-orin-nx-16gb",
        29.9: "jetson-agx-orin-32gb",
        61.4: "jetson-agx-orin-64gb",
    }
    assert identify_shared("Orin (nvgpu)", None) is None
    assert identify_shared("Orin (nvgpu)", 3 * GIB) is None  # an Orin Nano of 4 GB has no row
    assert identify_shared("Xavier (nvgpu)", 30 * GIB) is None
    assert identify_shared("NVIDIA H200", 140 * GIB) is None  # it has memory of its own


def test_a_slice_is_named_after_its_card():
    assert without_slice("NVIDIA A100-SXM4-80GB MIG 3g.40gb") == "NVIDIA A100-SXM4-80GB"
    assert without_slice("NVIDIA H100 80GB HBM3 MIG 1g.10gb+me") == "NVIDIA H100 80GB HBM3"
    assert identify("NVIDIA A100-SXM4-80GB MIG 3g.40gb", 40192 * MIB) is None
