"""``plan gpus``: the catalogue of cards, searchable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from planner.hardware.machine import GpuKind


def gpus_command(
    query: Annotated[
        list[str] | None, typer.Argument(help="words of a name, such as 3080 or a100; all without")
    ] = None,
    machine: Annotated[str | None, typer.Option("--machine", metavar="FILE", help="the cards of a saved probe")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """The cards that --gpus knows by name, with what their drivers report: `plan gpus 3080`.

    GiB is what the driver reports where a public log shows it, else the size as sold (marked ~); usable is what
    plans count on: what CUDA offers a program, or the size less a reserve. TFLOP/s is dense bfloat16, or half
    precision on cards without it; NVLink counts both directions.
    """
    from planner.hardware.catalogue import search_gpus

    words = " ".join(query or [])
    found = search_gpus(words)
    if machine is not None:
        here = _cards_of(machine)
        found = [kind for kind in found if kind.id in here]
    if not found:
        raise _nothing(words, machine)
    if json_output:
        from planner.cli.io import write_out
        from planner.cli.jsonout import document

        write_out(document({"gpus": [_entry(kind) for kind in found]}))
        return
    from planner.cli.io import screen

    screen(gpu_table(found), *_details(found), *_legend(found))


def _cards_of(path: str) -> set[str]:
    from planner.files import read_text
    from planner.hardware.store import machine_from_json

    seen = machine_from_json(read_text(path, place="--machine"), place=path)
    return {gpu.kind.id for gpu in seen.gpus if gpu.kind is not None}


def _legend(kinds: Sequence[GpuKind]) -> list[RenderableType]:
    from planner.cli.tables import notes

    nominal = any(not kind.memory_reported for kind in kinds)
    return notes("~", ["size as sold; no source for what the driver reports"] if nominal else [])


def gpu_table(kinds: Sequence[GpuKind]) -> Table:
    """The cards as a table that fits 80 columns."""
    from planner.cli.tables import plain_table
    from planner.hardware.catalogue import name_for_flags

    table = plain_table(f"{len(kinds)} GPU{'s' if len(kinds) != 1 else ''}")
    table.add_column("--gpus", no_wrap=True)
    for heading in ("GiB", "usable", "capability", "TFLOP/s", "GB/s", "NVLink GB/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind in kinds:
        table.add_row(name_for_flags(kind.id), *_figures(kind))
    return table


def _figures(kind: GpuKind) -> list[str]:
    from planner.hardware.parse import planned_bytes
    from planner.units import gib

    half = kind.dense_tflops.get("bf16", kind.dense_tflops.get("fp16"))
    return [
        f"{'' if kind.memory_reported else '~'}{gib(kind.memory_bytes):.2f}",
        f"{gib(planned_bytes(kind)):.2f}",
        ".".join(str(part) for part in kind.compute_capability) if kind.compute_capability else "-",
        "-" if half is None else f"{half:g}",
        _giga(kind.bandwidth_bytes_per_s),
        # Datasheets print both directions together; the record holds one.
        _giga(None if kind.nvlink_bytes_per_s is None else 2 * kind.nvlink_bytes_per_s),
    ]


def _giga(bytes_per_s: float | None) -> str:
    return "-" if bytes_per_s is None else f"{bytes_per_s / 1e9:g}"


def _details(kinds: Sequence[GpuKind]) -> list[RenderableType]:
    """Where the figures come from, once few cards are left."""
    from planner.cli.tables import notes

    if len(kinds) > 6:
        return []
    from planner.hardware.catalogue import name_for_flags

    blocks: list[RenderableType] = []
    for kind in kinds:
        note = f" Note: {kind.note}." if kind.note else ""
        blocks += notes(name_for_flags(kind.id), [f"{kind.name}.{note} Source: {kind.source} ({kind.checked})"])
    return blocks


def _entry(kind: GpuKind) -> dict[str, Any]:
    from dataclasses import asdict

    from planner.hardware.catalogue import name_for_flags
    from planner.hardware.parse import planned_bytes

    return {"gpus_flag": name_for_flags(kind.id), "capacity_bytes": planned_bytes(kind), **asdict(kind)}


def _nothing(words: str, machine: str | None) -> Exception:
    from planner.errors import InputError
    from planner.hardware.catalogue import closest_names

    if machine is not None:
        return InputError(f"no GPU of {machine!r} that matches {words!r} is in the catalogue")
    close = closest_names(words)
    offer = f"did you mean {' or '.join(close)}?" if close else "`plan gpus` lists them all"
    return InputError(f"no GPU of the catalogue matches {words!r}; {offer}")
