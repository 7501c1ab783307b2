"""plan calibrate: without a GPU one sentence; with one, the script's answer is kept, shown and used."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from planner import api
from planner.calibrate import measure_script
from planner.calibrate.constants import constants_from_mapping
from planner.calibrate.measure import measured, read_answer
from planner.calibrate.place import store_path
from planner.cli.app import run
from planner.errors import InputError
from planner.hardware.machine import Machine
from planner.hardware.observed import machine_from_answer
from planner.hardware.store import machine_to_json
from planner.training import TrainingSetup

ANSWER = Path(__file__).parent / "answers" / "two_gpus.json"
PROBE = Path(__file__).parents[1] / "hardware" / "answers" / "two_gpus.json"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    here = machine_from_answer(json.loads(PROBE.read_text(encoding="utf-8")))
    monkeypatch.setattr("planner.hardware.probe.probe", lambda folder=None: here)
    return here


@pytest.fixture
def interpreter(tmp_path: Path) -> Callable[[str], str]:
    """A program in the place of a Python with torch: it runs as one, and says what it is told to say."""

    def make(script: str) -> str:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return make


def test_without_a_gpu_nothing_is_guessed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    none = machine_from_answer(json.loads(PROBE.with_name("no_driver.json").read_text(encoding="utf-8")))
    monkeypatch.setattr("planner.hardware.probe.probe", lambda folder=None: none)
    for words in ([], ["--show"]):
        assert run(["calibrate", *words]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: nothing to measure: no NVIDIA GPU was found here")
    assert not store_path().exists()


def test_what_is_measured_is_kept_shown_and_used(
    machine: Machine, interpreter: Callable[[str], str], capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "80")
    setup = TrainingSetup(model="Qwen2.5-0.5B")
    before = api.estimate(setup, machine)
    python = interpreter(f'echo "devices $CUDA_VISIBLE_DEVICES"; tr -d "\\n" < {ANSWER}')
    assert run(["calibrate", "--python", python, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["constants"]
    assert told["nccl_bytes"] == 260046848
    assert run(["calibrate", "--show"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "329 MiB" in shown or "0.32 GiB" in shown
    assert "peer access is not supported" in " ".join(shown.split())
    after = api.estimate(setup, machine)
    assert after.context_bytes == told["context_bytes"] + told["nccl_bytes"] != before.context_bytes
    assert after.allocated_bytes == before.allocated_bytes
    assert "as measured here by `plan calibrate` on 2026-11-20" in " ".join(after.assumptions)
    saved = tmp_path / "machine.json"
    saved.write_text(machine_to_json(machine))
    assert run(["calibrate", "--show", "--machine", str(saved)]) == 0


def test_nothing_measured_yet(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["calibrate", "--show"]) == 2
    assert "nothing was measured on this machine yet" in capsys.readouterr().err
    assert run(["calibrate", "--machine", "x.json"]) == 2
    assert "nothing can be measured on it, use --show" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("echo words; exit 0", "ended without an answer"),
        ("echo 'ImportError: no torch' >&2; exit 1", "ImportError: no torch"),
        ("exit 7", "exit 7"),
        ("echo '{\"format\": 3}'", "format 3 is not 1"),
        ('echo \'{"format": 1, "measured_at": "x", "torch": "2", "gpu": "g", "context_bytes": -4}\'',
         "context_bytes -4 is not int | None"),
    ],
)  # fmt: skip
def test_a_measurement_that_fails_is_one_sentence(
    machine: Machine, interpreter: Callable[[str], str], capsys: pytest.CaptureFixture[str], script: str, sentence: str
) -> None:
    assert run(["calibrate", "--python", interpreter(script)]) == 2
    err = capsys.readouterr().err
    assert sentence in err and "Traceback" not in err
    assert not store_path().exists()


def test_a_python_that_is_none_and_one_without_torch(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run(["calibrate", "--python", str(tmp_path)]) == 2
    assert "is no file; name the interpreter itself" in capsys.readouterr().err
    monkeypatch.setattr("planner.calibrate.measure.find_spec", lambda name: None)
    assert run(["calibrate"]) == 2
    assert "torch is not installed beside this command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"gpuu": "x"}, "gpuu is not a field"),
        ({"nccl_bytes": 0}, "nccl_bytes 0 is not"),
        ({"matmul_tflops": {"bf16": "fast"}}, "matmul_tflops"),
        ({"matmul_tflops": [1]}, "matmul_tflops"),
        ({"torch": None}, "torch None is not str"),
    ],
)
def test_constants_are_checked(changes: dict[str, Any], sentence: str) -> None:
    document = json.loads(ANSWER.read_text()) | changes
    with pytest.raises(InputError, match=sentence):
        constants_from_mapping(document)


def test_constants_read_back() -> None:
    one = read_answer(ANSWER.read_text().replace("\n", ""))
    assert constants_from_mapping(json.loads(json.dumps(one.to_dict()))) == one


# ---- the script: what can be told without a GPU


class Card:
    """A driver's library as ctypes calls it, with a scripted series of used bytes."""

    def __init__(self, *used: int, code: int = 0) -> None:
        self.used, self.code, self.asked = list(used), code, []

    def nvmlInit_v2(self) -> int:  # noqa: N802 - the driver's name
        return self.code

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:  # noqa: N802
        self.asked.append(uuid)
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:  # noqa: N802
        memory._obj.used = self.used.pop(0) if len(self.used) > 1 else self.used[0]
        return 0


def card(monkeypatch: pytest.MonkeyPatch, *used: int, code: int = 0) -> Card:
    found = Card(*used, code=code)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: found)
    monkeypatch.setattr(measure_script, "QUIET_S", 0)
    return found


def test_the_driver_is_asked_for_the_card_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    found = card(monkeypatch, 5)
    assert measure_script.Driver("GPU-1").used_bytes() == 5
    assert found.asked == [b"GPU-1"]
    card(monkeypatch, 5, code=9)
    with pytest.raises(OSError, match="nvmlInit_v2 answered 9"):
        measure_script.Driver("GPU-1")


def fake_torch(reserved: list[int]) -> Any:
    """Only what the accounting asks of torch: reserved bytes in a scripted series."""
    cuda = SimpleNamespace(
        synchronize=lambda: None, memory_reserved=lambda: reserved.pop(0) if len(reserved) > 1 else reserved[0]
    )
    return SimpleNamespace(cuda=cuda, empty=lambda *shape, device: object())


def test_context_is_the_cards_growth_less_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Used: 100 twice, then context, matmul, flash, step and the end; reserved grows beside it."""
    card(monkeypatch, 100, 100, 100 + 302, 100 + 352, 100 + 360, 100 + 368, 100 + 368)
    torch = fake_torch([2, 2, 22, 22, 22])
    works = {"matmul": lambda t: 17, "flash": lambda t: None, "step": lambda t: None}
    monkeypatch.setattr(measure_script, "LIBRARIES", works)
    measuring = measure_script.Measuring(torch, "cuda", 0.0)
    found = measure_script.held(measuring, measure_script.Outside(torch, measure_script.Driver("GPU-1")))
    assert found == {
        "context_alone_bytes": 300, "granularity_bytes": 2, "cublas_workspace_bytes": 17,
        "library_growth_bytes": {"matmul": 30, "flash": 8, "step": 8}, "context_bytes": 346,
    }  # fmt: skip


def test_a_kernel_that_is_refused_is_named_and_the_rest_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(torch: Any) -> None:
        raise RuntimeError("no flash kernel for this card\nand more")

    card(monkeypatch, 0, 0, 300)
    torch = fake_torch([0])
    monkeypatch.setattr(measure_script, "LIBRARIES", {"flash": refuse, "step": lambda t: None})
    measuring = measure_script.Measuring(torch, "cuda", 0.0)
    found = measure_script.held(measuring, measure_script.Outside(torch, measure_script.Driver("GPU-1")))
    assert measuring.refused == {"flash": "RuntimeError: no flash kernel for this card"}
    assert set(found["library_growth_bytes"]) == {"step"}


def test_a_neighbour_that_allocates_spoils_the_figure_and_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, 100, 200)
    with pytest.raises(OSError, match="another program is allocating"):
        measure_script.Outside(fake_torch([0]), measure_script.Driver("GPU-1"))


def test_a_driver_whose_figure_stands_still_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, 100)
    torch = fake_torch([0])
    measuring = measure_script.Measuring(torch, "cuda", 0.0)
    with pytest.raises(OSError, match="did not move"):
        measure_script.held(measuring, measure_script.Outside(torch, measure_script.Driver("GPU-1")))


@pytest.fixture
def torch_here(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.transformers
def test_the_script_measures_arithmetic_and_memory_on_the_cpu(torch_here: None) -> None:
    found = measured(sys.executable, [], device="cpu", seconds=0.01)
    assert found.gpu == "cpu"
    assert set(found.matmul_tflops) == {"bf16", "fp32"}
    assert all(rate > 0 for shapes in found.matmul_shapes.values() for rate in shapes.values())
    assert found.matmul_tflops["fp32"] == max(found.matmul_shapes["fp32"].values())
    assert found.bandwidth_bytes_per_s and found.bandwidth_bytes_per_s > 1e8
    assert found.context_bytes is None and "context_bytes" in found.refused


@pytest.mark.transformers
def test_ranks_meet_speak_and_end(torch_here: None) -> None:
    """Two real processes over gloo: everything but the driver's figure, which a CPU has not."""
    with pytest.raises(OSError, match="the driver's figure did not move"):
        measure_script.nccl(None, ["one", "two"], backend="gloo")


@pytest.mark.transformers
def test_asking_for_a_gpu_that_torch_does_not_see_is_one_sentence(torch_here: None) -> None:
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        pytest.skip("a GPU is visible")
    with pytest.raises(InputError, match=r"torch .* sees no GPU"):
        measured(sys.executable, [])


def test_a_measurement_that_hangs_is_ended_with_all_that_it_started(
    interpreter: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("planner.calibrate.measure.LONGEST_S", 0.5)
    marker = tmp_path / "child"
    with pytest.raises(InputError, match=r"took longer than 0\.5 s and was ended"):
        measured(interpreter(f"sleep 60 & echo $! > {marker}; wait"), ["GPU-1"])
    import psutil

    pid = int(marker.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
