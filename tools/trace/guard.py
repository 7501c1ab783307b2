"""Gives a CPU build of torch an inert CUDA device, so that fake "cuda" tensors can be trained.

``install`` must run before torch is imported: torch looks the hooks up once, at first use.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("guard.cpp")


def install() -> None:
    """Compile the guard once per torch build, load it, and import torch behind it."""
    if "torch" in sys.modules:
        raise RuntimeError("the CUDA guard must be installed before torch is imported")
    torch_dir = _torch_dir()
    library = _compiled(torch_dir)
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(torch_dir / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    _claim_cuda_kernels()
    if importlib.util.find_spec("bitsandbytes") is not None:
        importlib.import_module("bitsandbytes")  # asked before there is a device, it looks for no CUDA library
    _answer_for_cuda()


def _torch_dir() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("torch is not installed in this environment")
    return Path(next(iter(spec.submodule_search_locations)))


def _compiled(torch_dir: Path) -> Path:
    version = (torch_dir / "version.py").read_bytes()
    key = hashlib.sha256(version + SOURCE.read_bytes() + str(torch_dir).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vramplan-trace"
    library = cache / f"guard-{key}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        building = library.with_suffix(f".{os.getpid()}")
        lib = torch_dir / "lib"
        command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", f"-I{torch_dir / 'include'}", str(SOURCE)]
        command += [f"-L{lib}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{lib}", "-o", str(building)]
        subprocess.run(command, check=True)
        building.replace(library)
    return library


FUSED_ON_CUDA = ("silu_backward", "mish_backward", "_fused_rms_norm", "_fused_rms_norm_backward")
_LIBRARIES: list[object] = []


def _claim_cuda_kernels() -> None:
    """Says that CUDA has these kernels: without them autograd decomposes, with temporaries that no card allocates."""
    import torch

    def never(*_: object, **__: object) -> None:
        raise RuntimeError("a fake tensor reached a kernel")

    library = torch.library.Library("aten", "IMPL")
    for name in FUSED_ON_CUDA:
        library.impl(name, never, "CUDA", allow_override=True)
    _LIBRARIES.append(library)


def _answer_for_cuda() -> None:
    """Answers torch.cuda's questions that a training step asks, as an 80 GB Ampere card would."""
    import torch

    class Properties:
        name, major, minor, multi_processor_count = "inert", 8, 0, 108
        total_memory = 80 * 1024**3

    torch.cuda.is_available = lambda: True
    torch.cuda.is_initialized = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.current_device = lambda: 0
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    torch.cuda.get_device_properties = lambda *_: Properties
    torch.cuda.get_device_capability = lambda *_: (8, 0)
    torch.cuda._exchange_device = torch.cuda._maybe_exchange_device = lambda *_: 0
    torch.cuda.synchronize = lambda *_: None
    torch.cuda._lazy_init = lambda: None
    # torch.tensor(1, device="cuda") is made on the host and faked there, as on any build without CUDA.
    from torch._subclasses.fake_tensor import FakeTensorMode

    FakeTensorMode.avoid_device_init = property(lambda _: True)
