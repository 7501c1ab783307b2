"""What every command shares with the world: words of flags opened, and the screen it writes to."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from planner.errors import InputError, PlannerError
from planner.files import json_object, read_json_object

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Answer = TypeVar("Answer")

# What a screen that cannot show them gets instead.
_ASCII = str.maketrans(
    {
        "×": "x", "→": "->", "–": "-", "—": "-", "…": "...", "·": "|", "≤": "<=", "≥": ">=", "✓": "+", "✗": "x",
        "█": "W", "▓": "G", "▒": "O", "░": "A", "▚": "L", "▞": "T", "≡": "C", "▪": "#", "╌": "-", "≈": "~", "±": "+-",
        "“": '"', "”": '"', "‘": "'", "’": "'", "▸": ">", "●": "*", "²": "2",
        "▁": "_", "▂": ".", "▃": ":", "▄": "-", "▅": "=", "▆": "+", "▇": "*", "│": "|", "╎": "!",
    }
)  # fmt: skip


def open_setup_values(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Flag words and file names of a setup as what they stand for: ``versions`` and ``ds_config``."""
    values = dict(raw)
    if isinstance(values.get("versions"), str):
        values["versions"] = _versions(values["versions"])
    if isinstance(values.get("ds_config"), str):
        values["ds_config"] = read_json_object(values["ds_config"], place="--ds-config")
    return values


def _versions(text: str) -> dict[str, str]:
    if text.lstrip().startswith("{"):
        return json_object(text, place="--versions")
    pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    for name, sign, version in pairs:
        if not (name and sign and version):
            raise InputError(f"--versions {text!r} is not a list such as transformers=4.48,accelerate=1.11")
    return {name.strip(): version.strip() for name, _, version in pairs}


def write_out(text: str) -> None:
    """Write a result to stdout; a reader that has gone away is not an error. Raises InputError for a full disk."""
    with _readers():
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()


@contextmanager
def _readers() -> Iterator[None]:
    """Whoever reads stdout may be gone, or never have been there; a disk without room is the caller's to know."""
    if sys.stdout is None:  # started with stdout closed
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - it lives as long as the process
    try:
        yield
    except BrokenPipeError:
        _forget_stdout()
    except OSError as problem:
        _forget_stdout()
        reason = (problem.strerror or str(problem)).lower()
        raise InputError(f"the result cannot be written to stdout: {reason}") from None


def _forget_stdout() -> None:
    """Later writes, and Python's own flush at exit, must not complain either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Plain:
    """A stream that cannot show every letter: known signs become ASCII, the rest is escaped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        plain = text.translate(_ASCII)
        return self._stream.write(plain.encode(self.encoding, "backslashreplace").decode(self.encoding))

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()


def screen(*renderables: RenderableType) -> None:
    """Print the result for people: colour only on a terminal, ASCII where the encoding asks for it."""
    with _readers():
        console = _console(sys.stdout)
        for renderable in renderables:
            console.print(renderable)
        sys.stdout.flush()


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    class Quiet(Console):
        def on_broken_pipe(self) -> None:  # Rich would end the process with 1, which here means "does not fit"
            raise BrokenPipeError

    # A stream in memory has no encoding and takes every letter.
    speaks_unicode = (stream.encoding or "utf-8").lower().startswith("utf")
    target: Any = stream if speaks_unicode else _Plain(stream)
    return Quiet(file=target, highlight=False, soft_wrap=False)


def result_console() -> Console:
    """The console of stdout, for a screen that is drawn again and again."""
    return _console(sys.stdout)


def say(text: str) -> None:
    """A line beside the result: progress or a warning, on stderr."""
    print(text, file=sys.stderr)


def guarded(answer: Callable[[], Answer]) -> Answer | PlannerError:
    """One row's answer; whatever goes wrong with it, the other rows still answer."""
    try:
        return answer()
    except PlannerError as problem:
        return problem
    except Exception as problem:
        if debugging():
            raise
        return bug_of_ours(problem)


def debugging() -> bool:
    """True where a maintainer wants tracebacks."""
    return os.environ.get("VRAMPLAN_DEBUG") == "1"


def bug_of_ours(problem: Exception) -> PlannerError:
    """An exception that nobody expected as a sentence and what to do about it."""
    what = f"{type(problem).__name__}: {problem}".splitlines()[0]
    return PlannerError(
        f"this is a bug of ours, not of yours ({what})",
        hint="run it again with VRAMPLAN_DEBUG=1 and report the command with what it then prints",
    )
