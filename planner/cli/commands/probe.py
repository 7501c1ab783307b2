"""``plan probe``: the hardware as seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from planner.hardware.machine import Gpu, Machine


def probe_command(
    json_output: Annotated[
        bool, typer.Option("--json", help="one JSON document; --machine FILE reads it back")
    ] = False,
    machine: Annotated[str | None, typer.Option("--machine", metavar="FILE", help="show a saved probe")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="the driver's answer uninterpreted, for a bug report")] = False,
) -> None:
    """The hardware as seen here: GPUs and what holds their memory, links, RAM, disk, software.

    `plan probe --json > machine.json` saves it for --machine of any command.

    Capacity is free memory. What the driver refuses to tell is unknown, never zero, and named as a warning.
    """
    from planner.cli.io import screen, write_out

    if raw and not machine:
        from planner.cli.jsonout import document
        from planner.hardware.probe import raw_answer

        write_out(document(raw_answer()))
        return
    seen = _machine(machine)
    if json_output:
        from planner.hardware.store import machine_to_json

        write_out(machine_to_json(seen))
        return
    screen(*machine_view(seen))


def _machine(path: str | None) -> Machine:
    if path is None:
        from planner.hardware.probe import probe

        return probe()
    from planner.files import read_text
    from planner.hardware.store import machine_from_json

    return machine_from_json(read_text(path, place="--machine"), place=path)


def machine_view(machine: Machine) -> Iterator[RenderableType]:
    """The screen: a table of GPUs, the host, software, and what to know about them."""
    from planner.cli.tables import notes

    if machine.gpus:
        yield _gpu_table(machine)
    yield _host_table(machine)
    yield from notes("assumed", machine.assumptions)
    yield from notes("warning", machine.warnings, style="yellow")


def _gpu_table(machine: Machine) -> Table:
    from planner.cli.tables import plain_table

    nodes = f", {machine.nodes} nodes alike" if machine.nodes > 1 else ""
    table = plain_table(f"{len(machine.gpus)} GPU{'s' if len(machine.gpus) > 1 else ''}{nodes}")
    table.add_column("gpu", justify="right", no_wrap=True)
    table.add_column("name", overflow="fold")
    for heading in ("total GiB", "free GiB", "usable GiB", "capability"):
        table.add_column(heading, justify="right", no_wrap=True)
    for gpu in machine.gpus:
        table.add_row(str(gpu.index), _name(gpu), *_sizes(gpu), _dotted(gpu.compute_capability))
    return table


def _name(gpu: Gpu) -> str:
    return gpu.name if gpu.kind or gpu.mig or gpu.total_bytes is None else f"{gpu.name} (not in the catalogue)"


def _sizes(gpu: Gpu) -> list[str]:
    return [_gib(gpu.total_bytes), _gib(gpu.free_bytes), _gib(gpu.capacity_bytes)]


def _gib(size_bytes: int | None) -> str:
    from planner.units import gib

    return "?" if size_bytes is None else f"{gib(size_bytes):.2f}"


def _dotted(capability: tuple[int, int] | None) -> str:
    return ".".join(str(part) for part in capability) if capability else "?"


def _host_table(machine: Machine) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in _host_rows(machine):
        table.add_row(label, text)
    return table


def _host_rows(machine: Machine) -> Iterator[tuple[str, str]]:
    from planner.hardware.parse import format_gpus

    if machine.gpus:
        yield "as flags", f"--gpus {format_gpus(machine)}"
    if len(machine.gpus) > 1:
        yield "links", _links(machine)
    free = "" if machine.ram_free_bytes is None else f", {_gib(machine.ram_free_bytes)} GiB free"
    yield "host RAM", "unknown" if machine.ram_bytes is None else f"{_gib(machine.ram_bytes)} GiB{free}"
    yield "cores", "unknown" if machine.cpu_cores is None else str(machine.cpu_cores)
    yield "disk", "unknown" if machine.disk_free_bytes is None else f"{_gib(machine.disk_free_bytes)} GiB free"
    yield "driver", machine.driver or "none or unknown"
    software = ", ".join(f"{name} {version}" for name, version in machine.software.items())
    yield "software", software or "none of the training packages is installed here"


def _links(machine: Machine) -> str:
    words = {True: "yes", False: "no", None: "unknown"}
    links = machine.links
    speed = "" if links.bytes_per_s is None else f", {links.bytes_per_s / 1e9:.0f} GB/s in one direction"
    return f"NVLink {words[links.nvlink]}, peer access {words[links.p2p]}{speed}"
