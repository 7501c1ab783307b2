"""DeepSpeed's AutoTP trains as one process does: every family that the rules let through, and an emitted folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.emit.folder import plan_files
from planner.emit.write import write_folder
from planner.rulebook.load import read_rows
from planner.training import TrainingSetup
from tests.emit.plans import machine, plan_of
from tests.engines.conftest import SCRIPTS, ScriptEngine
from tests.engines.test_training import train

pytestmark = pytest.mark.engines
RULES = {row["id"]: row for row in read_rows("constraints", "constraint")}


def families(rule: str) -> set[str]:
    """The model types that a rule lists."""
    return next(set(each["value"]) for each in RULES[rule]["when"] if each["field"] == "model.type")


REFUSED = families("lf-53b-tensor-parallel-refused")
SHOWN = families("lf-53b-tensor-parallel-model") - REFUSED
TIED = ("llama+tied", "qwen2+tied")


def steps(engine: ScriptEngine, ranks: int, names: list[str], folder: Path) -> dict[str, Any]:
    words = ("-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={29640 + ranks}")
    done = engine.run(
        str(engine.python), *words, str(SCRIPTS / "autotp_families.py"), ",".join(names), cwd=folder, seconds=500
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.rpartition("RESULT ")[2])
    return found


def test_every_family_that_is_let_through_trains_as_one_process(engine: ScriptEngine, tmp_path: Path) -> None:
    names = sorted(SHOWN) + list(TIED)
    alone, cut = steps(engine, 1, names, tmp_path), steps(engine, 2, names, tmp_path)
    for name in names:
        for (loss, norm), (loss_cut, norm_cut) in zip(alone[name], cut[name], strict=True):
            assert loss_cut == pytest.approx(loss, abs=0.005), name  # bf16 sums in another order
            assert norm_cut == pytest.approx(norm, rel=0.01), name


def test_the_families_that_are_refused_do_not_run(engine: ScriptEngine, tmp_path: Path) -> None:
    found = steps(engine, 2, sorted(REFUSED), tmp_path)
    assert all(isinstance(answer, str) for answer in found.values()), found


def test_an_emitted_folder_trains_as_one_process(engine: ScriptEngine, tiny_model: Path, tmp_path: Path) -> None:
    """Two GPUs that share each layer see the batch of one."""
    logs = []
    for gpus, zero in ((1, "zero1"), (2, "zero1"), (2, "zero2")):
        setup = TrainingSetup(model="-", method="full", parallelism=zero, tensor_parallel=gpus, micro_batch_size=2)
        files = plan_files(plan_of(setup, on=machine(gpus)))
        folder = write_folder(files, tmp_path / f"{zero}-{gpus}").folder
        port = {"MASTER_PORT": "29661"}
        logs.append(train(engine, folder, tiny_model, "learning_rate=1e-3", "lr_scheduler_type=constant", **port))
        assert (folder / "output" / "model.safetensors").exists()
    for log in logs[1:]:
        assert [each["loss"] for each in log] == pytest.approx([each["loss"] for each in logs[0]], abs=0.005)
