"""Estimate -> screen: the verdict, the stacked bar, the phases, and what it rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.cli.bars import stacked_bar
from planner.cli.tables import notes, plain_table
from planner.errors import PlannerError
from planner.memory.result import PARTS
from planner.units import gib, show_count, show_gib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from planner.hardware.machine import Machine
    from planner.memory.result import Estimate
    from planner.model.spec import ModelSpec
    from planner.training import TrainingSetup

VERDICTS = {
    "fits": ("fits", "bold green"),
    "uncertain": ("uncertain", "bold yellow"),
    "does_not_fit": ("does not fit", "bold red"),
}


def estimate_screen(setup: TrainingSetup, spec: ModelSpec, machine: Machine, answer: Estimate) -> RenderableType:
    """The whole screen of ``plan estimate``."""
    from rich.console import Group
    from rich.text import Text

    return Group(
        headline(setup, spec, answer),
        Text(machine_line(machine), style="dim"),
        Text(),
        verdict_line(answer),
        stacked_bar(answer),
        Text(),
        _meters(answer),
        Text(),
        phase_table(answer),
        *notes("assumed", answer.assumptions),
        *notes("warning", answer.warnings, style="yellow"),
    )


def headline(setup: TrainingSetup, spec: ModelSpec, answer: Estimate) -> Text:
    """Model, what is trained of it, and the shape of a step."""
    from rich.text import Text

    trained = f"{show_count(answer.trainable_parameters)} of {show_count(answer.total_parameters)} trained"
    shape = f"{setup.micro_batch_size} × {setup.seq_len} tokens a GPU"
    return Text.assemble((spec.id, "bold"), f"  {setup.stage} {setup.method}, {trained}, {shape}")


def machine_line(machine: Machine) -> str:
    """The hardware in one line; unknown is said."""
    nodes = f"{machine.nodes} nodes × " if machine.nodes > 1 else ""
    cards = " + ".join(
        f"{count} × {name} ({show_gib(usable)} usable{free})" for (name, usable, free), count in _alike(machine).items()
    )
    ram = f"host RAM {show_gib(machine.ram_bytes)}" if machine.ram_bytes else "host RAM unknown"
    return f"{nodes}{cards}, {_links(machine)}{ram}"


def _alike(machine: Machine) -> dict[tuple[str, int, str], int]:
    counts: dict[tuple[str, int, str], int] = {}
    for gpu in machine.gpus:
        key = (gpu.name, gpu.capacity_bytes, " now" if gpu.free_bytes is not None else "")
        counts[key] = counts.get(key, 0) + 1
    return counts


def _links(machine: Machine) -> str:
    if machine.world_size == 1:
        return ""
    words = {True: "NVLink, ", False: "PCIe, ", None: "links unknown, "}
    return words[machine.links.nvlink]


def verdict_line(answer: Estimate) -> Text:
    """The verdict in words, with what is needed, what there is and what is left."""
    from rich.text import Text

    needs = f"needs {show_gib(answer.required_bytes, digits=2)} a GPU"
    if answer.capacity_bytes is None or answer.verdict is None:
        return Text.assemble((needs, "bold"), "; no capacity is known to hold it against")
    word, style = VERDICTS[answer.verdict]
    left = answer.capacity_bytes - answer.required_bytes
    rest = f"{show_gib(left, digits=2)} to spare" if left >= 0 else f"{show_gib(-left, digits=2)} too much"
    return Text.assemble((word, style), f"  {needs} of {show_gib(answer.capacity_bytes, digits=2)}, {rest}")


def _meters(answer: Estimate) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    percent = f"{answer.coverage:.0%}"
    rows = [
        ("allocated", answer.allocated_bytes, "torch.cuda.max_memory_allocated"),
        ("reserved", answer.reserved_bytes, "the caching allocator's peak"),
        ("device", answer.device_bytes, "what nvidia-smi would show"),
    ]
    for name, size, meaning in rows:
        low, high = answer.interval[f"{name}_bytes"]
        span = f"{gib(low):.2f} to {gib(high):.2f} at {percent}"
        table.add_row(name, f"{gib(size):.2f} GiB", span, meaning)
    table.add_row("host", f"{gib(answer.host_bytes):.2f} GiB", "", "memory of one node")
    table.add_row("disk", f"{gib(answer.disk_bytes):.2f} GiB", "", "of one node")
    for column in table.columns[1:2]:
        column.justify = "right"
    return table


def phase_table(answer: Estimate) -> Table:
    """Allocated GiB by phase and part; the peak is marked. Parts that are nothing everywhere are left out."""
    shown = [part for part in PARTS if any(getattr(parts, part) for parts in answer.phases.values())]
    table = plain_table("Allocated GiB by phase")
    table.add_column("phase")
    for part in shown:
        table.add_column(_SHORT.get(part, part), justify="right")
    table.add_column("total", justify="right")
    for phase, parts in answer.phases.items():
        peak = phase == answer.peak_phase
        cells = [f"{gib(getattr(parts, part)):.2f}" if getattr(parts, part) else "" for part in shown]
        table.add_row(
            f"{'▸' if peak else ' '} {phase}", *cells, f"{gib(parts.total):.2f}", style="bold" if peak else ""
        )
    return table


_SHORT = {
    "gradients": "grads",
    "optimizer": "optim",
    "activations": "activ.",
    "temporaries": "temp.",
    "communication": "comm.",
}


def rows_screen(rows: Sequence[tuple[int, Estimate | PlannerError]]) -> RenderableType:
    """One line per row of a file."""
    from rich.text import Text

    table = plain_table("The rows, GiB a GPU")
    table.add_column("line", justify="right")
    table.add_column("verdict")
    for heading in ("allocated", "device", "required"):
        table.add_column(heading, justify="right")
    table.add_column("peak in, or what is wrong", overflow="fold")
    for number, answer in rows:
        if isinstance(answer, PlannerError):
            table.add_row(str(number), Text("bad", style="bold red"), "", "", "", answer.sentence)
            continue
        word, style = VERDICTS.get(answer.verdict or "", ("no capacity", ""))
        sizes = (answer.allocated_bytes, answer.device_bytes, answer.required_bytes)
        cells = [f"{gib(size):.2f}" for size in sizes]
        table.add_row(str(number), Text(word, style=style), *cells, answer.peak_phase)
    return table
