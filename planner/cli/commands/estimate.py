"""``plan estimate``: the memory of exactly the given setup or setups, nothing chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import typer

from planner.cli.flags import ESTIMATE_FLAGS, every, given, with_flags
from planner.cli.io import guarded
from planner.errors import (
    EXIT_BAD_INPUT,
    EXIT_DOES_NOT_FIT,
    EXIT_FITS,
    EXIT_OUR_BUG,
    EXIT_UNCERTAIN,
    InputError,
    PlannerError,
)
from planner.files import json_object, read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from planner.hardware.machine import Machine
    from planner.memory.result import Estimate
    from planner.model.spec import ModelSpec
    from planner.training import TrainingSetup

VERDICT_CODES = {"fits": EXIT_FITS, "uncertain": EXIT_UNCERTAIN, "does_not_fit": EXIT_DOES_NOT_FIT, None: EXIT_FITS}
# Worst first: a row that cannot be read says nothing at all; then a run that will fail, then one that may.
SEVERITY = (EXIT_OUR_BUG, EXIT_BAD_INPUT, EXIT_DOES_NOT_FIT, EXIT_UNCERTAIN, EXIT_FITS)
REPLAYED_ROWS = 200  # a replay takes some hundredths of a second; longer files keep to thousands of rows a second
Key = TypeVar("Key")
Found = TypeVar("Found")
_NOT_SETUP = ("ram", "machine", "from", "json")


def _estimate(ctx: typer.Context, **values: Any) -> int:
    """The memory of exactly the setup that the flags state: nothing is chosen, nothing is written.

    With --from FILE.jsonl each line is one setup and the other flags are defaults for all of them; the exit code is
    the worst of the rows: 2 a bad row, then 1 does not fit, 5 uncertain, 0 fits.
    """
    values = every(values, ESTIMATE_FLAGS) | {"from": values.get("from_")}
    stated = given(values, [flag for flag in ESTIMATE_FLAGS if flag.name not in _NOT_SETUP])
    desk = Desk(ram=values["ram"], machine_file=values["machine"])
    if values["from"]:
        return _many(values["from"], stated, desk, as_json=bool(values["json"]))
    return _one(stated, desk, as_json=bool(values["json"]))


estimate_command = with_flags(_estimate, ESTIMATE_FLAGS)


class Desk:
    """Machines and models that rows have in common, looked up once each."""

    def __init__(self, *, ram: str | None = None, machine_file: str | None = None) -> None:
        self._ram = ram
        self._machine_file = machine_file
        self._machines: dict[str | None, Machine | PlannerError] = {}
        self._specs: dict[str, ModelSpec | PlannerError] = {}

    def machine(self, gpus: str | None) -> Machine:
        """The machine of ``gpus`` (or the file's, or this one). Raises InputError."""
        from planner.hardware.load import load_machine

        return _once(
            self._machines,
            gpus,
            lambda: load_machine(gpus=gpus, ram=self._ram, machine_file=self._machine_file),
        )

    def spec(self, model: str) -> ModelSpec:
        """The model of that name. Raises InputError."""
        from planner.model.catalogue import resolve

        return _once(self._specs, model, lambda: resolve(model))

    def answer(
        self, raw: dict[str, Any], *, place: str, replayed: bool = True
    ) -> tuple[TrainingSetup, ModelSpec, Machine, Estimate]:
        """Estimate one setup given as plain values; ``replayed`` as in planner.memory.estimate. Raises InputError."""
        from planner.api import explain
        from planner.cli.io import open_setup_values
        from planner.training import setup_from_mapping

        setup = setup_from_mapping(open_setup_values(raw), place=place)
        spec, machine = self.spec(setup.model), self.machine(setup.gpus)
        return setup, spec, machine, explain(setup, spec, machine, replayed=replayed)


def _once(known: dict[Key, Found | PlannerError], key: Key, find: Callable[[], Found]) -> Found:
    """``find()`` remembered under ``key``, its expected failures too."""
    if key not in known:
        try:
            known[key] = find()
        except PlannerError as problem:
            known[key] = problem
    found = known[key]
    if isinstance(found, PlannerError):
        raise found
    return found


def _one(stated: dict[str, Any], desk: Desk, *, as_json: bool) -> int:
    setup, spec, machine, answer = desk.answer(stated, place="plan estimate")
    if as_json:
        from planner.cli.io import write_out
        from planner.cli.jsonout import document

        write_out(document(answer.to_dict()))
    else:
        from planner.cli.io import screen
        from planner.cli.show_estimate import estimate_screen

        screen(estimate_screen(setup, spec, machine, answer))
    return VERDICT_CODES[answer.verdict]


def _many(path: str, stated: dict[str, Any], desk: Desk, *, as_json: bool) -> int:
    from planner.cli.io import say, screen, write_out

    # A JSON string may hold any other sign that ends a line; only this one ends a row.
    lines = [
        (number, line) for number, line in enumerate(read_text(path, place="--from").split("\n"), 1) if line.strip()
    ]
    replayed = len(lines) <= REPLAYED_ROWS
    if not replayed:
        say(f"note: {len(lines)} rows are many: reserved and device memory by formula, not by replay of the allocator")
    rows = list(_rows(lines, stated, desk, path, replayed=replayed))
    if not rows:
        raise InputError(f'--from {path!r} holds no setup; write one JSON object a line, such as {{"model": "7B"}}')
    if as_json:
        import json

        answers = ",\n".join(json.dumps(_row_json(row), ensure_ascii=False) for row in rows)
        write_out('{"estimates": [\n' + answers + "\n]}")
    else:
        from planner.cli.show_estimate import rows_screen

        screen(rows_screen(rows))
    return min((_row_code(row) for row in rows), key=SEVERITY.index)


def _rows(
    lines: list[tuple[int, str]], stated: dict[str, Any], desk: Desk, path: str, *, replayed: bool
) -> Iterator[tuple[int, Estimate | PlannerError]]:
    for number, line in lines:
        yield number, _row(line, stated, desk, f"{path} line {number}", replayed=replayed)


def _row(line: str, stated: dict[str, Any], desk: Desk, place: str, *, replayed: bool) -> Estimate | PlannerError:
    def answer() -> Estimate:
        row = stated | json_object(line, place=place)
        return desk.answer(row, place=place, replayed=replayed)[-1]

    return guarded(answer)


def _row_json(row: tuple[int, Estimate | PlannerError]) -> dict[str, Any]:
    answer = row[1]
    return {"error": answer.sentence} if isinstance(answer, PlannerError) else answer.to_dict()


def _row_code(row: tuple[int, Estimate | PlannerError]) -> int:
    answer = row[1]
    return answer.exit_code if isinstance(answer, PlannerError) else VERDICT_CODES[answer.verdict]
