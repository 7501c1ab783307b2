"""Runs a probe script with the engine's Python and returns the JSON line that it prints."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from tests.engine_python import Engine, engine_python

SCRIPTS = Path(__file__).parent / "scripts"


def probe(script: str, *words: str, ranks: int = 1) -> dict[str, Any]:
    """The answer of ``tests/memory/scripts/<script>``; skips where no engine is installed."""
    engine = Engine(engine_python())
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={_free_port()}"]
    # DeepSpeed compiles an operator on its first run, which the time that a run has allows for.
    done = engine.run(str(engine.python), *(launcher if ranks > 1 else []), str(SCRIPTS / script), *words)
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0 and found, done.stdout[-2000:] + done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(found[-1].removeprefix("RESULT "))
    return answer


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
