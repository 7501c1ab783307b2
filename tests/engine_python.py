"""Pythons that have an engine: VRAMPLAN_LF_PYTHON names LLaMA-Factory's, VRAMPLAN_HF_PYTHON that of the newest
transformers with TRL; without the variable these tests say so and skip.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

_KEPT = ("HOME", "LANG", "TMPDIR", "TORCH_EXTENSIONS_DIR")


WHAT = {"VRAMPLAN_LF_PYTHON": "LLaMA-Factory 0.9.5", "VRAMPLAN_HF_PYTHON": "the newest transformers and TRL 1.16"}


def engine_python(variable: str = "VRAMPLAN_LF_PYTHON") -> Path:
    """The named Python; skips where none is named, fails where the name leads nowhere."""
    named = os.environ.get(variable)
    if not named:
        pytest.skip(f"{variable} does not name a Python with {WHAT[variable]}")
    python = Path(named)
    if not python.exists():
        pytest.fail(f"{variable} names {python}, which does not exist")
    return python


HUNG = "ended after"


def _end(pid: int) -> None:
    """A launcher with all that it started: torchrun's workers are in sessions of their own and would hold the pipes."""
    launcher = psutil.Process(pid)
    for each in (*launcher.children(recursive=True), launcher):
        with suppress(psutil.Error):
            each.kill()


class Engine:
    """Runs things with the engine's Python: no GPU, no hub, few threads."""

    def __init__(self, python: Path) -> None:
        self.python = python

    def environment(self, **extra: str) -> dict[str, str]:
        return {name: os.environ[name] for name in _KEPT if name in os.environ} | {
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "DS_ACCELERATOR": "cpu",
            "PYTHONWARNINGS": "ignore",
            **extra,
        }

    def run(
        self, *words: str, cwd: Path | None = None, seconds: int = 300, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end or for ``seconds``; a run that hangs is ended with everything that it started."""
        with subprocess.Popen(
            words,
            cwd=cwd,
            env=self.environment(**extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                out, err = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                _end(process.pid)
                out, err = process.communicate()
                err += f"\n{HUNG} {seconds} s"
        return subprocess.CompletedProcess(words, process.returncode, out, err)
