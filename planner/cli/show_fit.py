"""The screens of ``plan fit``: the map of lengths and batches, models, hardware, sweeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.cli.show_estimate import VERDICTS, headline, machine_line, verdict_line
from planner.cli.tables import plain_table
from planner.units import gib, show_count, show_gib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from planner.fit.job import Course
    from planner.fit.largest import Cell, Largest
    from planner.fit.offers import Offer
    from planner.fit.sweep import Point
    from planner.hardware.machine import Machine
    from planner.memory.result import Estimate
    from planner.model.spec import ModelSpec
    from planner.plan.plan import Request
    from planner.training import TrainingSetup

STYLES = {"fits": "green", "uncertain": "yellow", "does_not_fit": "red", None: "dim"}
MARKS = {"fits": " ", "uncertain": "?", "does_not_fit": "✗", None: "-"}
SWEEP_BAR = 20


def largest_screen(
    setup: TrainingSetup,
    spec: ModelSpec,
    machine: Machine,
    answer: Estimate,
    found: Sequence[Largest],
    cells: Sequence[Sequence[Cell]],
    run: Course | None,
) -> RenderableType:
    """The setup as stated, how far each field can go alone, and the map."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [
        headline(setup, spec, answer),
        Text(machine_line(machine), style="dim"),
        Text(),
        verdict_line(answer),
        Text(),
        _largest_table(found),
        Text(),
        _map(cells),
        Text("GiB that a GPU must hold · ? uncertain · ✗ does not fit", style="dim"),
    ]
    return Group(*parts, *([Text(), course_line(run)] if run else []))


def _largest_table(found: Sequence[Largest]) -> Table:
    table = plain_table("The largest, all else as stated")
    for heading in ("field", "largest", "GiB a GPU", "bounded by"):
        table.add_column(heading, justify="right" if heading in ("largest", "GiB a GPU") else "left")
    for each in found:
        value = f"{each.value:,}" if each.value is not None else "none fits"
        needs = f"{gib(each.required_bytes):.1f}" if each.required_bytes is not None else ""
        table.add_row(each.field, value, needs, each.bounded_by)
    return table


def _map(cells: Sequence[Sequence[Cell]]) -> Table:
    from rich.text import Text

    table = plain_table("Micro batch over tokens a sample")
    table.add_column("", justify="right", style="dim")
    for cell in cells[0]:
        table.add_column(f"{cell.seq_len:,}", justify="right")
    for row in cells:
        shown = [Text(_cell(cell), style=STYLES[cell.verdict]) for cell in row]
        table.add_row(str(row[0].micro_batch_size), *shown)
    return table


def _cell(cell: Cell) -> str:
    if cell.required_bytes is None:
        return "-"
    return f"{gib(cell.required_bytes):.1f}{MARKS[cell.verdict]}"


def course_line(run: Course) -> Text:
    """Steps and hours of the whole job in one line."""
    from rich.text import Text

    steps = f"{run.steps:,} steps ({run.steps_per_epoch:,} an epoch, {run.warmup_steps:,} of warmup)"
    if run.hours is None or run.low_hours is None or run.high_hours is None:
        return Text(f"job: {steps}; the speed of this card is not known")
    between = f"{show_hours(run.low_hours)} to {show_hours(run.high_hours)}"
    return Text(f"job: {steps}, about {show_hours(run.hours)} at full length ({between})")


def show_hours(hours: float) -> str:
    """Hours as minutes, hours or days, whichever reads best."""
    if hours < 1.5:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} d"


def models_screen(machine: Machine, found: Sequence[tuple[str, ModelSpec, Offer | None]]) -> RenderableType:
    """The sizes of the catalogue with the best way each can be trained here."""
    from rich.console import Group
    from rich.text import Text

    table = plain_table("What can be trained here, by size")
    for heading, side in (
        ("size", "right"), ("model", "left"), ("parameters", "right"), ("best", "left"), ("GiB a GPU", "right"),
        ("batch", "right"), ("tokens/s", "right"),
    ):  # fmt: skip
        table.add_column(heading, justify=side)  # type: ignore[arg-type]
    fewer = any(offer is not None and offer.count < machine.world_size for _, _, offer in found)
    if fewer:
        table.add_column("on", no_wrap=True)
    for name, spec, offer in found:
        cards = [offer.gpus if offer else ""] if fewer else []
        shown = (name, spec.id, show_count(spec.parameters), *_plan_cells(offer), *cards)
        table.add_row(*shown, style=None if offer else "dim")
    return Group(Text(machine_line(machine), style="dim"), Text(), table)


def _plan_cells(offer: Offer | None) -> tuple[str, str, str, str]:
    if offer is None:
        return ("none fits", "", "", "")
    setup = offer.setup
    batch = f"{setup.micro_batch_size}×{setup.gradient_accumulation_steps}×{offer.count}"
    speed = f"{offer.speed.tokens_per_s:,.0f}" if offer.speed else "unknown"
    return (way(setup), f"{gib(offer.price.required_bytes):.1f}", batch, speed)


def way(setup: TrainingSetup) -> str:
    """Method, sharding and offload in a few words."""
    parts = [setup.method, "" if setup.parallelism in (None, "none", "ddp") else str(setup.parallelism)]
    return " ".join([*filter(None, parts), *(["+ offload"] if setup.offload != "none" else [])])


def offers_screen(request: Request, spec: ModelSpec, found: Sequence[Offer]) -> RenderableType:
    """For each card the smallest number that does the job."""
    from rich.console import Group
    from rich.text import Text

    head = Text.assemble(
        (spec.id, "bold"), f"  {request.stage} {request.method or 'by any method'}, {request.seq_len} tokens, ",
        f"{request.global_batch} sequences a step",
    )  # fmt: skip
    if not found:
        return Group(head, Text(), Text("no card of the list does it with as many as allowed; see --max-gpus"))
    timed, priced = found[0].course is not None, found[0].price_per_hour is not None
    table = plain_table("The least of each card that does it" + (", cheapest first" if priced else ", fewest first"))
    for heading in ("gpus", "best", "GiB a GPU", "of", "batch", "tokens/s"):
        words = heading in ("gpus", "best")
        table.add_column(heading, justify="left" if words else "right", no_wrap=words, overflow="fold")
    for heading in ([] if not timed else ["time"]) + ([] if not priced else ["an hour"] + (["cost"] if timed else [])):
        table.add_column(heading, justify="right")
    for each in found:
        best, needs, batch, speed = _plan_cells(each)
        table.add_row(each.gpus, best, needs, f"{gib(each.capacity_bytes):.1f}", batch, speed, *_extra(each))
    return Group(head, Text(), table)


def _extra(offer: Offer) -> list[str]:
    cells = []
    if offer.course is not None:
        cells.append(show_hours(offer.course.hours) if offer.course.hours is not None else "unknown")
    if offer.price_per_hour is not None:
        cells.append(f"{offer.price_per_hour:.2f}")
        if offer.course is not None:
            cells.append(f"{offer.cost:.2f}" if offer.cost is not None else "unknown")
    return cells


def sweep_screen(points: Sequence[Point]) -> RenderableType:
    """Every combination with what it needs, as figures and as a bar against the capacity."""
    from rich.text import Text

    table = plain_table("Sweep")
    for name in points[0].swept:
        table.add_column(name, justify="right")
    for heading in ("GiB a GPU", "of", "tokens/s", "verdict"):
        table.add_column(heading, justify="left" if heading == "verdict" else "right")
    table.add_column("", no_wrap=True, min_width=SWEEP_BAR + 1)
    for point in points:
        if point.error is not None:
            table.add_row(*point.swept.values(), "", "", "", point.error, "", style="dim")
            continue
        figures = point.figures
        speed = f"{figures['tokens_per_s']:,.0f}" if figures["tokens_per_s"] else "unknown"
        word, style = VERDICTS[figures["verdict"]]
        bar = Text(_bar(figures["required_bytes"], figures["capacity_bytes"]), style=STYLES[figures["verdict"]])
        needs, room = f"{gib(figures['required_bytes']):.1f}", show_gib(figures["capacity_bytes"])
        table.add_row(*point.swept.values(), needs, room, speed, Text(word, style=style), bar)
    return table


def _bar(needs: int, capacity: int) -> str:
    """As long as the need; a longer one than the card ends in an arrow."""
    length = round(SWEEP_BAR * needs / capacity)
    return "█" * length if length <= SWEEP_BAR else "█" * SWEEP_BAR + "▸"
