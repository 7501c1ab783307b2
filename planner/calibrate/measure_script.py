"""Measures the constants of the GPUs that are visible, with nothing but torch and the driver's own library.

    python measure_script.py [--device cuda|cpu] [--seconds S]

Runs in the Python that has torch, which need not have this package. The last line of stdout is one JSON object in the
fields of planner.calibrate.constants; what could not be measured is absent and named with its reason under
``refused``. ``cpu`` measures what has a meaning there (arithmetic, memory) and exists for the tests.

What a process holds outside torch's allocator is the card's used memory (NVML) less what it was before and less
torch's reserved memory; another program on the card would spoil it, so that it is refused where the figure moves.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

FORMAT = 1
MIB = 1 << 20
# Tokens x in x out of the matrix products of training: an attention and an MLP projection of a 7B model, the MLP of a
# 70B, and a square one that shows the card's best.
SHAPES = ((4096, 4096, 4096), (4096, 4096, 11008), (4096, 8192, 28672), (8192, 8192, 8192))
SHAPES_CPU = ((128, 256, 256), (256, 256, 688))
COPIED_BYTES = {"cuda": 1 << 30, "cpu": 64 * MIB}
LINK_BYTES = 256 * MIB
QUIET_S = 0.3
NCCL_WAIT_S = 120
NCCL_PAYLOAD_BYTES = 64 * MIB


class Memory(ctypes.Structure):
    """nvmlMemory_t: total, free and used bytes of a card (NVML API reference, device queries)."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class Driver:
    """The used bytes of one card as the driver counts them, without making a CUDA context."""

    def __init__(self, uuid: str) -> None:
        name = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
        self.library = ctypes.CDLL(name)
        self.handle = ctypes.c_void_p()
        self._ask("nvmlInit_v2")
        self._ask("nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(self.handle))

    def used_bytes(self) -> int:
        """Used memory of the card, all processes together."""
        memory = Memory()
        self._ask("nvmlDeviceGetMemoryInfo", self.handle, ctypes.byref(memory))
        return int(memory.used)

    def _ask(self, name: str, *arguments: Any) -> None:
        code = getattr(self.library, name)(*arguments)
        if code != 0:
            raise OSError(f"{name} answered {code}")


class Measuring:
    """One session of measurements: figures found, and reasons for those that are missing."""

    def __init__(self, torch: Any, device: str, seconds: float) -> None:
        self.torch, self.device, self.seconds = torch, device, seconds
        self.refused: dict[str, str] = {}

    def attempt(self, name: str, measure: Callable[[], Any]) -> Any:
        """The figure, or None with its reason."""
        try:
            return measure()
        except Exception as problem:  # a driver, a kernel or a dtype that is not there: the rest is still measured
            self.refused[name] = f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"[
                :200
            ]
            return None

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device != "cpu":
            self.torch.cuda.synchronize()

    def seconds_of(self, work: Callable[[], Any]) -> float:
        """The fastest of repetitions that fill the time given, after two that warm up."""
        for _ in range(2):
            work()
        self.wait()
        best, end = float("inf"), time.perf_counter() + self.seconds
        while True:
            start = time.perf_counter()
            work()
            self.wait()
            now = time.perf_counter()
            best = min(best, now - start)
            if now >= end:
                return best

    # ---- rates

    def matmul_tflops(self, dtype: str, shape: tuple[int, int, int]) -> float:
        """TFLOP/s of tokens x in x out: 2 operations a product and sum."""
        torch, (tokens, inner, outer) = self.torch, shape
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(dtype, torch.float32)
        torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
        left = torch.randn(tokens, inner, dtype=kind, device=self.device)
        right = torch.randn(inner, outer, dtype=kind, device=self.device)
        out = torch.empty(tokens, outer, dtype=kind, device=self.device)
        took = self.seconds_of(lambda: torch.matmul(left, right, out=out))
        return 2.0 * tokens * inner * outer / took / 1e12

    def bandwidth(self) -> float:
        """Bytes/s of the device's memory: a copy reads and writes."""
        size = COPIED_BYTES[self.device]
        source = self.torch.empty(size, dtype=self.torch.uint8, device=self.device)
        target = self.torch.empty_like(source)
        return 2.0 * size / self.seconds_of(lambda: target.copy_(source))

    def to_device(self, *, back: bool) -> float:
        """Bytes/s between pinned host memory and the device, in one direction."""
        host = self.torch.empty(LINK_BYTES, dtype=self.torch.uint8, pin_memory=True)
        device = self.torch.empty(LINK_BYTES, dtype=self.torch.uint8, device=self.device)
        source, target = (device, host) if back else (host, device)
        return LINK_BYTES / self.seconds_of(lambda: target.copy_(source, non_blocking=True))

    def between_gpus(self) -> float:
        """Bytes/s from the first GPU to the second."""
        first = self.torch.empty(LINK_BYTES, dtype=self.torch.uint8, device="cuda:0")
        second = self.torch.empty(LINK_BYTES, dtype=self.torch.uint8, device="cuda:1")

        def copy() -> None:
            second.copy_(first, non_blocking=True)
            self.torch.cuda.synchronize(1)

        return LINK_BYTES / self.seconds_of(copy)

    def rates(self) -> dict[str, Any]:
        """Arithmetic by dtype and shape, memory, links."""
        dtypes = ("bf16", "fp16", "tf32", "fp32") if self.device != "cpu" else ("bf16", "fp32")
        shapes = SHAPES if self.device != "cpu" else SHAPES_CPU
        table: dict[str, dict[str, float]] = {}
        for dtype in dtypes:
            found = {
                "x".join(map(str, shape)): self.attempt(
                    f"matmul {dtype} {shape}", partial(self.matmul_tflops, dtype, shape)
                )
                for shape in shapes
            }
            kept = {shape: rate for shape, rate in found.items() if rate is not None}
            table |= {dtype: kept} if kept else {}
        answer: dict[str, Any] = {
            "matmul_shapes": table,
            "matmul_tflops": {dtype: max(found.values()) for dtype, found in table.items()},
            "bandwidth_bytes_per_s": self.attempt("bandwidth_bytes_per_s", self.bandwidth),
        }
        if self.device == "cpu":
            self.refused["to_device_bytes_per_s"] = self.refused["to_host_bytes_per_s"] = "no device beside the host"
            return answer
        answer["to_device_bytes_per_s"] = self.attempt("to_device_bytes_per_s", lambda: self.to_device(back=False))
        answer["to_host_bytes_per_s"] = self.attempt("to_host_bytes_per_s", lambda: self.to_device(back=True))
        return answer


class Outside:
    """Bytes of this process on the first card beyond torch's reserved memory."""

    def __init__(self, torch: Any, driver: Driver) -> None:
        self.torch, self.driver = torch, driver
        first = driver.used_bytes()
        time.sleep(QUIET_S)
        self.before = driver.used_bytes()
        if first != self.before:
            raise OSError("another program is allocating on this GPU")

    def now(self) -> int:
        """What is held this moment."""
        self.torch.cuda.synchronize()
        return self.driver.used_bytes() - self.before - int(self.torch.cuda.memory_reserved())


def held(measuring: Measuring, outside: Outside) -> dict[str, Any]:
    """Context, what each library adds to it, cuBLAS workspaces and the allocator's granularity, in this order."""
    torch = measuring.torch
    one = torch.empty(1, device="cuda")
    answer: dict[str, Any] = {"context_alone_bytes": outside.now()}
    if answer["context_alone_bytes"] <= 0:
        raise OSError("the driver's figure did not move when a context was made")
    answer["granularity_bytes"] = int(torch.cuda.memory_reserved())
    last, growth = answer["context_alone_bytes"], {}
    for name, work in LIBRARIES.items():
        used = measuring.attempt(name, partial(work, torch))
        if name == "matmul" and used is not None:
            answer["cublas_workspace_bytes"] = used
        if name not in measuring.refused:
            now = outside.now()
            growth[name], last = max(0, now - last), now
    del one
    return answer | {"library_growth_bytes": growth, "context_bytes": outside.now()}


def _matmul(torch: Any) -> int | None:
    """A product and its backward pass, which autograd runs in a thread with a handle of its own.

    The answer is what stays allocated when all tensors are gone: cuBLAS's workspaces, None where there are none.
    """
    before = torch.cuda.memory_allocated()
    weight = torch.randn(1024, 1024, device="cuda", dtype=torch.float16, requires_grad=True)
    (weight @ weight).sum().backward()
    torch.cuda.synchronize()
    del weight
    return int(torch.cuda.memory_allocated()) - before or None


def _flash(torch: Any) -> None:
    attention = import_module("torch.nn.attention")
    heads = torch.randn(1, 8, 256, 64, device="cuda", dtype=torch.float16, requires_grad=True)
    with attention.sdpa_kernel(attention.SDPBackend.FLASH_ATTENTION):
        torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True).sum().backward()


def _step(torch: Any) -> None:
    """The other kernels of a training step: norm, activation, cross-entropy, clipping, fused AdamW."""
    functional = torch.nn.functional
    weight = torch.nn.Parameter(torch.randn(512, 512, device="cuda"))
    optimizer = torch.optim.AdamW([weight], fused=True)
    with torch.autocast("cuda", dtype=torch.float16):
        hidden = functional.silu(functional.layer_norm(torch.randn(64, 512, device="cuda"), (512,)) @ weight)
    loss = functional.cross_entropy(hidden.float(), torch.zeros(64, dtype=torch.long, device="cuda"))
    loss.backward()
    torch.nn.utils.clip_grad_norm_([weight], 1.0)
    optimizer.step()


LIBRARIES: dict[str, Callable[[Any], Any]] = {"matmul": _matmul, "flash": _flash, "step": _step}


# ---- a communicator, in a process a GPU


def nccl(torch: Any, uuids: list[str], backend: str = "nccl") -> dict[str, Any]:
    """Bytes that one communicator over all GPUs holds on the worst of them."""
    ranks = len(uuids)
    with tempfile.TemporaryDirectory() as folder:
        started = [
            subprocess.Popen(  # noqa: S603 - this very file, once a GPU
                [sys.executable, __file__, "--rank", str(rank), "--ranks", str(ranks), "--uuid", uuids[rank],
                 "--meet", str(Path(folder) / "meet"), "--backend", backend],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        try:
            ended = [each.communicate(timeout=NCCL_WAIT_S) for each in started]
        finally:
            for each in started:
                if each.poll() is None:
                    each.kill()
                    each.communicate()
    if any(each.returncode for each in started):
        last = next(err for each, (_, err) in zip(started, ended, strict=True) if each.returncode).strip()
        raise OSError(last.splitlines()[-1] if last else "a rank failed without a word")
    sizes = [json.loads(out.strip().splitlines()[-1])["nccl_bytes"] for out, _ in ended]
    if None in sizes or min(sizes) <= 0:
        raise OSError("the driver's figure did not move when the GPUs first spoke to each other")
    return {"nccl_bytes": max(sizes), "nccl_ranks": ranks}


def rank_main(asked: argparse.Namespace) -> None:
    """One rank: what the card holds beside torch's memory before and after its first collectives."""
    torch, group = import_module("torch"), import_module("torch.distributed")
    on_gpu = asked.backend == "nccl"
    device = f"cuda:{asked.rank}" if on_gpu else "cpu"
    if on_gpu:
        torch.cuda.set_device(asked.rank)
    driver = Driver(asked.uuid) if on_gpu else None
    payload = torch.ones(NCCL_PAYLOAD_BYTES // 4 if on_gpu else 8, device=device)

    def now() -> int | None:
        if driver is None:
            return None
        torch.cuda.synchronize()
        return driver.used_bytes() - int(torch.cuda.memory_reserved())

    group.init_process_group(asked.backend, init_method=f"file://{asked.meet}", rank=asked.rank, world_size=asked.ranks)
    before = now()
    group.all_reduce(payload)
    after = now()
    group.barrier()
    group.destroy_process_group()
    print(json.dumps({"nccl_bytes": None if before is None or after is None else after - before}))


# ---- all of it


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """The whole answer. The card is looked at before torch is imported: importing alone makes no context."""
    on_gpu = asked.device == "cuda"
    uuids = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each] if on_gpu else []
    torch = import_module("torch")
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no GPU")
    measuring = Measuring(torch, asked.device, asked.seconds)
    answer: dict[str, Any] = {
        "format": FORMAT,
        "measured_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    if on_gpu:
        found = measuring.attempt("context_bytes", lambda: held(measuring, Outside(torch, Driver(uuids[0]))))
        answer |= found or {}
        answer["gpu"] = torch.cuda.get_device_name(0)
    else:
        measuring.refused["context_bytes"] = "a CPU has no context"
        answer["gpu"] = "cpu"
    answer |= measuring.rates()
    answer |= _several(measuring, torch, uuids)
    kept = {name: value for name, value in answer.items() if value is not None}
    return kept | {"refused": measuring.refused}


def _several(measuring: Measuring, torch: Any, uuids: list[str]) -> dict[str, Any]:
    """What needs two GPUs."""
    if len(uuids) < 2:
        measuring.refused["nccl_bytes"] = measuring.refused["p2p_bytes_per_s"] = "needs two GPUs"
        return {}
    p2p = measuring.attempt("p2p_bytes_per_s", measuring.between_gpus)
    torch.cuda.empty_cache()
    found = measuring.attempt("nccl_bytes", lambda: nccl(torch, uuids)) or {}
    return {"p2p_bytes_per_s": p2p, **found}


def main() -> None:
    """Measure, and print one line of JSON."""
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    reader.add_argument("--seconds", type=float, default=0.3, help="for each rate")
    reader.add_argument("--rank", type=int)
    reader.add_argument("--ranks", type=int)
    reader.add_argument("--uuid", default="")
    reader.add_argument("--meet")
    reader.add_argument("--backend", default="nccl")
    asked = reader.parse_args()
    if asked.rank is not None:
        rank_main(asked)
        return
    print(json.dumps(measure(asked)))


if __name__ == "__main__":
    main()
