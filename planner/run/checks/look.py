"""EDGE: everything that the checks compare, gathered once: the driver, the host, the folder, the engine's Python."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import socket
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from planner.hardware.machine import Machine
from planner.hardware.observed import machine_from_answer
from planner.model.fetch import hub_cache_dir
from planner.run.checkpoints import checkpoints, last_whole, step_of
from planner.run.checks.look_inputs import look_at_data, look_at_model
from planner.run.checks.look_python import ask_python, interpreter_of
from planner.run.checks.needs import setting
from planner.run.checks.records import (
    DataFacts,
    HostFacts,
    Limit,
    Need,
    OutputFacts,
    PythonFacts,
    Surroundings,
    Volume,
)
from planner.run.job import EngineMissingError, find_bin, find_program

if TYPE_CHECKING:
    from planner.run.job import Job
    from planner.targets.launchers import Launch

Answer = Mapping[str, Any]
SHARED = Path("/dev/shm")  # noqa: S108 - where NCCL and torch put theirs
PATH_SWITCHES = ("NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE")
_WEIGHTS = re.compile(r"^(adapter_)?(pytorch_)?model[-.\w]*\.(safetensors|bin)(\.index\.json)?$")


def look(
    job: Job, need: Need, launch: Launch, answer: Answer, *, python: str | None, caller: Mapping[str, str],
    environment: Mapping[str, str],
) -> Surroundings:  # fmt: skip
    """``answer`` is the probe's raw one; ``caller`` the starter's variables, ``environment`` the engine's."""
    visible = caller.get("CUDA_VISIBLE_DEVICES") or None  # the launch takes an empty one as none, too
    machine, everything = _machines(answer, visible, need)
    used = {(gpu.index, gpu.uuid) for gpu in machine.gpus}
    program, problem = _program(launch, python, caller)
    output = _output(job)
    data, data_problem = _data(job)
    return Surroundings(
        machine=machine,
        others=tuple(gpu for gpu in everything.gpus if (gpu.index, gpu.uuid) not in used),
        cuda=_cuda(answer),
        visible=visible,
        links_off=_links_off(caller, need),
        link_bytes_per_s=_link_speed(machine),
        program=program,
        engine_problem=problem,
        named_python=python if program and python and Path(program).parent != find_bin(python) else None,
        python=_python(program, need, machine, environment) if program else None,
        output=output,
        host=look_at_host(answer),
        output_volume=volume_of(job.output),
        cache_volume=volume_of(hub_cache_dir()),
        models=tuple(look_at_model(role, name, environment, base=job.folder) for role, name in need.model_names),
        data=data,
        data_problem=data_problem,
        port_taken=None if need.port is None else port_taken(need.port),
        unresolved=unresolved(need.first_machine) if need.first_machine else None,
    )


# ---- GPUs


def _machines(answer: Answer, visible: str | None, need: Need) -> tuple[Machine, Machine]:
    """What the run will see, and everything. The launch sets CUDA_VISIBLE_DEVICES unless the caller did."""
    chosen = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": visible or ",".join(need.devices)}
    whole = machine_from_answer({**answer, "environment": {}})
    return machine_from_answer({**answer, "environment": chosen}), whole


def _cuda(answer: Answer) -> tuple[int, int] | None:
    """The driver says 12040 for 12.4."""
    told = answer["nvml"].get("cuda_version")
    return (told // 1000, told % 1000 // 10) if told else None


def _links_off(caller: Mapping[str, str], need: Need) -> tuple[str, ...]:
    """Switches that the caller set, where the plan would not have."""
    planned_without = need.planned.links.p2p is False
    return tuple(
        f"{name}={caller[name]}"
        for name in PATH_SWITCHES
        if caller.get(name, "0") not in ("", "0") and not (planned_without and name == "NCCL_P2P_DISABLE")
    )


def _link_speed(machine: Machine) -> float | None:
    from planner.speed.links import paths
    from planner.speed.rates import shipped

    return paths(machine, shipped()).between_gpus if len(machine.gpus) > 1 else None


# ---- the engine


def _program(
    launch: Launch, python: str | None, caller: Mapping[str, str]
) -> tuple[str | None, tuple[str, str] | None]:
    try:
        return find_program(launch, python, caller), None
    except EngineMissingError as problem:
        return None, (problem.sentence, problem.hint or launch.remedy)


def _python(program: str, need: Need, machine: Machine, environment: Mapping[str, str]) -> PythonFacts:
    return ask_python(
        interpreter_of(program),
        need.packages,
        also=tuple(need.versions),
        engine=need.engine_package,
        with_torch=not need.on_cpu and need.vendor == "nvidia" and bool(machine.gpus),
        environment=environment,
    )


# ---- the host


def look_at_host(answer: Answer) -> HostFacts:
    """Limits and shared memory of this process, which the run inherits."""
    host, root = answer["host"], os.geteuid() == 0
    limit, total = (host.get("cgroup") or {}).get("memory_limit_bytes"), host.get("ram_total_bytes")
    swap = 0 if limit is not None else psutil.swap_memory().free  # a group's limit holds with its own swap rules
    return HostFacts(
        in_container=limit is not None and total is not None and limit < total,
        swap_free_bytes=swap,
        shared=volume_of(SHARED) if SHARED.is_dir() else None,
        open_files=_limit(resource.RLIMIT_NOFILE),
        locked_bytes=_limit(resource.RLIMIT_MEMLOCK),
        processes=_limit(resource.RLIMIT_NPROC),
        tasks=None if root else _own_threads(),  # root is not held to it
        tasks_left=_tasks_left(),
    )


def _limit(number: int) -> Limit:
    soft, hard = (None if value == resource.RLIM_INFINITY else value for value in resource.getrlimit(number))
    return Limit(soft=soft, hard=hard)


def _own_threads() -> int:
    """Threads of this user: what RLIMIT_NPROC counts."""
    own, count = os.getuid(), 0
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.uids().real == own:
                count += process.num_threads()
    return count


def _tasks_left(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the control group of a container still allows (version 2, else 1); None for no limit."""
    for folder in (root, root / "pids"):
        with suppress(OSError, ValueError):
            most, now = ((folder / name).read_text().strip() for name in ("pids.max", "pids.current"))
            return None if most == "max" else int(most) - int(now)
    return None


def volume_of(path: Path) -> Volume | None:
    """The file system that holds a path, or will once it exists."""
    there = next((each for each in (path, *path.absolute().parents) if each.exists()), None)
    try:
        if there is not None:
            usage = shutil.disk_usage(there)
            return Volume(path=str(path), device=there.stat().st_dev, total_bytes=usage.total, free_bytes=usage.free)
    except OSError:
        pass
    return None


def port_taken(port: int) -> str | None:
    """Why nobody can listen there, None where one can; asked as torch's store does, on all addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as asking:
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            asking.bind(("", port))
            asking.listen(1)
        except OSError as problem:
            return (problem.strerror or str(problem)).lower()
    return None


def unresolved(address: str) -> str | None:
    """Why a name or an address leads to no machine, None where it does."""
    try:
        socket.getaddrinfo(address, None)
    except (OSError, UnicodeError) as problem:
        return str(getattr(problem, "strerror", None) or problem).lower()
    return None


# ---- the folder


def _data(job: Job) -> tuple[tuple[DataFacts, ...], str | None]:
    """Of LLaMA-Factory the named sets; the other engines read the plan's own file in the folder."""
    settings = job.settings
    stated = [setting(settings, key) for key in ("dataset", "eval_dataset")]
    names = tuple(name.strip() for each in stated if isinstance(each, str) for name in each.split(",") if name.strip())
    return look_at_data(job.folder, str(setting(settings, "dataset_dir") or "."), names)


def _output(job: Job) -> OutputFacts:
    output = job.output
    newest, found = last_whole(output), checkpoints(output)
    step = step_of(newest) if newest else None
    whole = sum(1 for each in found if step is not None and (step_of(each) or 0) <= step)
    return OutputFacts(
        shown=str(output.relative_to(job.folder)) if output.is_relative_to(job.folder) else str(output),
        step=step,
        whole=whole,
        torn=len(found) - whole,
        models=_models_in(output),
        unwritable=_unwritable(output),
        others=working_in(job.folder, beside=os.environ.get("NODE_RANK") if job.plan.machine.nodes > 1 else None),
    )


def _models_in(output: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(each.name for each in output.iterdir() if _WEIGHTS.match(each.name)))
    except OSError:
        return ()


def _unwritable(output: Path) -> str | None:
    """Tried, not asked: access rights do not tell of read-only mounts, quotas and full disks."""
    there = next(each for each in (output, *output.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as problem:
        if problem.errno == errno.ENOTDIR:
            return f"{there} is a file"
        return (problem.strerror or str(problem)).lower()
    return None


def working_in(folder: Path, *, beside: str | None = None) -> tuple[tuple[int, str], ...]:
    """Python processes whose working folder is the plan's: a training that was started by hand.

    ``beside``: NODE_RANK of this share of a run over several machines; processes of another share belong to it.
    """
    own = {os.getpid(), *(each.pid for each in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            words = process.cmdline() if process.pid not in own and process.cwd() == str(folder) else []
            if words and "python" in Path(words[0]).name and not _is_share_beside(process, beside):
                found.append((process.pid, process.name()))
    return tuple(found)


def _is_share_beside(process: psutil.Process, own: str | None) -> bool:
    rank = process.environ().get("NODE_RANK") if own is not None else None
    return rank is not None and rank != own
