"""Runs a probe script with the engine's Python and returns the JSON line that it prints."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parent / "scripts"
SECONDS = 300  # DeepSpeed compiles an operator on its first run


def probe(script: str, *words: str, ranks: int = 1) -> dict[str, Any]:
    """The answer of ``tests/memory/scripts/<script>``; skips where no engine is installed."""
    named = os.environ.get("VRAMPLAN_LF_PYTHON")
    if not named:
        pytest.skip("VRAMPLAN_LF_PYTHON does not name a Python with LLaMA-Factory 0.9.5")
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={_free_port()}"]
    command = [named, *(launcher if ranks > 1 else []), str(SCRIPTS / script), *words]
    keep = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR", "TORCH_EXTENSIONS_DIR") if name in os.environ}
    path = f"{Path(named).parent}{os.pathsep}{os.environ['PATH']}"
    quiet = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        command,
        env={**keep, "PATH": path, **quiet},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    found = [line for line in out.splitlines() if line.startswith("RESULT ")]
    assert process.returncode == 0 and found, out[-2000:] + err[-2000:]
    answer: dict[str, Any] = json.loads(found[-1].removeprefix("RESULT "))
    return answer


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
