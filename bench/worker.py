"""One run in one process: ``python -m bench.worker`` reads one job from stdin, writes one JSON line, and ends.

It says ``ready`` once its libraries are imported and touches the GPU only after the job has come, so the next worker
can be started while a run is on the card. What libraries print goes to stderr.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import Any, TextIO

from bench.meter import CudaMeter, PretendMeter, driver_facts, driver_meter
from bench.outcome import ending

PACKAGES = (
    "torch", "transformers", "peft", "accelerate", "bitsandbytes", "liger-kernel", "flash-attn", "triton", "deepspeed",
)  # fmt: skip


def main() -> None:
    """Import, say so, read the job, answer; with ``probe DEVICE`` as arguments, only say what is here."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if sys.argv[1:2] == ["probe"]:
        _say(answers, probe(sys.argv[2]))
        return
    import accelerate  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    _say(answers, {"ready": True})
    line = sys.stdin.readline()
    if line.strip():
        job = json.loads(line)
        _say(answers, run(torch, job))
    # CUDA's own tear-down may fail after an error; the answer is out, and the driver frees what is left
    sys.stderr.flush()
    os._exit(0)


def _say(answers: TextIO, message: dict[str, Any]) -> None:
    print(json.dumps(message), file=answers, flush=True)


def probe(device: str) -> dict[str, Any]:
    """The card and the versions: what a row is valid for."""
    if device == "cpu":
        return {"card_name": "cpu", "total_bytes": None, "has_bf16": True, "driver": None, "versions": versions()}
    import torch

    if not torch.cuda.is_available():
        return {"error": "torch sees no CUDA device here; --device cpu runs the dry mode"}
    properties = torch.cuda.get_device_properties(0)
    driver, total = driver_facts() or (None, None)
    return {
        "card_name": properties.name,
        "total_bytes": properties.total_memory,
        "driver_total_bytes": total,
        "has_bf16": (properties.major, properties.minor) >= (8, 0),
        "driver": driver,
        "cuda": torch.version.cuda,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Installed packages that a run's memory depends on, without local suffixes such as +cu130."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            continue
    return found


def run(torch: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Build, train, measure; how it ended, with whatever was measured until then."""
    from bench.build import build
    from bench.steps import pretend_ranks, train

    setup, device, ranks = job["setup"], job["device"], job["ranks"]
    meter = _meter(torch, job)
    answer: dict[str, Any] = {"outcome": "ok", "phase": None, "message": None}
    try:
        if job.get("limit_bytes"):
            answer["limit_bytes"] = meter.limit(job["limit_bytes"])
        if ranks > 1:
            pretend_ranks(ranks, device)
        meter.open("load")
        model = build(job["config"], setup, device)
        gc.collect()
        answer |= train(model, setup, meter, steps=tuple(job["steps"]), device=device, ranks=ranks)
    except Exception as error:  # whatever libraries raise is this row's outcome, not the batch's
        answer |= ending(error, meter.current)
    return answer | {"peaks": meter.close(), "environment": environment(torch)}


def _meter(torch: Any, job: dict[str, Any]) -> Any:
    if job["device"] == "cpu":
        return PretendMeter(torch, job.get("phases") or {}, factor=job.get("factor", 1.0))
    driver = driver_meter()  # before anything touches CUDA
    return CudaMeter(torch, driver)


def environment(torch: Any) -> dict[str, Any]:
    """Settings that the memory of a step depends on."""
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG", "CUDA_MODULE_LOADING")
    kernels = ("flash", "mem_efficient", "cudnn", "math")
    able = {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled", None) for name in kernels}
    return {
        **{name: os.environ[name] for name in names if name in os.environ},
        "sdpa_kernels": [name for name, enabled in able.items() if enabled is not None and enabled()],
    }


if __name__ == "__main__":
    main()
