"""EDGE: one run from its first attempt to its last: start, watch, heal, record; nothing is left running."""

from __future__ import annotations

import gc
import os
import shlex
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from planner.errors import EXIT_FITS, EXIT_INTERRUPTED, EXIT_JOB_FAILED, PlannerError
from planner.hardware.ask_nvml import MemoryMeter
from planner.memory.result import Estimate
from planner.run.checkpoints import checkpoints, last_whole, set_unfinished_aside
from planner.run.diagnose import Evidence, diagnose
from planner.run.heal import Change, GiveUp, Situation, remedy
from planner.run.job import Command, Job, command_of
from planner.run.launch import CannotStartError, Engine, start
from planner.run.overrides import Changed, changed_between, target_of
from planner.run.processes import MARKER, TERM_GRACE_S, mark_of
from planner.run.progress import NON_FINITE_IN_A_ROW, Tracker
from planner.run.read_plan import priced
from planner.run.records import Attempt, Diagnosis, Prediction, Progress, Purpose, RunState, Status
from planner.run.sample import GpuSampler, HostSampler, oom_kills
from planner.run.state import LOG, RunFolder
from planner.run.surroundings import redact, secrets_of, shown_command, shown_environment
from planner.run.tails import JsonlTail
from planner.run.worst import rehearsal
from planner.training import TrainingSetup

TICK_S = 1.0
TRAINER_LOG = "trainer_log.jsonl"
Show = Callable[[RunState], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a run is to be driven. ``consent`` are rungs that may change what is learnt, ``names`` variables to pass."""

    python: str | None = None
    retries: int = 3
    stall_minutes: float = 30.0
    skip_worst_case: bool = False
    consent: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()
    grace_s: float = TERM_GRACE_S


@dataclass(frozen=True, kw_only=True)
class _Way:
    """How the next attempt differs from the plan: another setup, the words that say so, variables."""

    setup: TrainingSetup
    estimate: Estimate
    values: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    change: str = ""
    room_bytes: int | None = None


class Supervisor:
    """Drives one run. ``show`` gets the state about once a second, in the thread that called ``run``."""

    def __init__(
        self, job: Job, folder: RunFolder, options: Options, show: Show, environment: Mapping[str, str]
    ) -> None:
        self.job, self.folder, self.options = job, folder, options
        self._show, self._environment = show, environment
        self._secrets = secrets_of(environment)
        self._stops = 0
        self._meter = MemoryMeter(job.devices(environment))
        self._gpus = GpuSampler(self._meter.read, job.capacities())
        self._host = HostSampler()
        self.state = RunState(
            id=folder.id,
            folder=str(job.folder),
            title=title_of(job),
            engine=job.engine,
            status="preparing",
            started_at=time.time(),
            supervisor=mark_of(os.getpid()),
            prediction=prediction_of(job),
            warnings=job.warnings,
        )

    def run(self) -> RunState:
        """To the end, whatever it is; the state says which, with the exit code."""
        gc.enable()  # the commands switch it off for their short lives
        with _stopped_by_signals(self._on_signal):
            self.folder.reserve()
            self._save()
            self.folder.event("started", folder=str(self.job.folder), engine=self.job.engine, pid=os.getpid())
            try:
                self._attempts()
            except PlannerError as problem:
                self._end("failed", problem.exit_code, problem.sentence, problem.hint or "")
            finally:
                self._meter.close()
                self.folder.give_up_reserve()
                if self.state.is_active:  # an exception of ours: nothing may look as if it were still running
                    self._end("failed", EXIT_JOB_FAILED, "the planner itself failed", "")
        return self.state

    def _on_signal(self, number: int) -> None:
        self._stops += 1

    @property
    def _is_stopping(self) -> bool:
        return self._stops > 0 or self.folder.is_asked_to_stop

    # ---- attempts

    def _attempts(self) -> None:
        job, left = self.job, self.options.retries
        way = _Way(setup=job.setup, estimate=job.estimate, values=dict(job.overrides))
        purpose: Purpose = "training" if self._may_skip_rehearsal() else "rehearsal"
        while True:
            diagnosis, lines = self._attempt(purpose, way)
            if diagnosis is None and purpose == "training":
                return self._end("finished", EXIT_FITS, "the training has finished", "")
            if diagnosis is None:
                purpose, way = "training", replace(way, change="")
                continue
            if diagnosis.kind == "stopped":
                return self._stopped()
            decision = remedy(diagnosis, self._situation(way, lines, left, purpose))
            if isinstance(decision, GiveUp):
                return self._failed(decision, purpose)
            left -= 1
            way = self._changed(way, decision)

    def _may_skip_rehearsal(self) -> bool:
        """Not asked for, not known for this engine, or a checkpoint shows that steps went well before."""
        if self.options.skip_worst_case or last_whole(self.job.output) is not None:
            return True
        return rehearsal(self.job.setup, self._texts(), ranks=self.job.ranks) is None

    def _situation(self, way: _Way, lines: list[str], left: int, purpose: Purpose) -> Situation:
        used = [gpu.peak_bytes - (gpu.before_bytes or 0) for gpu in self.state.gpus if gpu.peak_bytes is not None]
        return Situation(
            plan=self.job.plan,
            setup=way.setup,
            estimate=way.estimate,
            environment=way.environment,
            lines=lines,
            retries_left=left,
            has_checkpoint=last_whole(self.job.output) is not None,
            consent=self.options.consent,
            held=self.job.held,
            peak_bytes=max(used, default=None),
            room_bytes=way.room_bytes,
            free_port=_free_port(),
        )

    def _changed(self, way: _Way, decision: Change) -> _Way:
        """The next way, with what it takes; recorded before anything starts."""
        self.folder.event("healing", change=decision.sentence, environment=decision.environment)
        self._save(status="healing", healed=(*self.state.healed, decision.sentence))
        files = self._files_for(decision.setup)
        estimate, speed = priced(decision.setup, self.job.plan.model, self.job.plan.machine)
        self._save(prediction=_prediction(estimate, speed))
        return _Way(
            setup=decision.setup,
            estimate=estimate,
            values={**self.job.overrides, **files.values},
            files=files.files,
            environment={**way.environment, **decision.environment},
            change=decision.sentence,
            room_bytes=decision.capacity_bytes or way.room_bytes,
        )

    def _files_for(self, setup: TrainingSetup) -> Changed:
        """What says another setup to the engine, on top of the plan's own files."""
        job, target = self.job, target_of(self.job.engine)
        before, after = (target.files(target.settle(each, job.context), job.context) for each in (job.setup, setup))
        return changed_between(before, after, target)

    # ---- one attempt

    def _attempt(self, purpose: Purpose, way: _Way) -> tuple[Diagnosis | None, list[str]]:
        command, resumed = self._prepare(purpose, way)
        self._record(purpose, way, command, resumed)
        tracker, lock = Tracker(), threading.Lock()

        def seen(chunk: bytes) -> None:
            with lock:
                tracker.output(chunk, time.time())

        output = self.job.output if purpose == "training" else command.cwd / "output"
        tail, kills = JsonlTail(output / TRAINER_LOG), oom_kills()
        engine = start(
            command.words, cwd=command.cwd, environment=command.environment, run_id=self.state.id,
            log=self.folder / LOG, seen=seen,
        )  # fmt: skip
        watch = _Watch(self, engine, tracker, lock, tail, purpose)
        try:
            watch.until_it_ends()
        finally:
            left = engine.stop(grace_s=self.options.grace_s, hurry=lambda: self._stops > 1)
        watch.look()
        diagnosis = self._diagnose(watch, engine, kills)
        self._close(watch, engine.poll(), diagnosis, left)
        if purpose == "rehearsal":
            shutil.rmtree(command.cwd, ignore_errors=True)
        return diagnosis, engine.tail.lines()

    def _prepare(self, purpose: Purpose, way: _Way) -> tuple[Command, str | None]:
        if purpose == "rehearsal":
            return self._rehearsal_command(way), None
        moved = set_unfinished_aside(self.job.output)
        for each in moved:
            self.folder.event("checkpoint set aside", path=str(each))
        checkpoint = last_whole(self.job.output)
        values = way.values | self._placed(way) | self._resume(checkpoint)
        command = command_of(
            self.job, way.setup, values, python=self.options.python, environment=self._environment,
            extra=way.environment, names=self.options.names,
            accelerate_file=self._own_file(way, "accelerate.yaml"),
        )  # fmt: skip
        return command, None if checkpoint is None else str(checkpoint)

    def _rehearsal_command(self, way: _Way) -> Command:
        """The same files in a scratch folder of the run's, on made-up samples of full length."""
        found = rehearsal(way.setup, self._texts() | way.files, ranks=self.job.ranks)
        if found is None:
            raise CannotStartError(f"no rehearsal is known for engine {self.job.engine}: say --skip-worst-case")
        scratch = self.folder / "longest-batch"
        shutil.rmtree(scratch, ignore_errors=True)
        for name, text in found.files.items():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).write_text(text, encoding="utf-8")
        return command_of(
            self.job, way.setup, {**way.values, **found.overrides}, python=self.options.python,
            environment=self._environment, extra=way.environment, names=self.options.names, cwd=scratch,
        )  # fmt: skip

    def _texts(self) -> dict[str, str]:
        """The trainer's files as they lie in the plan's folder, its script included."""
        scripts = {each.name: each.read_text(encoding="utf-8") for each in self.job.folder.glob("*.py")}
        return {**scripts, **self.job.texts}

    def _placed(self, way: _Way) -> dict[str, Any]:
        """New files beside the trainer's own lie in the run's folder, and the engine is told where."""
        told = {}
        for name, text in way.files.items():
            path = self.folder / name
            path.write_text(text, encoding="utf-8")
            if name == "ds_config.json":
                key = "deepspeed" if self.job.engine == "llamafactory" else "arguments.deepspeed"
                told[key] = self._relative(path)
        return told

    def _own_file(self, way: _Way, name: str) -> str | None:
        return self._relative(self.folder / name) if name in way.files else None

    def _resume(self, checkpoint: Path | None) -> dict[str, Any]:
        """The others find the last checkpoint by themselves; LLaMA-Factory splits its words at spaces."""
        where = "" if checkpoint is None else self._relative(checkpoint)
        if self.job.engine != "llamafactory" or not where or " " in where:
            return {}
        return {"resume_from_checkpoint": where}

    def _relative(self, path: Path) -> str:
        """As the engine, which starts in the plan's folder, would find it: no spaces of parent folders in it."""
        return os.path.relpath(path, self.job.folder)

    def _record(self, purpose: Purpose, way: _Way, command: Command, resumed: str | None) -> None:
        attempt = Attempt(
            number=len(self.state.attempts) + 1,
            purpose=purpose,
            command=shown_command(command.words, self._secrets),
            overrides={key: _hidden(value, self._secrets) for key, value in way.values.items()},
            environment=shown_environment(command.environment),
            change=way.change,
            resumed_from=resumed,
            started_at=time.time(),
            micro_batch_size=way.setup.micro_batch_size,
            gradient_accumulation_steps=way.setup.gradient_accumulation_steps,
            effective_batch=self.job.effective_batch(way.setup),
        )
        self.folder.event("attempt", **asdict(attempt))
        status: Status = "rehearsing" if purpose == "rehearsal" else "running"
        self._save(status=status, attempts=(*self.state.attempts, attempt), progress=Progress())

    def _diagnose(self, watch: _Watch, engine: Engine, kills_before: int | None) -> Diagnosis | None:
        kills = oom_kills()
        lines = engine.tail.lines()
        with suppress(OSError):
            watch.disk_free_bytes = shutil.disk_usage(self.job.folder).free
        return diagnose(
            Evidence(
                exit_status=engine.poll(),
                lines=lines,
                stopped=watch.was_stopped,
                stalled_minutes=watch.stalled_minutes,
                sick_losses=watch.tracker.sick if watch.tracker.sick >= NON_FINITE_IN_A_ROW else 0,
                oom_kills=None if kills is None or kills_before is None else kills - kills_before,
                disk_free_bytes=watch.disk_free_bytes,
                neighbours=tuple(f"{each['name'] or 'process'} {each['pid']}" for each in self._meter.holders()),
                folder=str(self.job.folder),
                step=watch.tracker.now.step,
            )
        )

    def _close(self, watch: _Watch, status: int | None, diagnosis: Diagnosis | None, left: list[Any]) -> None:
        """The attempt's ending, in the state and among the events."""
        now = watch.tracker.now
        last = replace(
            self.state.attempts[-1],
            ended_at=time.time(),
            exit_status=status,
            first_step=watch.tracker.first_step,
            last_step=now.step,
            diagnosis=diagnosis,
        )
        checkpoint = last_whole(self.job.output)
        self.folder.event(
            "attempt ended",
            number=last.number,
            exit_status=status,
            last_step=now.step,
            diagnosis=None if diagnosis is None else asdict(diagnosis),
            still_running=[mark.pid for mark in left],
        )
        self._save(
            attempts=(*self.state.attempts[:-1], last),
            progress=now,
            processes=tuple(left),
            checkpoint=None if checkpoint is None else str(checkpoint),
        )

    # ---- endings

    def _stopped(self) -> None:
        self._end("stopped", EXIT_INTERRUPTED, f"the run was stopped{self._kept()}", self._resume_words())

    def _failed(self, decision: GiveUp, purpose: Purpose) -> None:
        where = "in the rehearsal of the longest batch: " if purpose == "rehearsal" else ""
        then = decision.next_step
        if purpose == "rehearsal":
            then += "; --skip-worst-case goes straight to the training"
        elif self.state.checkpoint:
            then += f"{self._kept()}; {self._resume_words()}"
        self._end("failed", EXIT_JOB_FAILED, where + decision.reason, then)

    def _kept(self) -> str:
        at = self.state.checkpoint
        return (
            "; no checkpoint was written yet" if at is None else f"; the last checkpoint is {self._relative(Path(at))}"
        )

    def _resume_words(self) -> str:
        return f"resume with: plan run {shlex.quote(_from_here(self.job.folder))}"

    def _end(self, status: Status, code: int, message: str, next_step: str) -> None:
        self.folder.give_up_reserve()
        self.folder.event("ended", status=status, exit_code=code, message=message)
        self._save(
            status=status, exit_code=code, message=redact(message, self._secrets), next_step=next_step,
            ended_at=time.time(), processes=(),
        )  # fmt: skip

    def _save(self, **changes: Any) -> None:
        self.state = replace(self.state, updated_at=time.time(), **changes)
        self.folder.save(self.state)
        self._show(self.state)

    def sample(self, watch: _Watch) -> None:
        """What is measured now, into the state, the samples and onto the screen."""
        processes = watch.engine.processes()
        gpus, host, now = self._gpus.now(), self._host.now(processes), watch.tracker.now
        self.folder.sample(
            attempt=len(self.state.attempts),
            step=now.step,
            loss=now.loss,
            gpus={str(gpu.index): gpu.now_bytes for gpu in gpus},
            host_bytes=host.now_bytes,
        )
        self._save(
            processes=processes, progress=now, gpus=gpus, host=host,
            checkpoint=watch.checkpoint, status="stopping" if self._is_stopping else self.state.status,
        )  # fmt: skip

    @property
    def is_stopping(self) -> bool:
        """True once somebody asked for the end."""
        return self._is_stopping


class _Watch:
    """The watch over one attempt: looks once a second, and ends it where it has to be ended."""

    def __init__(
        self, owner: Supervisor, engine: Engine, tracker: Tracker, lock: threading.Lock, tail: JsonlTail,
        purpose: Purpose,
    ) -> None:  # fmt: skip
        self.owner, self.engine, self.tracker = owner, engine, tracker
        self._lock, self._tail, self._purpose = lock, tail, purpose
        self._alive_at, self._marks = time.monotonic(), (0, 0)
        self.was_stopped = False
        self.stalled_minutes: float | None = None
        self.disk_free_bytes: int | None = None
        self.checkpoint = owner.state.checkpoint

    def until_it_ends(self) -> None:
        """Returns when the launcher has ended, or when it has to be ended."""
        while self.engine.poll() is None:
            self.look()
            self.owner.sample(self)
            if self._must_end():
                return
            self.engine.wait(TICK_S)

    def look(self) -> None:
        """Read what the trainer logged since the last look."""
        with self._lock:
            for line in self._tail.new_lines():
                entry = self.tracker.log_line(line, time.time())
                if entry is not None:
                    self.owner.folder.event("step", purpose=self._purpose, **entry)
            marks = (self.tracker.marks, 0 if self.tracker.marks else self.engine.printed_bytes)
        if marks != self._marks:
            self._marks, self._alive_at = marks, time.monotonic()
        if self._purpose == "training":
            self._look_for_checkpoints()

    def _look_for_checkpoints(self) -> None:
        """Only a new name is read: a trainer's state grows with its history."""
        there = checkpoints(self.owner.job.output)
        if there and str(there[-1]) != self.checkpoint:
            newest = last_whole(self.owner.job.output)
            self.checkpoint = None if newest is None else str(newest)

    def _must_end(self) -> bool:
        if self.owner.is_stopping:
            self.was_stopped = True
        silent = (time.monotonic() - self._alive_at) / 60
        if silent >= self.owner.options.stall_minutes:
            self.stalled_minutes = silent
        sick = self.tracker.sick >= NON_FINITE_IN_A_ROW
        return self.was_stopped or sick or self.stalled_minutes is not None


def title_of(job: Job) -> str:
    """``sft of Qwen2.5-7B by lora on 3x20GB``."""
    where = job.plan.request.gpus or f"{job.plan.machine.world_size} x {job.plan.machine.smallest.name}"
    return f"{job.setup.stage} of {job.plan.model.id} by {job.setup.method} on {where}"


def prediction_of(job: Job) -> Prediction:
    """What the plan promises for the job as its files state it."""
    return _prediction(job.estimate, job.speed)


def _prediction(estimate: Estimate, speed: Any) -> Prediction:
    return Prediction(
        allocated_bytes=estimate.allocated_bytes,
        device_bytes=estimate.device_bytes,
        required_bytes=estimate.required_bytes,
        capacity_bytes=estimate.capacity_bytes,
        host_bytes=estimate.host_bytes,
        tokens_per_s=speed.tokens_per_s if speed else None,
        low_tokens_per_s=speed.low_tokens_per_s if speed else None,
        high_tokens_per_s=speed.high_tokens_per_s if speed else None,
        phases={name: parts.total for name, parts in estimate.phases.items()},
    )


def _hidden(value: Any, secrets: tuple[str, ...]) -> Any:
    return redact(value, secrets) if isinstance(value, str) else value


def _from_here(folder: Path) -> str:
    """The shorter of the two ways to write it."""
    near = os.path.relpath(folder)
    return near if not near.startswith("..") else str(folder)


def _free_port() -> int | None:
    with suppress(OSError), socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])
    return None


@contextmanager
def _stopped_by_signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal end the run in order, not this process in the middle of it."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda got, _: handle(got)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


__all__ = ["MARKER", "Options", "Supervisor", "prediction_of", "title_of"]
