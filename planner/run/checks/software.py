"""The engine, its Python and the packages that the configuration needs. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

from planner.hardware.machine import Gpu
from planner.run.checks.records import Need, Package, PythonFacts, Surroundings, TorchFacts, failed, passed, warned
from planner.run.records import Check

# The oldest driver that serves any program of a CUDA major version. Source: docs.nvidia.com/deploy/cuda-compatibility,
# minor version compatibility, table 1.
DRIVER_OF_CUDA = {11: 450, 12: 525, 13: 580}
SHOWN = ("torch", "transformers", "accelerate", "peft", "trl", "llamafactory")


def software(need: Need, here: Surroundings) -> Iterator[Check]:
    """What starts the run, and what it imports."""
    if here.engine_problem is not None or here.program is None:
        yield failed("engine", *(here.engine_problem or ("it was not found", "install it")))
    elif here.named_python is not None:
        sentence = f"{here.program} starts it, because {here.named_python} has none beside it"
        yield warned("engine", sentence, "install the engine there, or name the Python that has it")
    else:
        yield passed("engine", f"{here.program} starts it")
    python = here.python
    if python is None:
        return
    if python.problem is not None:
        yield failed(
            "python", f"{python.path} was asked for its packages: {python.problem}", "name another with --python"
        )
        return
    yield from _packages(need, python)
    yield from _versions(need, python)
    if need.vendor != "ascend" and not need.on_cpu and python.torch is not None:
        yield _torch(need, here, python.torch)


def numbers(version: str) -> tuple[int, ...]:
    """``"2.13.0+cu130"`` -> ``(2, 13, 0)``."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _packages(need: Need, python: PythonFacts) -> Iterator[Check]:
    wrong = [check for package in need.packages if (check := _package(package, python))]
    yield from wrong
    if not wrong:
        names = dict.fromkeys((*SHOWN, *(each.name for each in need.packages)))
        have = [f"{name} {python.packages[name]}" for name in names if name in python.packages]
        yield passed("packages", ", ".join(have) or "nothing beside the engine is needed")


def _package(package: Package, python: PythonFacts) -> Check | None:
    """None where it will do."""
    installed = python.packages.get(package.name)
    get = f"{shlex.quote(python.path)} -m pip install {shlex.quote(package.name + _at_least(package))}"
    if installed is None:
        if not package.required:
            return None
        return failed(package.name, f"it is not installed, and is needed for {package.why}", f"run `{get}`")
    if package.least and numbers(installed) < numbers(package.least):
        sentence = f"{installed} is installed, and {package.why} needs {package.least} or newer"
        return failed(package.name, sentence, f"run `{get}`")
    reason = python.broken.get(package.module or "")
    if reason is None:
        return None
    sentence = f"{installed} is installed and cannot be imported ({reason}); it is needed for {package.why}"
    return failed(package.name, sentence, "install the build that fits this torch and this driver, or plan without it")


def _at_least(package: Package) -> str:
    return f">={package.least}" if package.least else ""


def _versions(need: Need, python: PythonFacts) -> Iterator[Check]:
    """Memory depends on versions; the engine's own say what it was tested with."""
    other = [
        f"{name} {installed} (the figures are for {wanted})"
        for name, wanted in need.versions.items()
        if (installed := python.packages.get(name)) and _differs(name, installed, wanted, need)
    ]
    if other:
        yield warned("versions", ", ".join(other), "plan again with --versions naming these, or install those")
    unmet = [f"{each.stated} ({each.installed or 'not'} installed)" for each in python.unmet]
    if unmet:
        sentence = f"{need.engine_package} asks for {', '.join(unmet)}"
        yield warned("requirements", sentence, f"install {need.engine_package} anew in an environment of its own")


def _differs(name: str, installed: str, wanted: str, need: Need) -> bool:
    """The engine itself to the last digit, torch by its first, the rest by the first two."""
    digits = 3 if name == need.engine_package else 1 if name == "torch" else 2
    return numbers(installed)[:digits] != numbers(wanted)[:digits]


def _torch(need: Need, here: Surroundings, torch: TorchFacts) -> Check:
    """A build for these cards and this driver."""
    built = torch.hip if need.vendor == "amd" else torch.cuda
    kind = "ROCm" if need.vendor == "amd" else "CUDA"
    if built is None:
        sentence = f"torch {torch.version} is a build without {kind}, and the plan is for GPUs"
        return failed("torch", sentence, f"install torch's build for {kind}{_served(here)}")
    sentence = f"torch {torch.version} for {kind} {built}"
    if here.cuda is not None and numbers(built)[:1] > here.cuda[:1] and need.vendor == "nvidia":
        least = DRIVER_OF_CUDA.get(numbers(built)[0])
        newer = f"update the driver to {least} or newer" if least else "update the driver"
        told = f"{sentence}, and driver {here.machine.driver} serves CUDA {_dotted(here.cuda)} and older"
        return failed("torch", told, f"{newer}, or install torch's build for CUDA {here.cuda[0]}")
    if torch.problem is not None or torch.available is False:
        reason = torch.problem or "torch.cuda.is_available() is False"
        return failed(
            "torch", f"{sentence} does not reach the GPUs: {reason}", "make `torch.cuda.is_available()` true first"
        )
    if torch.count is not None and torch.count < need.ranks:
        seen = f"{sentence} sees {torch.count} of {need.ranks} GPUs"
        return failed("torch", seen, "look at CUDA_VISIBLE_DEVICES and at the container's devices")
    strange = _not_built_for(torch.architectures, here.machine.gpus[: need.ranks])
    if strange is not None:
        told = f"{sentence} has no kernels for GPU {strange.index} ({strange.name})"
        return failed("torch", told, "install a build of torch that lists its architecture")
    return passed("torch", sentence + _served(here))


def _served(here: Surroundings) -> str:
    return f" (the driver serves CUDA {_dotted(here.cuda)})" if here.cuda else ""


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _not_built_for(architectures: Sequence[str], gpus: Sequence[Gpu]) -> Gpu | None:
    """The first card that no architecture covers: a binary runs on its own major version from its minor on, and PTX
    (``compute_``) on anything newer. Source: CUDA programming guide, binary and PTX compatibility.
    """
    known = [(kind, _capability(digits)) for kind, _, digits in (each.partition("_") for each in architectures)]
    if not known:
        return None
    for gpu in gpus:
        card = gpu.compute_capability
        if card and not any(_covers(kind, built, card) for kind, built in known):
            return gpu
    return None


def _covers(kind: str, built: tuple[int, int], card: tuple[int, int]) -> bool:
    return built <= card and (kind == "compute" or built[0] == card[0])


def _capability(digits: str) -> tuple[int, int]:
    plain = re.sub(r"\D", "", digits)  # sm_90a
    return int(plain[:-1] or 0), int(plain[-1:] or 0)
