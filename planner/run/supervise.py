"""EDGE: one run from its first attempt to its last: start, watch, heal, record; nothing is left running."""

from __future__ import annotations

import gc
import os
import shlex
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from planner.errors import EXIT_FITS, EXIT_INTERRUPTED, EXIT_JOB_FAILED, PlannerError
from planner.hardware.ask_nvml import MemoryMeter
from planner.run.attempt import Options, Preparation, Way
from planner.run.background import in_background
from planner.run.carry import fingerprint, first_way
from planner.run.checkpoints import last_whole, step_of
from planner.run.diagnose import Evidence, diagnose
from planner.run.heal import Change, GiveUp, Situation, remedy
from planner.run.job import Command, Job
from planner.run.launch import Engine, start
from planner.run.processes import mark_of
from planner.run.progress import NON_FINITE_IN_A_ROW, Tracker
from planner.run.promise import prediction, prediction_of, title_of
from planner.run.read_plan import priced
from planner.run.records import Attempt, Diagnosis, Progress, Purpose, RunState, Status
from planner.run.sample import GpuSampler, HostSampler, oom_kills
from planner.run.signals import stopped_by_signals
from planner.run.state import LOG, RunFolder
from planner.run.surroundings import redact, secrets_of, shown_command, shown_environment
from planner.run.tails import JsonlTail
from planner.run.watch import Watch

SAVE_S = 1.5  # what is only measured is written at every other look
TRAINER_LOG = "trainer_log.jsonl"
Show = Callable[[RunState], None]


class Supervisor:
    """Drives one run. ``show`` gets the state about once a second, in the thread that called ``run``.

    ``setup`` is what runs now, or ran last: the job's own until it is healed.
    """

    def __init__(
        self, job: Job, folder: RunFolder, options: Options, show: Show, environment: Mapping[str, str]
    ) -> None:
        self.job, self.folder, self.options = job, folder, options
        self._show, self._environment = show, environment
        self._secrets = secrets_of(environment)
        self._prepare = Preparation(job, folder, options, environment)
        self._stops = 0
        self._saved_at = 0.0
        self.setup = job.setup
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
            machine=socket.gethostname(),
            prediction=prediction_of(job),
            on_cpu=job.on_cpu,
            fingerprint=fingerprint(job),
            warnings=job.warnings,
        )

    def run(self) -> RunState:
        """To the end, whatever it is; the state says which, with the exit code."""
        gc.enable()  # the commands switch it off for their short lives
        with stopped_by_signals(self._on_signal):
            self.folder.reserve()
            self._save()
            self.folder.event("started", folder=str(self.job.folder), engine=self.job.engine, pid=os.getpid())
            try:
                self._attempts()
            except PlannerError as problem:
                self._end("failed", problem.exit_code, problem.sentence, problem.hint or "")
            except OSError as problem:
                place = problem.filename or str(self.folder.path)
                words = f"{place} cannot be written or read: {(problem.strerror or str(problem)).lower()}"
                self._end("failed", EXIT_JOB_FAILED, words, self._resume_words())
            finally:
                self._meter.close()
                self.folder.give_up_reserve()
                if self.state.is_active:  # an exception of ours: nothing may look as if it were still running
                    self._end("failed", EXIT_JOB_FAILED, "the planner itself failed", "")
        return self.state

    def _on_signal(self, number: int) -> None:
        self._stops += 1

    @property
    def is_stopping(self) -> bool:
        """True once somebody asked for the end: by a signal, or by leaving word."""
        return self._stops > 0 or self.folder.is_asked_to_stop

    # ---- attempts

    def _attempts(self) -> None:
        job, left = self.job, self.options.retries
        way = first_way(job, self.state.id)
        if way.change:
            self.setup = way.setup
            _, speed = priced(way.setup, job.plan.model, job.plan.machine)
            self._save(healed=(way.change,), prediction=prediction(way.estimate, speed))
        purpose: Purpose = "rehearsal" if self._prepare.has_rehearsal() else "training"
        while True:
            diagnosis, lines = self._attempt(purpose, way)
            if diagnosis is None and purpose == "training":
                return self._end("finished", EXIT_FITS, self._finished(), "")
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

    def _situation(self, way: Way, lines: list[str], left: int, purpose: Purpose) -> Situation:
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

    def _changed(self, way: Way, decision: Change) -> Way:
        """The next way, with what it takes; recorded before anything starts."""
        self.folder.event("healing", change=decision.sentence, environment=decision.environment)
        self._save(status="healing", healed=(*self.state.healed, decision.sentence))
        files = self._prepare.files_for(decision.setup)
        estimate, speed = priced(decision.setup, self.job.plan.model, self.job.plan.machine)
        if decision.setup != self.setup:
            self._gpus.forget_peaks()
        self.setup = decision.setup
        self._save(prediction=prediction(estimate, speed))
        return Way(
            setup=decision.setup,
            estimate=estimate,
            values={**self.job.overrides, **files.values},
            files=files.files,
            environment={**way.environment, **decision.environment},
            change=decision.sentence,
            room_bytes=decision.capacity_bytes or way.room_bytes,
        )

    # ---- one attempt

    def _attempt(self, purpose: Purpose, way: Way) -> tuple[Diagnosis | None, list[str]]:
        if purpose == "rehearsal":
            command, resumed = self._prepare.longest_batch(way), None
        else:
            command, resumed = self._prepare.training(way)
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
        watch = Watch(self, engine, tracker, lock, tail, purpose)
        try:
            with in_background():
                watch.until_it_ends()
        finally:
            left = engine.stop(grace_s=self.options.grace_s, hurry=lambda: self._stops > 1)
        watch.look()
        diagnosis = self._diagnose(watch, engine, kills)
        self._close(watch, engine.poll(), diagnosis, left)
        if purpose == "rehearsal":
            shutil.rmtree(command.cwd, ignore_errors=True)
        return diagnosis, engine.tail.lines()

    def _record(self, purpose: Purpose, way: Way, command: Command, resumed: Path | None) -> None:
        attempt = Attempt(
            number=len(self.state.attempts) + 1,
            purpose=purpose,
            command=shown_command(command.words, self._secrets),
            overrides={key: _hidden(value, self._secrets) for key, value in way.values.items()},
            environment=shown_environment(command.environment),
            change=way.change,
            healing=dict(way.environment),
            resumed_from=None if resumed is None else str(resumed),
            started_at=time.time(),
            micro_batch_size=way.setup.micro_batch_size,
            gradient_accumulation_steps=way.setup.gradient_accumulation_steps,
            effective_batch=self.job.effective_batch(way.setup),
        )
        self.folder.event("attempt", **asdict(attempt))
        status: Status = "rehearsing" if purpose == "rehearsal" else "running"
        self._save(status=status, attempts=(*self.state.attempts, attempt), progress=Progress())

    def _diagnose(self, watch: Watch, engine: Engine, kills_before: int | None) -> Diagnosis | None:
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
                nodes=self.job.plan.machine.nodes,
            )
        )

    def _close(self, watch: Watch, status: int | None, diagnosis: Diagnosis | None, left: list[Any]) -> None:
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

    def _finished(self) -> str:
        last = self.state.attempts[-1]
        if last.resumed_from and last.last_step in (None, step_of(Path(last.resumed_from))):
            return f"nothing was left to train: {Path(last.resumed_from).name} is of the last step"
        return "the training has finished"

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
        if self.state.checkpoint is None:
            return "; no checkpoint was written yet"
        return f"; the last checkpoint is {self._prepare.relative(Path(self.state.checkpoint))}"

    def _resume_words(self) -> str:
        words = ("plan", "run", _from_here(self.job.folder), *self.options.again)
        where = " on every machine" if self.job.plan.machine.nodes > 1 else ""
        return f"resume{where} with: {shlex.join(words)}"

    def _end(self, status: Status, code: int, message: str, next_step: str) -> None:
        self.folder.give_up_reserve()
        self.folder.event("ended", status=status, exit_code=code, message=message)
        self._save(
            status=status, exit_code=code, message=redact(message, self._secrets), next_step=next_step,
            ended_at=time.time(), processes=(),
        )  # fmt: skip

    def _save(self, *, patience_s: float = 0.0, **changes: Any) -> None:
        """The new state on the screen, and on disk unless the one that lies there is younger than the patience."""
        self.state = replace(self.state, updated_at=time.time(), **changes)
        if time.monotonic() - self._saved_at >= patience_s:
            self.folder.save(self.state)
            self._saved_at = time.monotonic()
        self._show(self.state)

    def sample(self, watch: Watch) -> None:
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
        status: Status = "stopping" if self.is_stopping else self.state.status
        news = (status, watch.checkpoint, processes) != (self.state.status, self.state.checkpoint, self.state.processes)
        self._save(
            processes=processes, progress=now, gpus=gpus, host=host, checkpoint=watch.checkpoint, status=status,
            patience_s=0.0 if news else SAVE_S,
        )  # fmt: skip


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
