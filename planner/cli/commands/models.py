"""``plan models``: the catalogue of models, searchable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from planner.model.catalogue import Row
    from planner.model.spec import ModelSpec

_DETAILS_UP_TO = 4


def models_command(
    query: Annotated[
        list[str] | None, typer.Argument(help="words of a name, such as qwen2.5 or 7B; all without")
    ] = None,
    machine: Annotated[
        str | None,
        typer.Option("--machine", metavar="FILE", help="only models whose 4-bit weights fit a card of a saved probe"),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """The models that --model knows by name, counted exactly: `plan models qwen2.5 7b`.

    A bare size such as 7B stands for one of them. Any other model works by the path of its config.json or folder.
    """
    from planner.model.catalogue import from_row, search

    words = " ".join(query or [])
    found = search(words)
    if not found:
        raise _nothing(words)
    sizes = [row for row in found if row.kind == "size"]
    models = [(row, from_row(row)) for row in found if row.kind == "model"]
    if machine is not None:
        models, sizes = _that_fit(models, machine), []
    if json_output:
        from planner.cli.io import write_out
        from planner.cli.jsonout import document

        entries = [_entry(row, spec) for row, spec in models]
        write_out(document({"models": entries, "sizes": [row.fields for row in sizes]}))
        return
    from planner.cli.io import screen

    screen(*_tables(sizes, models), *_details(models))


def _that_fit(models: Sequence[tuple[Row, ModelSpec]], path: str) -> list[tuple[Row, ModelSpec]]:
    """Models whose weights in 4 bit, the least that any method holds, fit the largest card of a saved probe."""
    from planner.errors import InputError
    from planner.hardware.load import load_machine
    from planner.model.stored import stored_bytes_nf4
    from planner.units import show_gib

    cards = load_machine(gpus=None, ram=None, machine_file=path).gpus
    largest_bytes = max(gpu.capacity_bytes for gpu in cards)
    found = [(row, spec) for row, spec in models if stored_bytes_nf4(spec) <= largest_bytes]
    if not found:
        raise InputError(
            f"no such model has 4-bit weights that fit {show_gib(largest_bytes)}, the largest card of {path!r}"
        )
    return found


def _tables(sizes: Sequence[Row], models: Sequence[tuple[Row, ModelSpec]]) -> list[RenderableType]:
    from rich.text import Text

    tables: list[RenderableType] = []
    if sizes:
        tables += [size_table(sizes), Text()]
    return [*tables, model_table(models)] if models else tables[:1]


def size_table(rows: Sequence[Row]) -> Table:
    """Sizes with the model that each stands for, and why."""
    from planner.cli.tables import plain_table

    table = plain_table(f"{len(rows)} size{'s' if len(rows) != 1 else ''}")
    table.add_column("--model", no_wrap=True)
    table.add_column("stands for", overflow="fold")
    table.add_column("because", overflow="fold")
    for row in rows:
        fields = row.fields
        table.add_row(fields["id"], _short(fields["model"]), fields["reason"])
    return table


def model_table(models: Sequence[tuple[Row, ModelSpec]]) -> Table:
    """The models as a table that fits 80 columns; ``+n`` counts siblings of the same shape."""
    from planner.cli.tables import plain_table
    from planner.units import show_count

    table = plain_table(f"{len(models)} model{'s' if len(models) != 1 else ''}")
    table.add_column("--model", overflow="fold")
    for heading in ("size", "layers", "hidden", "vocab", "context"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("template", overflow="fold")
    for row, spec in models:
        siblings = len(row.fields.get("siblings", ()))
        name = f"{_short(spec.id)} +{siblings}" if siblings else _short(spec.id)
        context = "-" if spec.max_positions is None else _tokens(spec.max_positions)
        shape = [str(spec.layers), str(spec.hidden), str(spec.vocab), context]
        table.add_row(name, show_count(spec.parameters), *shape, spec.template or "-")
    return table


def _tokens(count: int) -> str:
    """``128k`` for 131072; counts that are no multiple of 1024 as they are."""
    return str(count) if count % 1024 or count < 1024 else f"{count // 1024}k"


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def _details(models: Sequence[tuple[Row, ModelSpec]]) -> list[RenderableType]:
    """Siblings, exact counts and sources, once few models are left."""
    from planner.cli.tables import notes

    if len(models) > _DETAILS_UP_TO:
        return []
    blocks: list[RenderableType] = []
    for row, spec in models:
        fields = row.fields
        active = f", {spec.active_parameters:,} of them active" if spec.active_parameters else ""
        lines = [
            f"{', '.join([fields['id'], *fields.get('siblings', ())])}: {spec.parameters:,} parameters{active}.",
            f"Checked against: {spec.verified or 'nothing'}. Source: {fields['source']} ({fields['checked']}).",
            *(f"{note[0].upper()}{note[1:]}." for note in spec.notes),
        ]
        blocks += notes("*", [" ".join(lines)])
    return blocks


def _entry(row: Row, spec: ModelSpec) -> dict[str, Any]:
    fields = row.fields
    return {
        "id": fields["id"],
        "siblings": fields.get("siblings", []),
        "aliases": fields.get("aliases", []),
        "model_type": spec.model_type,
        "parameters": spec.parameters,
        "active_parameters": spec.active_parameters,
        "layers": spec.layers,
        "hidden": spec.hidden,
        "vocab": spec.vocab,
        "max_positions": spec.max_positions,
        "stored_dtype": spec.stored_dtype,
        "template": spec.template,
        "verified": spec.verified,
        "source": fields["source"],
        "checked": str(fields["checked"]),
        "notes": list(spec.notes),
    }


def _nothing(words: str) -> Exception:
    from planner.errors import InputError
    from planner.model.catalogue import closest_names

    close = closest_names(words)
    offer = f"did you mean {' or '.join(close)}?" if close else "`plan models` lists them all"
    return InputError(f"no model of the catalogue matches {words!r}; {offer}")
