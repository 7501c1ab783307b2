"""SecondOpinion -> screen: traced beside estimated, the largest tensors, and whether it runs on the card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.cli.show_estimate import headline, machine_line
from planner.cli.tables import notes, plain_table
from planner.errors import PlannerError
from planner.memory.result import PARTS
from planner.trace.second_opinion import COMPARED
from planner.units import gib, show_gib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from planner.trace.second_opinion import SecondOpinion


def trace_screen(answer: SecondOpinion) -> RenderableType:
    """The whole screen of ``plan trace``."""
    from rich.console import Group
    from rich.text import Text

    return Group(
        headline(answer.setup, answer.spec, answer.estimate),
        Text(machine_line(answer.machine), style="dim"),
        Text(),
        verdict_line(answer),
        Text(),
        _phases(answer),
        Text(),
        _parts(answer),
        Text(),
        _tensors(answer),
        *notes("assumed", answer.assumptions()),
        *notes("warning", answer.estimate.warnings, style="yellow"),
    )


def verdict_line(answer: SecondOpinion) -> Text:
    """Whether the allocator gets through, with what it reserved."""
    from rich.text import Text

    traced, reserved = answer.opinion.traced, answer.opinion.reserved
    sizes = f"allocated {show_gib(traced.allocated_bytes, digits=2)}"
    sizes += f", reserved {show_gib(reserved.reserved_peak_bytes, digits=2)} with memory to spare"
    if answer.opinion.limited is None or answer.free_bytes is None:
        return Text.assemble((sizes, "bold"), "; no capacity is known to run it against")
    card = f"on a card with {show_gib(answer.free_bytes, digits=2)} free"
    lost = answer.opinion.limited.out_of_memory
    if lost is None:
        return Text.assemble(("runs", "bold green"), f" {card}: {sizes}")
    asked = f"asking for {show_gib(lost.requested_bytes, digits=2)} beside {show_gib(lost.live_bytes, digits=2)}"
    return Text.assemble(("runs out of memory", "bold red"), f" {card}, {asked} in use; {sizes}")


def _phases(answer: SecondOpinion) -> Table:
    table = plain_table("Allocated GiB by phase")
    for heading in ("phase", "traced", "estimated", "difference"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    traced, differences = answer.opinion.traced, answer.phase_differences()
    for phase in COMPARED:
        if phase in differences:
            own, other = traced.phases[phase].total, answer.estimate.phases[phase].total
            mark = "▸" if phase == traced.peak_phase else " "
            table.add_row(
                f"{mark} {phase}", f"{gib(own):.2f}", f"{gib(other):.2f}", f"{differences[phase]:+.2%}",
                style="bold" if phase == traced.peak_phase else "",
            )  # fmt: skip
    return table


def _parts(answer: SecondOpinion) -> Table:
    traced = answer.opinion.traced
    own = traced.breakdown.to_dict()
    same_phase = answer.estimate.phases.get(traced.peak_phase, answer.estimate.breakdown).to_dict()
    table = plain_table(f"The peak in {traced.peak_phase}, GiB by part")
    for heading in ("part", "traced", "estimated"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for part in PARTS:
        if own[part] or same_phase[part]:
            table.add_row(part, f"{gib(own[part]):.2f}", f"{gib(same_phase[part]):.2f}")
    return table


def _tensors(answer: SecondOpinion) -> Table:
    table = plain_table("The largest tensors at the peak")
    for heading in ("GiB", "shape", "dtype", "made by", "in"):
        table.add_column(heading, justify="right" if heading == "GiB" else "left", overflow="fold")
    for tensor in answer.opinion.traced.tensors:
        shape = " × ".join(map(str, tensor.shape))
        table.add_row(
            f"{gib(tensor.nbytes):.2f}", shape, tensor.dtype, tensor.op.removesuffix(".default"), tensor.where
        )
    return table


def rows_screen(rows: Sequence[tuple[int, SecondOpinion | PlannerError]]) -> RenderableType:
    """One line per row of a file."""
    from rich.text import Text

    table = plain_table("The rows, GiB a GPU")
    table.add_column("line", justify="right")
    table.add_column("runs")
    for heading in ("traced", "estimated", "difference", "reserved"):
        table.add_column(heading, justify="right")
    table.add_column("peak in, or what is wrong", overflow="fold")
    for number, answer in rows:
        if isinstance(answer, PlannerError):
            table.add_row(str(number), Text("bad", style="bold red"), "", "", "", "", answer.sentence)
            continue
        word = {True: "yes", False: "no", None: ""}[answer.runs]
        traced = answer.opinion.traced
        sizes = [f"{gib(traced.allocated_bytes):.2f}", f"{gib(answer.estimate.allocated_bytes):.2f}"]
        reserved = f"{gib(answer.opinion.reserved.reserved_peak_bytes):.2f}"
        table.add_row(str(number), word, *sizes, f"{answer.difference:+.2%}", reserved, traced.peak_phase)
    return table
