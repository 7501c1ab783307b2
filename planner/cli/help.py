"""Help pages: the example first, then the words, then the flags by panel; no flag is ever cut off."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import Any

import typer

from planner.cli.io import write_out

_FLAG_COLUMN = 34
_WIDEST = 100


def show_help(command: Any, context: Any, example: str | None) -> None:
    """Print the help page of a typer command or group to stdout."""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    lines = [f"$ {example}", ""] if example else []
    for paragraph in (command.help or "").split("\n\n"):
        lines += [*textwrap.wrap(paragraph, width), ""]
    for heading, entries in panels(command, context).items():
        lines += [_bold(heading), *_panel(entries, width), ""]
    write_out("\n".join(lines).rstrip())


def _bold(heading: str) -> str:
    return typer.style(heading, bold=True) if sys.stdout is not None and sys.stdout.isatty() else heading


def panels(command: Any, context: Any) -> dict[str, list[tuple[str, str]]]:
    """Heading to (spelling, help) of everything that is not hidden; subcommands come last."""
    found: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        if not getattr(parameter, "hidden", False):
            found.setdefault(panel_of(parameter), []).append((spelling(parameter), parameter.help or ""))
    commands = getattr(command, "commands", {})
    if commands:
        found["Commands, each with --help"] = [(name, _summary(each)) for name, each in commands.items()]
    return found


def panel_of(parameter: Any) -> str:
    """The heading that a parameter stands under."""
    if not str(parameter.opts[0]).startswith("-"):
        return "Arguments"
    return str(getattr(parameter, "rich_help_panel", None) or "Output")


def spelling(parameter: Any) -> str:
    """``--lora-rank RANK``, ``--[no-]packing``, ``[QUERY]``."""
    name = str(parameter.opts[0])
    if not name.startswith("-"):
        return f"[{name.upper()}]"
    if parameter.secondary_opts:
        return f"--[no-]{name[2:]}"
    return name if getattr(parameter, "is_flag", False) else f"{name} {parameter.metavar or 'TEXT'}"


def _summary(command: Any) -> str:
    return str(command.help or "").split("\n\n")[0].split(":")[0].rstrip(".")


def _panel(entries: list[tuple[str, str]], width: int) -> list[str]:
    column = min(_FLAG_COLUMN, max(len(name) for name, _ in entries) + 4)
    lines = []
    for name, words in entries:
        wrapped = textwrap.wrap(words, max(20, width - column), break_on_hyphens=False) or [""]
        first = f"  {name}"
        if len(first) >= column:
            lines.append(first)
            first = ""
        lines.append(f"{first:<{column}}{wrapped[0]}".rstrip())
        lines += [" " * column + line for line in wrapped[1:]]
    return lines
