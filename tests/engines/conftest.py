"""The Python that has LLaMA-Factory, named by VRAMPLAN_LF_PYTHON; without it these tests say so and skip."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent / "scripts"


@pytest.fixture(scope="session")
def lf_python() -> Path:
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
        keep = {
            name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR", "TORCH_EXTENSIONS_DIR") if name in os.environ
        }
        return keep | {
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "DS_ACCELERATOR": "cpu",
            "PYTHONWARNINGS": "ignore",
            **extra,
        }

    def run(self, *words: str, cwd: Path, seconds: int = 300, **extra: str) -> subprocess.CompletedProcess[str]:
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

    def script(self, name: str, *words: str, cwd: Path, **extra: str) -> str:
        done = self.run(str(self.python), str(SCRIPTS / name), *words, cwd=cwd, **extra)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout


@pytest.fixture(scope="session")
def engine(lf_python: Path) -> Engine:
    return Engine(lf_python)


@pytest.fixture(scope="session")
def tiny_model(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 140k parameters with its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    engine.script("make_tiny_model.py", str(folder), cwd=folder.parent)
    return folder
