"""EDGE: a folder that trains anywhere: a tiny random model, its tokenizer and the shipped samples, without a hub.

The folder is a plan's: the embedded engine, its files and its ``plan.json``, for one notional GPU. The model is made
by the Python that will train it, which needs the extra ``train`` (torch, transformers, accelerate) and nothing of ours.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from planner.data.source import demo_source
from planner.emit.folder import plan_files
from planner.emit.write import write_folder
from planner.errors import EXIT_PREFLIGHT, InputError, PlannerError
from planner.hardware.parse import parse_machine
from planner.model.catalogue import resolve
from planner.plan.make import make_plan
from planner.plan.plan import Plan, Request
from planner.targets.choose import BASIC, installed

SCRIPT = Path(__file__).with_name("demo_model.py")
MAKING_S = 300.0
GPUS = "1x4GB"
MODEL_FOLDER = "tiny-llama"
# About twenty passes over 60 samples: the loss falls visibly, with a checkpoint every few steps.
ARGUMENTS: dict[str, Any] = {
    "use_cpu": True,
    "max_steps": 120,
    "learning_rate": 3e-3,
    "logging_steps": 1,
    "save_steps": 20,
    "save_total_limit": 2,
}
_PINNED = {
    "method": "full",
    "micro_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "liger_kernel": False,
    "attention": "sdpa",
    "gradient_checkpointing": False,
    "compute_dtype": "fp32",
}


class CannotTrainError(PlannerError):
    """The Python that is to train lacks what training needs."""

    exit_code = EXIT_PREFLIGHT


def write_demo(folder: str | Path, python: str | Path = sys.executable) -> Path:
    """Write the demo into an empty or absent ``folder`` and give its path; ``python`` makes the model and trains it.

    Raises InputError where the folder has something in it, CannotTrainError where that Python lacks a package.
    """
    place = Path(folder).expanduser().resolve()
    refuse_without_packages(python)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InputError(f"the demo needs an empty folder, and {str(place)!r} is not one")
    was_there = place.exists()
    try:
        _make_model(place / MODEL_FOLDER, python)
        return write_folder(for_cpu(plan_files(demo_plan(place / MODEL_FOLDER))), place, force=True).folder
    except BaseException:
        shutil.rmtree(place / MODEL_FOLDER, ignore_errors=True)
        if not was_there:
            with suppress(OSError):
                place.rmdir()
        raise


def next_place(plans: Path) -> Path:
    """``demo-1`` in the folder of plans, or the first number that is free."""
    number = 1
    while (plans / f"demo-{number}").exists():
        number += 1
    return plans / f"demo-{number}"


def refuse_without_packages(python: str | Path) -> None:
    """Raises CannotTrainError with the command that installs what is missing."""
    found = installed(python)
    missing = [name for name in BASIC if name not in found]
    if missing:
        raise CannotTrainError(
            f"the demo trains with {', '.join(BASIC)}, and {python} lacks {', '.join(missing)}",
            hint=f"{python} -m pip install torch transformers accelerate peft; or name a Python that has them with "
            "--python",
        )


def _make_model(folder: Path, python: str | Path) -> None:
    """Raises CannotTrainError with the last line of a script that failed."""
    rows = next(iter(demo_source("sft").texts.values()))
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    words = [str(python), str(SCRIPT), str(folder)]
    try:
        done = subprocess.run(  # noqa: S603 - the interpreter that was named, and our own script
            words, input=rows, env=environment, capture_output=True, text=True, timeout=MAKING_S
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise CannotTrainError(f"{python} cannot make the demo's model ({type(problem).__name__})") from None
    if done.returncode:
        last = done.stderr.strip().splitlines()
        raise CannotTrainError(f"{python} cannot make the demo's model: {last[-1] if last else done.returncode}")


def demo_plan(model: Path) -> Plan:
    """The plan of the demo, for a notional GPU: the search picks nothing that the demo does not state."""
    request = Request(model=str(model), engine="embedded", seq_len=128, global_batch=8, gpus=GPUS, pinned=dict(_PINNED))
    return make_plan(request, resolve(str(model)), parse_machine(GPUS))


def for_cpu(texts: Mapping[str, str]) -> dict[str, str]:
    """The files with the demo's pace, on the CPU."""
    settings = json.loads(texts["train.json"])
    settings["arguments"] |= ARGUMENTS
    return {**texts, "train.json": json.dumps(settings, indent=2) + "\n"}
