"""``plan history``: predictions against what runs used, and rows in and out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.errors import EXIT_FITS, InputError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from planner.calibrate.observation import Observation
    from planner.calibrate.store import Kept, Store
    from planner.hardware.machine import Machine

_Text = str | None
SHOWN = (("allocated_bytes", "allocated"), ("reserved_bytes", "reserved"), ("device_bytes", "device"))


def history_command(
    model: Annotated[_Text, typer.Option("--model", metavar="NAME", help="only runs of that model")] = None,
    engine: Annotated[_Text, typer.Option("--engine", metavar="ENGINE", help="only runs with that engine")] = None,
    machine: Annotated[
        _Text, typer.Option("--machine", metavar="FILE", help="only runs on the machine of a saved probe")
    ] = None,
    add: Annotated[
        _Text, typer.Option("--add", metavar="FILE", help="remember measurements made by hand, one JSON object a line")
    ] = None,
    export: Annotated[
        _Text, typer.Option("--export", metavar="FILE", help="write the rows for others, without names and paths")
    ] = None,
    import_file: Annotated[
        _Text, typer.Option("--import", metavar="FILE", help="take in rows that were exported; they are only shown")
    ] = None,
    forget: Annotated[_Text, typer.Option("--forget", metavar="ID", help="remove one run")] = None,
    repredict: Annotated[
        bool, typer.Option("--repredict", help="predict runs again that another release had predicted")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> int:
    """What runs used against what was predicted for them, newest first.

    Runs on one machine with one engine narrow the bounds of later predictions there, and widen them where they
    contradict; docs/history.md says how. VRAMPLAN_HISTORY=off leaves history out of every command,
    VRAMPLAN_HOME names the folder that it lies in.

    A row of --add holds a setup in the fields of `plan estimate` and what was measured, in bytes a GPU:
    {"setup": {"model": "7B", "method": "qlora"}, "measured": {"allocated_bytes": 8589934592}}.
    """
    from planner.calibrate.store import store

    _one_of({"--add": add, "--export": export, "--import": import_file, "--forget": forget, "--repredict": repredict})
    base = store()
    if add is not None:
        return _report({"added": _add(base, add, machine)}, f"remembered in {base.path}", json_output)
    if import_file is not None:
        return _report({"imported": _import(base, import_file)}, f"taken into {base.path}", json_output)
    if repredict:
        return _report({"repredicted": _repredict(base, machine)}, "predicted again", json_output)
    if forget is not None:
        return _report({"forgotten": _forget(base, forget)}, "forgotten", json_output)
    kept = base.observations(engine=engine, machine_id=_machine_id(machine))
    kept = [each for each in kept if model is None or _is_of(each.observation, model)]
    if export is not None:
        return _report({"exported": _export(export, kept)}, f"written to {export}", json_output)
    _show(base, kept, as_json=json_output)
    return EXIT_FITS


def _one_of(actions: dict[str, str | bool | None]) -> None:
    """Raises InputError for two actions on one line."""
    asked = [name for name, value in actions.items() if value not in (None, False)]
    if len(asked) > 1:
        raise InputError(f"{' and '.join(asked)} are asked for together; give one of them")


def _report(told: dict[str, list[str]], what: str, as_json: bool) -> int:
    from planner.cli.io import write_out
    from planner.cli.jsonout import document

    (rows,) = told.values()
    count = "1 run" if len(rows) == 1 else f"{len(rows)} runs"
    write_out(document(told) if as_json else f"{count} {what}")
    return EXIT_FITS


def _is_of(one: Observation, model: str) -> bool:
    return model.lower() in str(one.setup["model"]).lower()


def _machine_id(path: str | None) -> str | None:
    from planner.calibrate.observation import mark_of
    from planner.hardware.load import load_machine

    return mark_of(load_machine(gpus=None, ram=None, machine_file=path)).id if path else None


def _add(base: Store, path: str, machine_file: str | None) -> list[str]:
    """Every row of the file, or none. Raises InputError naming the line."""
    from planner.calibrate.by_hand import observation_by_hand
    from planner.calibrate.observation import now
    from planner.files import json_object, read_text

    machine_for, moment = _machines(machine_file), now()
    found = []
    for number, line in enumerate(read_text(path, place="--add").split("\n"), start=1):
        if line.strip():
            place = f"{path} line {number}"
            found.append(observation_by_hand(json_object(line, place=place), machine_for, now=moment, place=place))
    if not found:
        raise InputError(f"--add {path!r} holds no row")
    base.record(*found)
    return [one.run_id for one in found]


def _repredict(base: Store, machine_file: str | None) -> list[str]:
    """Every run of another release that this one can price; the others are named on stderr and stay as they were."""
    from planner import __version__
    from planner.calibrate.by_hand import repredicted
    from planner.calibrate.store import LOCAL
    from planner.cli.io import say
    from planner.errors import PlannerError

    machine_for, again = _machines(machine_file), []
    for each in base.observations(origin=LOCAL):
        if each.observation.predicted.release != __version__:
            try:
                again.append(repredicted(each.observation, machine_for))
            except PlannerError as problem:
                say(f"warning: {each.observation.run_id} stays as it was: {problem.sentence}")
    base.record(*again)
    return [one.run_id for one in again]


def _machines(machine_file: str | None) -> Callable[[str | None], Machine]:
    """The machine of a row: the file's where one is named, else what the row says, else this one."""
    from planner.cli.commands.estimate import Desk

    desk = Desk(machine_file=machine_file)
    return lambda gpus: desk.machine(None if machine_file else gpus)


def _import(base: Store, path: str) -> list[str]:
    from planner.calibrate.share import new_rows, rows_of
    from planner.calibrate.store import IMPORTED
    from planner.files import read_text

    rows = rows_of(read_text(path, place="--import"), place=path)
    fresh = new_rows(rows, [each.observation.run_id for each in base.observations(newest=1_000_000)])
    base.record(*fresh, origin=IMPORTED)
    return [one.run_id for one in fresh]


def _export(path: str, kept: Sequence[Kept]) -> list[str]:
    """The rows made here, to a file that does not exist yet. Raises InputError."""
    from pathlib import Path

    from planner.calibrate.share import shared
    from planner.calibrate.store import LOCAL

    rows = [shared(each.observation, lambda name: Path(name).exists()) for each in kept if each.origin == LOCAL]
    try:
        with Path(path).expanduser().open("x", encoding="utf-8") as file:
            file.writelines(row.to_json() + "\n" for row in rows)
    except FileExistsError:
        raise InputError(f"--export {path!r} exists; name a new file") from None
    except (OSError, ValueError) as problem:
        raise InputError(f"--export {path!r} cannot be written: {str(problem).lower()}") from None
    return [row.run_id for row in rows]


def _forget(base: Store, run_id: str) -> list[str]:
    from planner.errors import unknown_choice

    if not base.forget(run_id):
        known = [each.observation.run_id for each in base.observations()]
        if known:
            raise unknown_choice(run_id, "run", known)
        raise InputError(f"run {run_id!r} is not known; nothing is remembered in {str(base.path)!r}")
    return [run_id]


def _show(base: Store, kept: Sequence[Kept], *, as_json: bool) -> None:
    from planner.cli.io import screen, write_out

    if as_json:
        from planner.cli.jsonout import document

        write_out(document({"path": str(base.path), "runs": [row_json(each) for each in kept]}))
        return
    screen(*history_view(base, kept))


def row_json(kept: Kept) -> dict[str, Any]:
    """One run as JSON: the record, its origin, and measured / predicted - 1 by meter."""
    one = kept.observation
    meters = ("allocated_bytes", "reserved_bytes", "device_bytes", "host_bytes", "tokens_per_second")
    return one.to_dict() | {"origin": kept.origin, "errors": {meter: one.error(meter) for meter in meters}}


def history_view(base: Store, kept: Sequence[Kept]) -> list[RenderableType]:
    """The table and where it lies; an empty history says how to fill it."""
    from rich.text import Text

    where = Text(f"in {base.path}", style="dim", overflow="fold")
    if not kept:
        told = "no run is remembered; `plan history --add FILE` takes a measurement made by hand"
        return [Text(told), where]
    return [history_table([each.observation for each in kept], [each.origin for each in kept]), Text(), where]


def history_table(rows: Sequence[Observation], origins: Sequence[str]) -> Table:
    """Measured against predicted, one run a row: signed errors, positive where the run used more."""
    from planner.calibrate.store import LOCAL
    from planner.cli.tables import plain_table

    table = plain_table("measured against predicted (+ is more than predicted, - not measured)")
    for heading in ("day", "run", "setup"):
        table.add_column(heading, overflow="fold")
    for _, heading in (*SHOWN, ("", "tokens/s")):
        table.add_column(heading, justify="right")
    table.add_column("ended", overflow="fold")
    for one, origin in zip(rows, origins, strict=True):
        setup = f"{one.setup['model']} {one.setup.get('method', 'lora')} {one.setup.get('seq_len', 2048)}"
        ended = one.outcome.replace("_", " ") + ("" if origin == LOCAL else f", {origin}")
        figures = [_percent(one.error(meter)) for meter, _ in (*SHOWN, ("tokens_per_second", ""))]
        table.add_row(one.started_at[5:10], one.run_id, setup, *figures, ended)
    return table


def _percent(error: float | None) -> str:
    return "-" if error is None else f"{error:+.1%}"
