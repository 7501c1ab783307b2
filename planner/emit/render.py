"""Values and a template -> text. Shell words go through shlex, YAML and JSON through their dumpers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from planner.rulebook.paths import templates_dir
from planner.targets.launchers import Launcher, Ref, Variable, Word

if TYPE_CHECKING:
    from jinja2 import Environment

_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(templates_dir()),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 the outputs are Markdown and shell; what enters shell is quoted by shell_words
    )


def render(template: str, **values: Any) -> str:
    """A template of ``templates/`` filled in; a missing value is an error, runs of blank lines become one."""
    text = _environment().get_template(template).render(**values)
    return re.sub(r"\n{3,}", "\n\n", text)


def comment(text: str) -> str:
    """Text fit for a one-line comment: no line breaks, no control characters."""
    return _CONTROL.sub(" ", text)


def shell_words(words: Sequence[Word]) -> str:
    """A command line: every word quoted where it has to be, variables as ``"$NAME"``."""
    return " ".join(f'"${word.name}"' if isinstance(word, Ref) else shlex.quote(word) for word in words)


def shell_variable(variable: Variable) -> str:
    """One line that sets, defaults or demands an environment variable, its reason behind it."""
    name, why = variable.name, comment(variable.reason)
    if variable.kind == "required":
        message = re.sub(r"[^\w ,.:-]", "", f"set {name}: {why}")
        return f': "${{{name}:?{message}}}"; export {name}'
    if variable.kind == "default":
        return f'export {name}="${{{name}:-{_inside_braces(variable.value)}}}"  # {why}'
    return f"export {name}={shlex.quote(variable.value)}  # {why}"


def _inside_braces(value: str) -> str:
    """A default inside ``"${X:-...}"``: device lists, ports and allocator settings, nothing that a shell expands."""
    if not re.fullmatch(r"[\w,.:/=-]*", value):
        raise ValueError(f"{value!r} cannot be a shell default")
    return value


def launcher_values(launcher: Launcher) -> dict[str, str]:
    """What the template shows of a launcher."""
    return {"name": launcher.name, "command": shell_words(launcher.words), "note": comment(launcher.note)}
