"""Which engine runs a plan, among those that are installed, and why. ``installed`` reads metadata: nothing is imported.

The order of preference: LLaMA-Factory for quick fine-tuning with many methods, TRL for what only it has, the embedded
engine where neither is there. Beyond about 32 GPUs Megatron-LM and DeepSpeed's own launchers are the field's choice;
they are named, never taken: LLaMA-Factory's Megatron adapter gets files when it is asked for.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from planner.errors import InputError, UnsupportedError
from planner.memory.megatron import is_megatron
from planner.rulebook.engines import MERITS, engine_name, never_runs
from planner.training import ZERO, TrainingSetup

LARGE_GPUS = 32
LEAST_TRL = (1, 15)  # tiles in the loss, and a price for them
PACKAGES = (
    "llamafactory", "trl", "torch", "transformers", "accelerate", "peft", "deepspeed", "bitsandbytes", "liger-kernel",
)  # fmt: skip
BASIC = ("torch", "transformers", "accelerate")
# What each engine is made of.
NEEDS: dict[str, tuple[str, ...]] = {
    "llamafactory": ("llamafactory",),
    "trl": ("trl",),
    "embedded": BASIC,
}
_ASK = (
    "import importlib.metadata as m, json, sys\n"
    "found = {}\n"
    "for name in sys.argv[1:]:\n"
    "    try: found[name] = m.version(name)\n"
    "    except m.PackageNotFoundError: pass\n"
    "print(json.dumps(found))\n"
)
ASK_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A value and the reason for it, as half a sentence."""

    value: str
    because: str


def installed(python: str | Path | None = None) -> dict[str, str]:
    """EDGE: package to version, of this Python or of another one named by its path.

    Raises InputError where that one cannot be asked.
    """
    if python is None or Path(python) == Path(sys.executable):
        return _here()
    words = [str(python), "-I", "-c", _ASK, *PACKAGES]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=ASK_SECONDS, check=True)  # noqa: S603
        answer = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as problem:
        raise InputError(f"{str(python)!r} does not answer as a Python ({type(problem).__name__})") from None
    return {str(name): str(text) for name, text in answer.items()}


def _here() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def choose_engine(installed: Mapping[str, str], setup: TrainingSetup, stage: str, gpus: int) -> Choice:
    """The engine for a setup of ``stage`` on ``gpus`` GPUs in all, among ``installed`` packages. Pure.

    Raises UnsupportedError: one sentence with what each engine lacks, where none can run it.
    """
    lacks = {engine: _lack(engine, installed, setup, stage) for engine in MERITS}
    able = [engine for engine, lack in lacks.items() if lack is None]
    if not able:
        said = "; ".join(f"{engine_name(engine)} {lack}" for engine, lack in lacks.items())
        raise UnsupportedError(f"no engine that is installed runs stage {stage}: {said}")
    value = able[0]
    return Choice(value=value, because=_because(value, lacks, stage) + _beyond(gpus))


def _lack(engine: str, installed: Mapping[str, str], setup: TrainingSetup, stage: str) -> str | None:
    """Why an engine cannot run the setup, None where it can: what it never does first, then what is not installed."""
    never = never_runs(engine, stage, setup.method, setup.parallelism or "none")
    if never is not None:
        return never
    if engine in PACKAGES and engine not in installed:
        return "is not installed"
    missing = [name for name in (*NEEDS[engine], *packages_beside(setup)) if name not in installed]
    if missing:
        return f"lacks {', '.join(missing)}"
    return _too_old(installed["trl"]) if engine == "trl" else None


def _too_old(text: str) -> str | None:
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if numbers >= LEAST_TRL:
        return None
    return f"is {text}, and its files are written for {LEAST_TRL[0]}.{LEAST_TRL[1]} or newer"


def packages_beside(setup: TrainingSetup) -> tuple[str, ...]:
    """Packages that the setup needs whatever the engine."""
    needs_bnb = setup.quantization_bit is not None and setup.quantization_method == "bnb"
    needed = {
        "peft": setup.is_adapter,
        "deepspeed": setup.parallelism in ZERO and not is_megatron(setup),
        "bitsandbytes": needs_bnb or "8bit" in setup.optim or setup.optim.startswith("paged"),
        "liger-kernel": setup.liger_kernel,
    }
    return tuple(name for name, is_needed in needed.items() if is_needed)


def _because(value: str, lacks: Mapping[str, str | None], stage: str) -> str:
    """The merit of the choice, and what the engines before it lack."""
    passed = [f"{engine_name(engine)} {lack}" for engine, lack in lacks.items() if lack is not None]
    before = passed[: list(lacks).index(value)]
    merit = f"it is installed and {MERITS[value]}" if value in PACKAGES else f"it {MERITS[value]}"
    return merit + (f" ({'; '.join(before)})" if before else "")


def _beyond(gpus: int) -> str:
    if gpus <= LARGE_GPUS:
        return ""
    return (
        f"; beyond about {LARGE_GPUS} GPUs Megatron-LM or DeepSpeed's own launchers are the usual choice "
        "(--engine megatron writes files for full fine-tuning)"
    )
