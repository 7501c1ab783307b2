"""The meters, over a stand-in for torch.cuda that keeps the allocator's books."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.meter import CudaMeter, DriverMeter, driver_facts, driver_meter, visible_card

GIB = 2**30


class Books:
    """torch.cuda's counters: current and peak of allocated and reserved memory."""

    def __init__(self, total: int = 100 * GIB) -> None:
        self.total, self.now, self.peak, self.held = total, 0, 0, 0
        self.fraction: tuple[float, int] | None = None
        self.is_begun = False

    def init(self) -> None:
        self.is_begun = True

    def take(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)
        self.held = max(self.held, self.now)

    def max_memory_allocated(self, device: int) -> int:
        return self.peak

    def max_memory_reserved(self, device: int) -> int:
        return self.held

    def memory_reserved(self, device: int) -> int:
        return self.held

    def reset_peak_memory_stats(self, device: int) -> None:
        assert self.is_begun, "Allocator not initialized for device 0: did you call init?"
        self.peak = self.now

    def memory_stats(self, device: int) -> dict[str, int]:
        return {"num_alloc_retries": 3}

    def get_device_properties(self, device: int) -> Any:
        return SimpleNamespace(total_memory=self.total)

    def set_per_process_memory_fraction(self, fraction: float, device: int) -> None:
        self.fraction = (fraction, device)

    def synchronize(self, device: int) -> None:
        pass


class Card:
    """A driver whose used memory goes through a list."""

    lag_s = 0.0

    def __init__(self, *used: int) -> None:
        self.readings = list(used)

    def used(self) -> int:
        return self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]

    def of_process(self, pid: int) -> int | None:
        return None

    def close(self) -> None:
        pass


def meter(books: Books, driver: DriverMeter | None = None) -> CudaMeter:
    return CudaMeter(SimpleNamespace(cuda=books), driver)


def test_peaks_by_phase_without_loading() -> None:
    books = Books()
    one = meter(books)
    one.open("load")
    books.take(50), books.take(-20)
    for extra in (5, 8):
        one.open("forward")
        books.take(extra)
        one.open("backward")
        books.take(2), books.take(-2 - extra)
    found = one.close()
    assert found["phases"] == {"forward": 38, "backward": 40}
    assert found["allocated_bytes"] == 40
    assert found["load_allocated_bytes"] == 50
    assert found["reserved_bytes"] == 50  # the cache of the load phase is still held
    assert found["allocator_retries"] == 3
    assert found["device_bytes"] is None and found["context_bytes"] is None


def test_what_lives_across_a_border_counts_in_both_phases() -> None:
    books = Books()
    one = meter(books)
    one.open("forward")
    books.take(7)
    one.open("backward")
    assert one.close()["phases"] == {"forward": 7, "backward": 7}


def test_the_limit_is_a_fraction_of_the_cards_whole_memory() -> None:
    books = Books()
    assert meter(books).limit(25 * GIB) == 25 * GIB
    assert books.fraction == (0.25, 0)
    assert meter(books).limit(200 * GIB) == 100 * GIB
    assert books.fraction == (1.0, 0)


def test_the_drivers_figure_is_without_what_was_there_before() -> None:
    books = Books()
    books.take(6 * GIB)
    driver = DriverMeter(Card(1 * GIB, 9 * GIB, 8 * GIB), "nvml")
    driver._thread.join(timeout=0.2)
    one = meter(books, driver)
    one.open("forward")
    found = one.close()
    assert found["device_bytes"] == 8 * GIB
    assert found["context_bytes"] == 1 * GIB  # 8 used, 1 of others, 6 reserved
    assert found["driver_meter"] == "nvml"


@pytest.mark.parametrize(("value", "card"), [(None, "0"), ("", "0"), ("3,1", "3"), ("GPU-ab, GPU-cd", "GPU-ab")])
def test_the_first_visible_card(monkeypatch: pytest.MonkeyPatch, value: str | None, card: str) -> None:
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert visible_card() == card


def test_facts_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the calls of pynvml, and through nvidia-smi's words where it is not there."""
    info = SimpleNamespace(total=143771 * 2**20, used=5)
    nvml = SimpleNamespace(
        nvmlInit=lambda: None, nvmlShutdown=lambda: None, nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlSystemGetDriverVersion=lambda: b"580.159", nvmlDeviceGetMemoryInfo=lambda card: info,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert driver_facts() == ("580.159", 143771 * 2**20)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert driver_facts() is None


def test_nvidia_smi_stands_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        '*driver_version*) echo "580.159, 143771";;\n'
        "*) echo 100; sleep 0.05; echo 900; echo 700; exec sleep 5;;\nesac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert driver_facts() == ("580.159", 143771 * 2**20)
    driver = driver_meter()
    assert driver is not None and driver.name == "smi"
    found = driver.close()
    assert found["used_bytes"] == 600 * 2**20 and found["process_bytes"] is None
