"""What a run needs, and what is here, as frozen records: a check compares the two and touches nothing.

Missing is None, never zero. Sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from planner.hardware.machine import Gpu, Machine, Vendor
from planner.memory.host import DiskNeed
from planner.memory.result import Estimate
from planner.run.records import Check
from planner.training import TrainingSetup


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that the configuration needs: ``name`` as it is installed, ``module`` where only importing it tells.

    ``least`` is the oldest version that will do; ``why`` ends the sentence "it is needed for ...". One that is not
    ``required`` is only tried where it is installed.
    """

    name: str
    why: str
    module: str | None = None
    least: str | None = None
    required: bool = True


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a run is going to ask for on this machine.

    ``ranks`` are its processes here; ``devices`` the plan's as CUDA_VISIBLE_DEVICES takes them; ``port`` the one that
    rank 0 will listen on, None where any will do, ``no_port`` what was stated and is none; ``first_machine`` its
    address where there are several; ``versions`` what the figures are for; ``limit`` save_total_limit, None for none;
    ``model_names`` pairs of role and name; ``counted_link_bytes_per_s`` what the predicted speed has between the GPUs.
    """

    engine: str
    setup: TrainingSetup
    estimate: Estimate
    planned: Machine
    disk: DiskNeed
    ranks: int
    devices: tuple[str, ...] = ()
    vendor: Vendor = "nvidia"
    on_cpu: bool = False
    loader_workers: int = 0
    preprocessing_workers: int = 0
    batch_bytes: int = 0
    limit: int | None = None
    overwrites: bool = False
    model_names: tuple[tuple[str, str], ...] = ()
    packages: tuple[Package, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    engine_package: str | None = None
    unset: tuple[str, ...] = ()
    port: int | None = None
    no_port: str = ""
    first_machine: str = ""
    counted_link_bytes_per_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A file system: where it was looked at, which one it is, its size and what is free for this user."""

    path: str
    device: int
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A limit of the kernel on one process (``ulimit``); None is unlimited."""

    soft: int | None
    hard: int | None


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """The host beside what ``Machine`` has. ``in_container``: a control group allows less memory than there is.
    ``tasks`` are this user's threads now (None where they are not limited: root), ``tasks_left`` what the control group
    still allows.
    """

    in_container: bool = False
    swap_free_bytes: int | None = None
    shared: Volume | None = None
    open_files: Limit | None = None
    locked_bytes: Limit | None = None
    processes: Limit | None = None
    tasks: int | None = None
    tasks_left: int | None = None


@dataclass(frozen=True, kw_only=True)
class TorchFacts:
    """The PyTorch of the engine's Python: the CUDA or ROCm that it was built for, None for a CPU build.

    The rest is known where it was imported: whether it reaches the GPUs, how many, its architectures (``sm_90``).
    """

    version: str
    cuda: str | None = None
    hip: str | None = None
    available: bool | None = None
    count: int | None = None
    architectures: tuple[str, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Unmet:
    """A requirement that a package states and the environment does not meet; ``installed`` None: it is not there."""

    stated: str
    installed: str | None


@dataclass(frozen=True, kw_only=True)
class PythonFacts:
    """The Python that will run the engine. ``broken`` maps a module that cannot be imported to why; ``problem`` says
    why nothing was learnt.
    """

    path: str
    version: str | None = None
    packages: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    unmet: tuple[Unmet, ...] = ()
    torch: TorchFacts | None = None
    problem: str | None = None


Reach = Literal["reachable", "gated", "refused", "absent", "unreachable"]


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model of the run. ``folder`` is where it lies, ``missing`` what it lacks there, ``problem`` what is damaged.

    For one that must be fetched: ``offline`` names the variable that forbids it, ``reach`` how ``hub`` answered.
    """

    role: str
    name: str
    folder: str | None = None
    is_local: bool = False
    missing: tuple[str, ...] = ()
    problem: str | None = None
    offline: str | None = None
    hub: str = ""
    reach: Reach | None = None
    detail: str = ""
    has_token: bool = False


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """A data set of the run: where it lies, or ``remote`` (the hub that has it), and what is wrong with it."""

    name: str
    path: str | None = None
    remote: str | None = None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class OutputFacts:
    """Where checkpoints will go. ``step`` is that of the newest whole one, ``whole`` and ``torn`` count them.

    ``models`` are finished weights beside them; ``unwritable`` says why nothing can be written; ``others`` are
    processes (number, name) that work in the plan's folder.
    """

    shown: str
    step: int | None = None
    whole: int = 0
    torn: int = 0
    models: tuple[str, ...] = ()
    unwritable: str | None = None
    others: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Everything that was found before the start.

    ``machine`` has the GPUs that the run will see, in its order, and ``others`` the rest. ``named_python`` is the one
    that was asked for where the program was found elsewhere. ``visible`` is the caller's
    CUDA_VISIBLE_DEVICES, ``cuda`` the newest CUDA that the driver serves, ``links_off`` variables that forbid NCCL a
    path, ``port_taken`` why the port is not free, ``unresolved`` why the first machine's address leads nowhere.
    """

    machine: Machine
    program: str | None
    python: PythonFacts | None
    output: OutputFacts
    others: tuple[Gpu, ...] = ()
    host: HostFacts = HostFacts()
    engine_problem: tuple[str, str] | None = None
    named_python: str | None = None
    cuda: tuple[int, int] | None = None
    visible: str | None = None
    links_off: tuple[str, ...] = ()
    link_bytes_per_s: float | None = None
    output_volume: Volume | None = None
    cache_volume: Volume | None = None
    models: tuple[ModelFacts, ...] = ()
    data: tuple[DataFacts, ...] = ()
    data_problem: str | None = None
    port_taken: str | None = None
    unresolved: str | None = None


def passed(name: str, sentence: str) -> Check:
    """All is well."""
    return Check(name=name, status="passed", sentence=sentence)


def warned(name: str, sentence: str, remedy: str = "") -> Check:
    """The run starts; something should be known."""
    return Check(name=name, status="warned", sentence=sentence, remedy=remedy)


def failed(name: str, sentence: str, remedy: str) -> Check:
    """The run would not get through; ``remedy`` is one sentence."""
    return Check(name=name, status="failed", sentence=sentence, remedy=remedy)
