"""What a fresh process loads: help stays light, and no planning ever imports torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ASK = """
import json, sys
from planner.cli.app import run
code = run({words!r})
print("\\n" + json.dumps({{"code": code, "modules": sorted(sys.modules)}}))
"""
HEAVY = {"torch", "transformers", "numpy", "accelerate", "datasets"}


def loaded_by(words: list[str], cwd: Path) -> set[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ASK.format(words=words)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["code"] == 0, done.stdout + done.stderr
    return {name.split(".")[0] for name in answer["modules"]}


@pytest.mark.parametrize("words", [["--help"], ["estimate", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    assert not loaded_by(words, tmp_path) & (HEAVY | {"jinja2", "psutil", "pynvml", "yaml"})


def test_the_main_job_never_imports_torch_and_does_without_pydantic(tmp_path: Path) -> None:
    loaded = loaded_by(["--gpus", "3x20GB", "--model", "7B"], tmp_path)
    assert not loaded & (HEAVY | {"pydantic", "pynvml"})


def test_an_estimate_neither_probes_nor_renders(tmp_path: Path) -> None:
    loaded = loaded_by(["estimate", "--gpus", "1xA100-80GB", "--model", "7B", "--json"], tmp_path)
    assert not loaded & (HEAVY | {"jinja2", "psutil", "pynvml", "rich"})


def test_importing_the_package_is_light(tmp_path: Path) -> None:
    ask = "import json, sys, planner; print(json.dumps(sorted(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert not set(json.loads(done.stdout)) & {"typer", "pydantic", "rich", "yaml"}
