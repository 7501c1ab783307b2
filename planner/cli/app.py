"""Names the commands and maps every ending to its exit code; imports nothing heavy."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from planner.cli.flags import PLAN_FLAGS
from planner.cli.help import show_help
from planner.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, InputError, PlannerError, nearest, unknown_choice

EXAMPLES = {
    "plan": "plan --gpus 3x20GB --model 7B",
    "estimate": "plan estimate --gpus 1xRTX4090 --model 8B --method qlora --seq-len 4096",
    "fit": "plan fit --gpus 1xRTX4090 --model 8B --method qlora",
    "trace": "plan trace --gpus 1xRTX4090 --model 8B --method qlora --seq-len 4096",
    "probe": "plan probe --json > machine.json",
    "gpus": "plan gpus 3080",
    "models": "plan models qwen2.5",
    "rungs": "plan rungs",
    "calibrate": "plan calibrate --python ~/train/bin/python",
    "history": "plan history --model 7B",
    "run": "plan run plans/qwen2.5-7b-instruct-sft-qlora-3x20gb",
    "runs": "plan runs",
    "attach": "plan attach last",
    "stop": "plan stop last",
    "report": "plan report last",
}


class _Sparing:
    """Parses with the flags that stand on the line: typer spends most of a millisecond on each one that does not."""

    params: list[Any]
    get_params: Callable[[Any], list[Any]]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        every, words = self.params, {word.partition("=")[0] for word in args}
        if "--help" not in words:
            self.params = [each for each in every if _is_positional(each) or words & {*each.opts, *each.secondary_opts}]
        for each in self.get_params(ctx):
            _leave_words_alone(each)
        try:
            rest: list[str] = super().parse_args(ctx, args)  # type: ignore[misc]
            return rest
        finally:
            self.params = every


class _AsGiven:
    """What typer asks for a parameter's value: here the word itself."""

    def coerce(self, value: Any, **_: Any) -> Any:
        return value


def _leave_words_alone(parameter: Any) -> None:
    """Words stay words and switches switches: typer would import pydantic, a tenth of the start, to copy a string."""
    annotation = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    if annotation in (str, bool, list[str]):
        parameter.get_runtime_param = _AsGiven


def _is_positional(parameter: Any) -> bool:
    return not str(parameter.opts[0]).startswith("-")


class _Group(_Sparing, TyperGroup):
    def format_help(self, ctx: Any, formatter: Any) -> None:
        show_help(self, ctx, EXAMPLES["plan"])


class _Command(_Sparing, TyperCommand):
    def format_help(self, ctx: Any, formatter: Any) -> None:
        show_help(self, ctx, EXAMPLES.get(self.name or ""))


def build_app() -> typer.Typer:
    """The typer application: the bare form is the main job, the rest are its companions."""
    from planner.cli.commands.calibrate import calibrate_command
    from planner.cli.commands.estimate import estimate_command
    from planner.cli.commands.fit import fit_command
    from planner.cli.commands.gpus import gpus_command
    from planner.cli.commands.history import history_command
    from planner.cli.commands.models import models_command
    from planner.cli.commands.plan import plan_command
    from planner.cli.commands.probe import probe_command
    from planner.cli.commands.run import run_command
    from planner.cli.commands.rungs import rungs_command
    from planner.cli.commands.runs import attach_command, report_command, runs_command, stop_command
    from planner.cli.commands.trace import trace_command

    app = typer.Typer(cls=_Group, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback(cls=_Group, invoke_without_command=True, help=_help(plan_command))(plan_command)
    commands: dict[str, Callable[..., Any]] = {
        "estimate": estimate_command,
        "fit": fit_command,
        "trace": trace_command,
        "probe": probe_command,
        "gpus": gpus_command,
        "models": models_command,
        "rungs": rungs_command,
        "calibrate": calibrate_command,
        "history": history_command,
        "run": run_command,
        "runs": runs_command,
        "attach": attach_command,
        "stop": stop_command,
        "report": report_command,
    }
    for name, command in commands.items():
        app.command(name, cls=_Command, help=_help(command))(command)
    return app


def _help(command: Any) -> str:
    """The docstring with each paragraph on one line, for the terminal to wrap."""
    paragraphs = (command.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def main() -> None:
    """The console script: runs and exits with the contract's code."""
    gc.disable()  # a short life in which little is thrown away: collecting costs a tenth of it
    # Pydantic would look through every installed package for plugins, and none of ours is one.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; every failure becomes a sentence on stderr and an exit code."""
    try:
        return int(build_app()(list(arguments), prog_name="plan", standalone_mode=False) or 0)
    except PlannerError as problem:
        return _report(problem, arguments)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as problem:  # the one place where a bug of ours ends
        usage = _usage_error(problem, arguments)
        return _report(usage, arguments) if usage is not None else _report_bug(problem, arguments)


def _report(problem: PlannerError, arguments: Sequence[str]) -> int:
    from planner.cli.io import write_out

    if "--json" in arguments:
        from planner.cli.jsonout import error_json

        with suppress(PlannerError):  # where stdout cannot be written, stderr still says why
            write_out(error_json(problem.sentence, problem.hint))
    print(f"error: {problem.sentence}", file=sys.stderr)
    if problem.hint:
        print(f"hint: {problem.hint}", file=sys.stderr)
    return problem.exit_code


def _report_bug(problem: Exception, arguments: Sequence[str]) -> int:
    from planner.cli.io import bug_of_ours, debugging

    if debugging():
        import traceback

        traceback.print_exception(problem, file=sys.stderr)
    return _report(bug_of_ours(problem), arguments)


def _usage_error(problem: Exception, arguments: Sequence[str]) -> InputError | None:
    """Typer's own complaint about flags as one sentence; None for anything else.

    Told by what such an exception carries: its class has moved between typer's releases.
    """
    speak = getattr(problem, "format_message", None)
    if speak is None or getattr(problem, "exit_code", None) != EXIT_BAD_INPUT:
        return None
    context = getattr(problem, "ctx", None)
    named = [word for word in arguments[:1] if word in EXAMPLES and word != "plan"]
    path = context.command_path if context else " ".join(["plan", *named])
    unknown = getattr(problem, "option_name", None)
    if unknown and type(problem).__name__ == "NoSuchOption":
        return InputError(_unknown_option(str(unknown), context), hint=f"`{path} --help` lists the flags")
    asked = re.match(r"No such command '([^']+)'", str(speak()))
    if asked:
        return unknown_choice(asked[1], "command", getattr(context.command, "commands", ()) if context else ())
    return InputError(_sentence(str(speak())), hint=f"`{path} --help` lists the flags")


def _unknown_option(name: str, context: Any) -> str:
    known = [option for parameter in context.command.params for option in parameter.opts] if context else []
    if name in {flag.option for flag in PLAN_FLAGS}:
        return f"option {name} is of `plan` itself, which chooses; `{context.command_path}` does not have it"
    close = nearest(name, known, limit=1)
    return f"option {name} is not known" + (f"; did you mean {close[0]}?" if close else "")


def _sentence(message: str) -> str:
    text = " ".join(message.split()).rstrip(".")
    return text[:1].lower() + text[1:]
