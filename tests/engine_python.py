"""The Python that has LLaMA-Factory, named by VRAMPLAN_LF_PYTHON; without it these tests say so and skip."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

_KEPT = ("HOME", "LANG", "TMPDIR", "TORCH_EXTENSIONS_DIR")


def engine_python() -> Path:
    """The named Python; skips where none is named, fails where the name leads nowhere."""
    named = os.environ.get("VRAMPLAN_LF_PYTHON")
    if not named:
        pytest.skip("VRAMPLAN_LF_PYTHON does not name a Python with LLaMA-Factory 0.9.5")
    python = Path(named)
    if not python.exists():
        pytest.fail(f"VRAMPLAN_LF_PYTHON names {python}, which does not exist")
    return python


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
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
                err += f"\nended after {seconds} s"
        return subprocess.CompletedProcess(words, process.returncode, out, err)
