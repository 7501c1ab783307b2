"""Runs the measuring script in a Python that has torch (an edge) and reads its answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from planner.calibrate.constants import Constants, constants_from_mapping
from planner.errors import InputError
from planner.hardware.machine import Machine

SCRIPT = Path(__file__).with_name("measure_script.py")
LONGEST_S = 600.0


def python_with_torch(named: str | None) -> str:
    """The Python to measure with: the named one, else this one. Raises InputError where it has no torch."""
    if named is None:
        if find_spec("torch") is None:
            raise InputError(
                "torch is not installed beside this command, and measuring needs it",
                hint="name a Python that has it, such as `plan calibrate --python ~/train/bin/python`",
            )
        return sys.executable
    found = Path(named).expanduser()
    if not found.is_file():
        raise InputError(f"--python {named!r} is no file; name the interpreter itself, such as venv/bin/python")
    return str(found)


def visible_uuids(machine: Machine) -> list[str]:
    """The cards to measure, as CUDA_VISIBLE_DEVICES takes them. Raises InputError where nothing can be measured."""
    gpus = [gpu for gpu in machine.gpus if gpu.kind is None or gpu.kind.vendor == "nvidia"]
    if not gpus:
        why = f" ({machine.warnings[0]})" if machine.warnings else ""
        raise InputError(f"nothing to measure: no NVIDIA GPU was found here{why}")
    unnamed = [gpu.index for gpu in gpus if gpu.uuid is None]
    if unnamed:
        raise InputError(f"gpu {unnamed[0]} has no UUID, so that it cannot be told apart; nothing was measured")
    return [str(gpu.uuid) for gpu in gpus]


def measured(python: str, uuids: Sequence[str], *, device: str = "cuda", seconds: float = 0.3) -> Constants:
    """What the script found. Raises InputError with the last word of a script that failed."""
    command = [python, "-s", str(SCRIPT), "--device", device, "--seconds", str(seconds)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(uuids), "CUDA_MODULE_LOADING": "LAZY"}
    code, out, err = _run(command, environment)
    if code != 0:
        last = err.strip().splitlines()
        raise InputError(f"measuring failed with {python!r}: {last[-1] if last else f'exit {code}'}")
    return read_answer(out)


def _run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
    """Exit code and output; a script that hangs, or is interrupted, ends with every rank that it started."""
    try:
        process = subprocess.Popen(  # noqa: S603 - the user's own interpreter and our own script
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
    except OSError as problem:
        raise InputError(f"{command[0]!r} cannot be run: {(problem.strerror or str(problem)).lower()}") from None
    try:
        out, err = process.communicate(timeout=LONGEST_S)
    except BaseException as problem:
        _end(process)
        if isinstance(problem, subprocess.TimeoutExpired):
            raise InputError(f"measuring took longer than {LONGEST_S:g} s and was ended; nothing was kept") from None
        raise
    return process.returncode, out, err


def _end(process: subprocess.Popen[str]) -> None:
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate()


def read_answer(text: str) -> Constants:
    """The record in the last line of what the script printed. Raises InputError."""
    lines = text.strip().splitlines()
    try:
        document = json.loads(lines[-1]) if lines else None
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise InputError("the measuring script ended without an answer")
    return constants_from_mapping(document, place="the measuring script's answer")
