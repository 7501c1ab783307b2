"""``plan run``: plan or take a plan, look whether all is there, launch, watch, heal, report."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli.flags import PLAN_FLAGS, RUN_FLAGS, comma_list, every, with_flags
from planner.errors import (
    EXIT_DOES_NOT_FIT,
    EXIT_FITS,
    EXIT_PREFLIGHT,
    EXIT_UNCERTAIN,
    InputError,
    PlannerError,
    shown,
)

if TYPE_CHECKING:
    from planner.cli.run_source import Source
    from planner.run.attempt import Options
    from planner.run.job import Job
    from planner.run.records import Check, RunState
    from planner.run.state import RunFolder
    from planner.training import TrainingSetup


def _run(
    ctx: typer.Context,
    plan: Annotated[
        str | None, typer.Argument(help="a plan's folder or its plan.json; without it the flags plan")
    ] = None,
    **values: Any,
) -> int:
    """Run a plan to its end, or say exactly why not: preflight, the longest batch first, watch, heal, report.

    PLAN is a folder that `plan` wrote; files in it that were changed by hand are read back, priced and said first.
    Without it the flags are those of `plan`, which plans and runs at once, through the engine that is installed.
    --demo trains a tiny model on samples that ship with the planner, on the CPU, in less than a minute.

    When memory runs out the planner takes the next rung that keeps what is learnt (--allow names others), and resumes
    from the last checkpoint. Ctrl-C stops everything that was started and names the checkpoint.

    Exit codes: 0 the run finished, 1 it does not fit, 2 bad input, 4 the job failed, 5 uncertain, 6 preflight failed,
    130 interrupted.
    """
    values = every(values, (*PLAN_FLAGS, *RUN_FLAGS))
    _options(values)  # what is wrong is said before anything is written
    import os
    import time

    from planner.cli.io import say
    from planner.cli.run_source import saved_machine, source_of
    from planner.run.read_plan import share_of
    from planner.run.state import only_run

    source = source_of(plan, values)
    say(f"engine:  {source.engine}")
    values["python"] = source.python or values["python"]
    share = share_of(source.folder, os.environ, machine=saved_machine(values))
    words = time.strftime("since %H:%M on %Y-%m-%d") + (f" as NODE_RANK {share}" if share else "")
    with only_run(source.folder, words, share=share):
        return _run_folder(source, values, _options(values), shared=bool(share))


run_command = with_flags(_run, (*RUN_FLAGS, *(flag for flag in PLAN_FLAGS if flag.name != "version")), hide_rare=True)


def _options(values: dict[str, Any]) -> Options:
    from planner.run.attempt import Options

    return Options(
        python=values["python"],
        retries=_number(values["retries"], "--retries", 3, whole=True),
        stall_minutes=_number(values["stall_minutes"], "--stall-minutes", 30),
        skip_worst_case=bool(values["skip_worst_case"]),
        consent=comma_list(values["allow"]),
        names=_names(values["env"]),
        again=_again(values),
    )


def _again(values: dict[str, Any]) -> tuple[str, ...]:
    """The flags without which the same run would be another one."""
    words = ["--python", values["python"]] if values["python"] else []
    for name in ("set", "env", "allow"):
        words += [word for value in values[name] or () for word in (f"--{name}", value)]
    return tuple(words)


def _names(stated: list[str] | None) -> tuple[str, ...]:
    """Names of variables to pass; a value behind one would be lost."""
    names = tuple(sorted(comma_list(stated)))
    for name in names:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            bare = name.partition("=")[0]
            hint = (
                f"its value comes from the environment: {bare}=... plan run ... --env {bare}" if "=" in name else None
            )
            raise InputError(f"--env {shown(name)} is not the name of a variable", hint=hint)
    return names


def _number(text: str | None, place: str, default: float, *, whole: bool = False) -> Any:
    if text is None:
        return default
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        number = -1
    if not 0 <= number < 1e9 or (not whole and number == 0):
        kind = "a whole one, 0 or more" if whole else "one above 0"
        raise InputError(f"{place} {shown(text)} is not a number to use: write {kind}, such as {default:g}")
    return number


def _run_folder(source: Source, values: dict[str, Any], options: Options, *, shared: bool) -> int:
    """Everything that happens while the plan's folder is this process's own."""
    import os

    from planner.cli.io import say
    from planner.cli.run_source import saved_machine
    from planner.run.job import load_job
    from planner.run.overrides import parse_settings
    from planner.run.recover import recover_all
    from planner.run.worst import can_rehearse
    from planner.search.rungs import load_ladder

    load_ladder().require_known(options.consent, place="--allow: rung")
    for sentence in recover_all(source.folder, shared=shared):
        say(f"warning: {sentence}")
    job = load_job(source.folder, parse_settings(tuple(values["set"] or ())), machine=saved_machine(values))
    for sentence in (*(() if values["demo"] else job.edits), *job.warnings):  # the demo's pace is its own
        say(f"note: {sentence}")
    rehearses = can_rehearse(job.setup) and not options.skip_worst_case
    for name in options.names:
        if name not in os.environ:
            say(f"warning: --env {name}: no such variable is set here")
    refused = _judge(job, anyway=bool(values["anyway"]), rehearses=rehearses)
    if refused is not None:
        raise refused
    checks = _preflight(job, options)
    failed = any(check.status == "failed" for check in checks)
    if values["preflight_only"] or (failed and not values["anyway"]):
        return _tell_checks(checks, values)
    _say_checks(checks)
    # A model as small as the demo's is trained faster by one thread than by several that wait for each other.
    own = {"OMP_NUM_THREADS": "1"} if values["demo"] else {}
    return _start(job, source, options, values, own | dict(os.environ))


class UncertainError(PlannerError):
    """It may fit: nothing is started unasked."""

    exit_code = EXIT_UNCERTAIN


class DoesNotFitError(PlannerError):
    """What the folder's files state does not fit."""

    exit_code = EXIT_DOES_NOT_FIT


def _judge(job: Job, *, anyway: bool, rehearses: bool) -> PlannerError | None:
    """Whether what the files state may be started; an uncertain one only where its longest batch is tried first."""
    from planner.cli.io import say
    from planner.units import show_gib

    estimate = job.estimate
    capacity = estimate.capacity_bytes or 0
    need = f"{show_gib(estimate.required_bytes)} of {show_gib(capacity)} a GPU are required"
    if estimate.verdict == "does_not_fit" and not anyway:
        return DoesNotFitError(f"this does not fit: {need}", hint="--anyway starts it all the same")
    if estimate.verdict == "uncertain" and not (anyway or rehearses):
        return UncertainError(
            f"it is uncertain that this fits: {need}", hint="leave --skip-worst-case out, or add --anyway"
        )
    if estimate.verdict == "uncertain":
        say(f"warning: it is uncertain that this fits: {need}; the longest batch is tried first")
    elif job.on_cpu:
        say("priced: for a GPU; this run is on the CPU, where its memory is the host's")
    else:
        say(f"priced: {need}")
    return None


def _preflight(job: Job, options: Options) -> list[Check]:
    from planner.run.preflight import preflight

    return preflight(job, options.python, names=options.names)


def _tell_checks(checks: list[Check], values: dict[str, Any]) -> int:
    """The list as the answer: on request, or because something failed."""
    from dataclasses import asdict

    from planner.cli.io import screen, write_out

    failed = [check for check in checks if check.status == "failed"]
    if values["json"]:
        from planner.cli.jsonout import document

        write_out(document({"checks": [asdict(check) for check in checks]}))
    else:
        from planner.cli.show_checks import checks_table

        screen(checks_table(checks))
    return EXIT_PREFLIGHT if failed else EXIT_FITS


def _say_checks(checks: list[Check]) -> None:
    from planner.cli.io import say
    from planner.cli.show_checks import counted

    say(f"preflight: {counted(checks)}")
    for check in checks:
        if check.status != "passed":
            say(f"warning: {check.name}: {check.sentence}" + (f"; {check.remedy}" if check.remedy else ""))


def _start(job: Job, source: Source, options: Options, values: dict[str, Any], environment: dict[str, str]) -> int:
    from planner.cli.io import say
    from planner.run.state import new_run, remember

    folder = new_run(job.folder)
    folder.event("engine", engine=job.engine, because=source.engine)
    warning = remember(folder)
    if warning:
        say(f"warning: {warning}")
    if values["detach"]:
        return _detached(job, folder, options, values, environment)
    from planner.cli.live import showing

    with showing(quiet=bool(values["json"])) as show:
        ended = _supervise(job, folder, options, environment, show)
    code = _finish(job, folder, *ended, values)
    if values["demo"] and code == EXIT_FITS:
        say("that was the demo; on GPUs of yours: plan run --model 7B --data my.json")
    return code


def _supervise(
    job: Job, folder: RunFolder, options: Options, environment: dict[str, str], show: Callable[[RunState], None]
) -> tuple[RunState, TrainingSetup]:
    from planner.run.supervise import Supervisor

    supervisor = Supervisor(job, folder, options, show, environment)
    return supervisor.run(), supervisor.setup


def _finish(job: Job, folder: RunFolder, state: RunState, setup: TrainingSetup, values: dict[str, Any]) -> int:
    """The report, on disk, in the history and on the screen."""
    from planner.cli.io import say, screen, write_out
    from planner.run.learn import PAGE, remember_observation, write_report

    report, problem = write_report(folder, state, setup)
    unkept = remember_observation(state, job, setup, report)
    if values["json"]:
        from planner.cli.jsonout import document

        write_out(document(report))
    else:
        from planner.cli.show_run import report_screen

        screen("", report_screen(report, None if problem else str(folder / PAGE)))
    for warning in (problem, folder.problem, unkept):
        if warning:
            say(f"note: {warning}")
    return state.exit_code or 0


def _detached(
    job: Job, folder: RunFolder, options: Options, values: dict[str, Any], environment: dict[str, str]
) -> int:
    """Supervise in a process of its own; say how it is reached."""
    from planner.cli.io import screen, write_out
    from planner.run.detach import detach

    def work() -> int:
        ended = _supervise(job, folder, options, environment, lambda _: None)
        return _finish(job, folder, *ended, {**values, "json": False})

    detach(work, folder / "supervisor.log")
    if values["json"]:
        from planner.cli.jsonout import document

        write_out(document({"run": folder.id, "folder": str(folder.path), "detached": True}))
    else:
        screen(
            f"run {folder.id} goes on without this terminal",
            f"  plan attach {folder.id}   shows it",
            f"  plan stop {folder.id}     ends it",
        )
    return EXIT_FITS
