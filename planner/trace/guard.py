"""Gives torch an inert CUDA device, so that fake "cuda" tensors can be trained without a GPU.

The autograd engine asks for a CUDA device guard and for CUDA hooks, which only C++ can answer: torch's guards in
Python (PrivateUse1) make another device of it, whose gradients the engine will not add up. ``install`` must run before
torch is imported: torch looks the hooks up once, at first use.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from planner.errors import UnsupportedError

SOURCE = Path(__file__).with_name("guard.cpp")
COMPILERS = ("c++", "g++", "clang++")


def install() -> None:
    """Compile the guard once per torch build, load it, and import torch behind it. Raises UnsupportedError."""
    if "torch" in sys.modules:
        raise RuntimeError("the CUDA guard must be installed before torch is imported")
    if not sys.platform.startswith("linux"):
        raise UnsupportedError(f"plan trace runs on Linux only, not on {sys.platform}")
    torch_dir = _torch_dir()
    library = _compiled(torch_dir)
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(torch_dir / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    _claim_cuda_kernels()
    _answer_for_cuda()


def _torch_dir() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("torch is not installed in this environment")
    return Path(next(iter(spec.submodule_search_locations)))


def _compiled(torch_dir: Path) -> Path:
    version = (torch_dir / "version.py").read_bytes()
    key = hashlib.sha256(version + SOURCE.read_bytes() + str(torch_dir).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vramplan-trace"
    library = cache / f"guard-{key}.so"
    if not library.exists():
        _compile(torch_dir, library)
    return library


def _compile(torch_dir: Path, library: Path) -> None:
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise UnsupportedError(
            f"plan trace needs a C++ compiler once, and none of {', '.join(COMPILERS)} is here",
            hint="install g++ (`apt install g++`, `conda install gxx`); `plan estimate` needs none",
        )
    lib = torch_dir / "lib"
    building = library.with_suffix(f".{os.getpid()}")
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", f"-I{torch_dir / 'include'}", str(SOURCE)]
    command += [f"-L{lib}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{lib}", "-o", str(building)]
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell, own words
        if done.returncode:
            reason = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
            raise UnsupportedError(f"{compiler} cannot compile the CUDA guard for this torch: {reason.strip()}")
        building.replace(library)
    except OSError as problem:
        raise UnsupportedError(
            f"the CUDA guard cannot be written to {library.parent}: {(problem.strerror or str(problem)).lower()}",
            hint="XDG_CACHE_HOME names another folder for it",
        ) from None
    finally:
        building.unlink(missing_ok=True)


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
