"""Exit status, log and circumstances -> what ended an attempt, and what to do next. Pure."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from planner.run.cases import CASES, LATER_CASES, SEVERAL_MACHINES, Case
from planner.run.oom import Oom, find_oom
from planner.run.records import Diagnosis
from planner.units import GIB, MIB, show_gib

# A neighbour counts from here, where torch names it: contexts of monitoring tools hold less.
NEIGHBOUR_BYTES = 256 * MIB
# Where it names nobody (a container hides processes), the driver's own share and displays are among the rest.
NAMELESS_BYTES = 1 * GIB


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known when an attempt has ended. ``lines`` are the remarkable and the last lines of its output.

    ``exit_status`` is negative for a signal. ``oom_kills`` counts the kernel's kills in the job's control group during
    the attempt, None where it cannot be read. ``sick_losses``: logged losses in a row that are no number. ``nodes``:
    machines that the run is on.
    """

    exit_status: int | None
    lines: Sequence[str]
    stopped: bool = False
    stalled_minutes: float | None = None
    sick_losses: int = 0
    oom_kills: int | None = None
    disk_free_bytes: int | None = None
    neighbours: tuple[str, ...] = ()
    folder: str = ""
    step: int | None = None
    nodes: int = 1


_GPU_IS_THERE = "give the run that GPU alone, or plan again with the memory that is free now"

# Of these only an exception's own line counts: libraries warn of what they can do without in the same words.
_RAISED = frozenset({"missing_package", "bad_data", "missing_model", "bad_config"})
_EXCEPTION = re.compile(r"^(?:\[\w*:?rank\d+\]:\s*)?[\w.]*(?:Error|Exception|NotFound)\b")
_ROOT = re.compile(r"Root Cause \(first observed failure\)")
_ROOT_EXIT = re.compile(r"exitcode\s*:\s*(-?\d+)\s*\(pid: (\d+)\)")
_WORKER_EXIT = re.compile(r"failed \(exitcode: (-?\d+)\).*?\(pid: (\d+)\)")
_LAUNCHERS = re.compile(r"CalledProcessError|ChildFailedError")
_ERROR_LINE = re.compile(
    r"^(?:\[rank\d+\]:\s*)?((?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt|Warning: FATAL)\b.*|[\w.-]+: error: .*)$"
)


def diagnose(evidence: Evidence) -> Diagnosis | None:
    """What ended the attempt; None where it ended well. The first cause counts, not what followed from it."""
    if evidence.stopped:
        return _stopped(evidence)
    if evidence.stalled_minutes is not None:
        return _hung(evidence)
    if evidence.sick_losses:
        return _not_a_number(evidence)
    if evidence.exit_status == 0:
        return None
    looks: tuple[Callable[[Evidence], Diagnosis | None], ...] = (
        _cuda_oom,
        _killed_for_memory,
        lambda each: _by_case(each, CASES),
        _killed,
        lambda each: _by_case(each, SEVERAL_MACHINES if each.nodes > 1 else ()),
        lambda each: _by_case(each, LATER_CASES),
    )
    return next((found for look in looks if (found := look(evidence)) is not None), None) or _unknown(evidence)


def _stopped(evidence: Evidence) -> Diagnosis:
    return Diagnosis(kind="stopped", cause="it was stopped, as asked", next_step="")


def _hung(evidence: Evidence) -> Diagnosis:
    minutes = evidence.stalled_minutes or 0.0
    where = "before the first step" if evidence.step is None else f"after step {evidence.step}"
    waits = find_line(evidence.lines, r"NCCL|gloo|barrier|Timeout") or ""
    said = f"; its last words about it: {waits}" if waits else ""
    return Diagnosis(
        kind="hung",
        cause=f"nothing has moved for {minutes:.3g} minutes, {where}: it was taken for hung and ended{said}",
        next_step="look at the end of its log; where a step, an evaluation or a download honestly takes that long, say "
        "so with --stall-minutes; NCCL_DEBUG=INFO shows whether ranks wait for each other",
        facts={"minutes": minutes, "step": evidence.step},
    )


def _not_a_number(evidence: Evidence) -> Diagnosis:
    return Diagnosis(
        kind="nan_loss",
        cause=f"the loss is no number any more ({evidence.sick_losses} logged steps in a row), so nothing is learnt",
        next_step="resume from a checkpoint before it with a lower learning_rate; under fp16 choose bf16 where the GPU "
        "has it; and look for samples without an answer",
        facts={"step": evidence.step},
    )


def _cuda_oom(evidence: Evidence) -> Diagnosis | None:
    oom = find_oom(evidence.lines)
    if oom is None:
        return None
    facts = asdict(oom) | {"wanted_bytes": oom.wanted_bytes, "others_bytes": oom.others_bytes}
    if _is_neighbours_fault(oom):
        who = f" ({', '.join(evidence.neighbours)})" if evidence.neighbours else ""
        cause = (
            f"another program{who} holds {show_gib(oom.others_bytes or 0)} of GPU {oom.gpu}, and the "
            f"{show_gib(oom.requested_bytes or 0)} that this run wanted were not free"
        )
        return Diagnosis(kind="neighbour", cause=cause, next_step=_GPU_IS_THERE, facts=facts)
    return Diagnosis(
        kind="cuda_oom",
        cause=f"{_place(oom)} ran out of memory{_moment(oom)}{_figures(oom)}",
        next_step="a smaller micro batch, checkpointing or shorter sequences; `plan fit` says what would do",
        facts=facts,
    )


def _is_neighbours_fault(oom: Oom) -> bool:
    """Without what others hold, the allocation would have gone through."""
    others, missing = oom.others_bytes, oom.missing_bytes
    if others is None or missing is None:
        return False
    return max(oom.named_bytes, others if others >= NAMELESS_BYTES else 0) >= max(NEIGHBOUR_BYTES, missing)


def _place(oom: Oom) -> str:
    gpu = "a GPU" if oom.gpu is None else f"GPU {oom.gpu}"
    return gpu if oom.rank is None else f"{gpu} (rank {oom.rank})"


def _moment(oom: Oom) -> str:
    words = {
        "load": "while the model was loaded",
        "forward": "in the forward pass",
        "loss": "at the loss",
        "backward": "in the backward pass",
        "optimizer": "in the optimizer's step",
        "eval": "in evaluation",
        "save": "while saving",
    }
    return f" {words[oom.phase]}" if oom.phase else ""


def _figures(oom: Oom) -> str:
    if oom.requested_bytes is None:
        return ""
    free = "" if oom.free_bytes is None else f", {show_gib(oom.free_bytes)} were free"
    held = "" if oom.own_bytes is None else f" and it held {show_gib(oom.own_bytes)}"
    return f": it asked for {show_gib(oom.requested_bytes)} more{free}{held}"


def _killed_for_memory(evidence: Evidence) -> Diagnosis | None:
    if not evidence.oom_kills:
        return None
    return Diagnosis(
        kind="host_oom",
        cause="the kernel killed a process of the run because host memory (or its control group's limit) was used up",
        next_step="lower preprocessing_num_workers and dataloader_num_workers, leave offload out, or raise the limit; "
        "`plan probe` shows what there is",
        facts={"oom_kills": evidence.oom_kills},
    )


def _killed(evidence: Evidence) -> Diagnosis | None:
    """A signal from outside: as the launcher's own end, or as the root cause that torchrun names."""
    number, pid = _signal_of(evidence)
    if number is None:
        return None
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    who = f"process {pid}" if pid else "the launcher"
    if number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGABRT):
        cause, then = f"{who} crashed ({name})", "this is a fault of a compiled library: its name is near the log's end"
        if number == signal.SIGBUS:
            then = "shared memory is too small for the data loader's workers: give the container a larger --shm-size"
        return Diagnosis(kind="crashed", cause=cause, next_step=then, facts={"signal": number, "pid": pid})
    told = "; the kernel's counter shows no kill for memory" if evidence.oom_kills == 0 else ""
    return Diagnosis(
        kind="killed",
        cause=f"{who} was ended from outside ({name}){told}",
        next_step="the kernel's log (dmesg) or the scheduler says who did it; run it again to resume",
        facts={"signal": number, "pid": pid},
    )


def _signal_of(evidence: Evidence) -> tuple[int | None, int | None]:
    """The signal and the process that it hit: torchrun's root cause, else the launcher's own status.

    The other ranks, which torchrun then ends with SIGTERM, stand before the root cause and say nothing.
    """
    named = _root_exit(evidence.lines)
    if named is not None:
        return (-named[0], named[1]) if named[0] < 0 else (None, None)
    status = evidence.exit_status
    if status is not None and status < 0:
        return -status, None
    return (status - 128, None) if status in (128 + 9, 128 + 15, 128 + 11, 128 + 6, 128 + 7) else (None, None)


def _root_exit(lines: Sequence[str]) -> tuple[int, int] | None:
    start = next((number for number, line in enumerate(lines) if _ROOT.search(line)), None)
    if start is not None:
        for line in lines[start:]:
            found = _ROOT_EXIT.search(line)
            if found:
                return int(found[1]), int(found[2])
    told = next((found for line in lines if (found := _WORKER_EXIT.search(line))), None)
    return (int(told[1]), int(told[2])) if told else None


def _by_case(evidence: Evidence, cases: Sequence[Case]) -> Diagnosis | None:
    for case in cases:
        for line in evidence.lines:
            found = re.search(case.pattern, line)
            if found is None or (case.kind in _RAISED and not _EXCEPTION.match(line)):
                continue
            what = next((group for group in found.groups() if group), "") or found[0]
            facts = {"line": line.strip()[:300], "what": what}
            if case.kind == "disk_full" and evidence.disk_free_bytes is not None:
                facts["disk_free_bytes"] = str(evidence.disk_free_bytes)
            return Diagnosis(
                kind=case.kind,
                cause=case.cause.format(what),
                next_step=case.next_step.format(_package(what) if case.kind == "missing_package" else what),
                facts=facts,
            )
    return None


def _package(name: str) -> str:
    """What pip calls a module; a requirement such as ``bitsandbytes>=0.39.0`` in quotes, for the shell."""
    known = {
        "flash_attn": "flash-attn",
        "liger_kernel": "liger-kernel",
        "yaml": "pyyaml",
        "apollo_torch": "apollo-torch",
    }
    name = known.get(name.split(".")[0], name)
    return f"'{name}'" if re.search(r"[<>=\[]", name) else name.split(".")[0]


def _unknown(evidence: Evidence) -> Diagnosis:
    own = [line for line in evidence.lines if not _LAUNCHERS.search(line)]  # they only say that a worker failed
    last = find_line(own, _ERROR_LINE.pattern) or find_line(evidence.lines, _ERROR_LINE.pattern)
    said = f": {last}" if last else " and its log names no error"
    status = "without a status" if evidence.exit_status is None else f"with status {evidence.exit_status}"
    return Diagnosis(
        kind="unknown",
        cause=f"the engine ended {status}{said}",
        next_step="the whole output is in the run's log; what failed stands above its last lines",
        facts={"exit_status": evidence.exit_status},
    )


def find_line(lines: Sequence[str], pattern: str) -> str | None:
    """The last line that matches, trimmed to a readable length."""
    for line in reversed(lines):
        if re.search(pattern, line):
            return line.strip()[:300]
    return None


# Lines with one of these are kept however many others come after them; plain words, since floods are searched too.
REMARKABLE = (
    b"Error", b"error:", b"Root Cause", b"Exception", b"Traceback", b"out of memory", b"exitcode", b"Signal",
    b"NCCL WARN", b"Watchdog", b"No space left", b"Killed", b"not found", b"couldn't connect", b"Undefined dataset",
    b'  File "',
    b"ALLOC_FAILED", b"failed", b"killed", b"timed out", b"waiting for clients",
)  # fmt: skip
