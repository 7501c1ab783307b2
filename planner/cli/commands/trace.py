"""``plan trace``: the real model's training step on fake tensors, beside the estimate of the same setup."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from planner.cli.commands.estimate import SEVERITY, Desk
from planner.cli.flags import TRACE_FLAGS, every, given, with_flags
from planner.errors import EXIT_DOES_NOT_FIT, EXIT_FITS, EXIT_PREFLIGHT, InputError, PlannerError

if TYPE_CHECKING:
    from planner.trace.second_opinion import SecondOpinion

_NOT_SETUP = ("ram", "machine", "from", "json", "capacity", "expandable_segments", "timeline")
WORST_FIRST = (SEVERITY[0], EXIT_PREFLIGHT, *SEVERITY[1:])


def _trace(ctx: typer.Context, **values: Any) -> int:
    """The second opinion: runs two training steps of the real model on fake tensors, without a GPU.

    Every storage of transformers' and peft's own code is seen to be born and to die; the log is replayed through the
    caching allocator. Exit code: 0 it runs on the card, 1 it runs out of memory there, 2 bad input or nothing that
    can be traced, 6 torch, transformers, peft or accelerate is missing (pip install 'vramplan[trace]').

    With --from FILE.jsonl each line is one setup and the other flags are defaults for all of them.
    """
    values = every(values, TRACE_FLAGS) | {"from": values.get("from_")}
    stated = given(values, [flag for flag in TRACE_FLAGS if flag.name not in _NOT_SETUP])
    if values["from"] and values["timeline"]:
        raise InputError("--timeline writes one setup's operations; it does not go with --from")
    tracer = Tracer(Desk(ram=values["ram"], machine_file=values["machine"]), values)
    if values["from"]:
        return _many(values["from"], stated, tracer, as_json=bool(values["json"]))
    return _one(stated, tracer, as_json=bool(values["json"]))


trace_command = with_flags(_trace, TRACE_FLAGS)


class Tracer:
    """Answers setups; machines and models are looked up once each."""

    def __init__(self, desk: Desk, values: dict[str, Any]) -> None:
        from planner.units import parse_size_bytes

        self.desk = desk
        free = values["capacity"]
        self.capacity_bytes = parse_size_bytes(free, place="--capacity") if free else None
        self.expandable = bool(values["expandable_segments"])
        self.timeline: str | None = values["timeline"]

    def answer(self, raw: dict[str, Any], *, place: str) -> SecondOpinion:
        """Trace one setup given as plain values. Raises PlannerError."""
        from planner.model.catalogue import catalogue
        from planner.trace.run import prepare
        from planner.trace.second_opinion import second_opinion

        if str(raw.get("model", "")).lower() not in catalogue().by_name:
            prepare()  # a model that must be counted imports torch, which must not come before the guard
        setup, spec, machine, estimate = self.desk.answer(raw, place=place)
        answer = second_opinion(
            setup, spec, machine, estimate, free_bytes=self.capacity_bytes, expandable_segments=self.expandable,
            timeline=self.timeline is not None,
        )  # fmt: skip
        if self.timeline is not None:
            _write(self.timeline, answer.opinion.timeline)
        return answer


def _write(path: str, lines: tuple[str, ...]) -> None:
    from pathlib import Path

    try:
        with Path(path).open("x", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
    except FileExistsError:
        raise InputError(f"--timeline {path!r} exists; name another file") from None
    except OSError as problem:
        raise InputError(f"--timeline {path!r} cannot be written: {(problem.strerror or '').lower()}") from None


def _one(stated: dict[str, Any], tracer: Tracer, *, as_json: bool) -> int:
    from planner.cli.io import screen, write_out

    answer = tracer.answer(stated, place="plan trace")
    if as_json:
        from planner.cli.jsonout import document

        write_out(document(answer.to_dict()))
    else:
        from planner.cli.show_trace import trace_screen

        screen(trace_screen(answer))
    return _code(answer)


def _many(path: str, stated: dict[str, Any], tracer: Tracer, *, as_json: bool) -> int:
    from planner.cli.io import screen, write_out
    from planner.cli.jsonout import document
    from planner.files import read_text

    rows: list[tuple[int, SecondOpinion | PlannerError]] = []
    for number, line in enumerate(read_text(path, place="--from").split("\n"), start=1):
        if line.strip():
            rows.append((number, _row(line, stated, tracer, f"{path} line {number}")))
    if not rows:
        raise InputError(f'--from {path!r} holds no setup; write one JSON object a line, such as {{"model": "7B"}}')
    if as_json:
        write_out(document({"traces": [_row_json(row) for _, row in rows]}))
    else:
        from planner.cli.show_trace import rows_screen

        screen(rows_screen(rows))
    return min((_code(row) for _, row in rows), key=WORST_FIRST.index)


def _row(line: str, stated: dict[str, Any], tracer: Tracer, place: str) -> SecondOpinion | PlannerError:
    from planner.cli.io import guarded
    from planner.files import json_object

    return guarded(lambda: tracer.answer(stated | json_object(line, place=place), place=place))


def _row_json(row: SecondOpinion | PlannerError) -> dict[str, Any]:
    return {"error": row.sentence} if isinstance(row, PlannerError) else row.to_dict()


def _code(row: SecondOpinion | PlannerError) -> int:
    if isinstance(row, PlannerError):
        return row.exit_code
    return EXIT_DOES_NOT_FIT if row.runs is False else EXIT_FITS
