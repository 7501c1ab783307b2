"""Every failure that is expected, each with its exit code and a next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_FITS = 0
EXIT_DOES_NOT_FIT = 1
EXIT_BAD_INPUT = 2
EXIT_OUR_BUG = 3
EXIT_JOB_FAILED = 4
EXIT_UNCERTAIN = 5
EXIT_PREFLIGHT = 6
EXIT_INTERRUPTED = 130

LONGEST_SHOWN = 60  # letters of a wrong value that its sentence repeats


class PlannerError(Exception):
    """An expected failure: one sentence for the reader, an optional next step, an exit code."""

    exit_code = EXIT_OUR_BUG

    def __init__(self, sentence: str, *, hint: str | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.hint = hint


class InputError(PlannerError):
    """The request, a file or a flag is wrong."""

    exit_code = EXIT_BAD_INPUT


class UnsupportedError(InputError):
    """The request is well-formed and names something that the tools, or this planner, cannot do."""


class NothingFitsError(PlannerError):
    """No configuration allowed by the request fits the machine."""

    exit_code = EXIT_DOES_NOT_FIT


def shown(value: object) -> str:
    """A wrong value as written, cut where it would bury its sentence."""
    if type(value) is int and abs(value) >= 10**LONGEST_SHOWN:
        return f"of more than {LONGEST_SHOWN} digits"
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


def nearest(value: str, choices: Iterable[str], *, limit: int = 3) -> list[str]:
    """The most similar valid choices, best first; case is ignored."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(value.lower(), by_lower, n=limit, cutoff=0.5)
    return [by_lower[match] for match in close]


def unknown_choice(value: str, place: str, choices: Iterable[str]) -> InputError:
    """An InputError that names the value, the place and the nearest valid choice."""
    known = list(choices)
    close = nearest(value, known)
    offer = f"did you mean {' or '.join(close)}?" if close else f"valid choices: {', '.join(known[:12])}"
    return InputError(f"{place} {value!r} is not known; {offer}")
