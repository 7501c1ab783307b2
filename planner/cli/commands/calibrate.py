"""``plan calibrate``: measures this machine's constants, and keeps them for later predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.errors import EXIT_FITS, InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from planner.calibrate.constants import Constants
    from planner.calibrate.store import Store
    from planner.hardware.machine import Machine

_Text = str | None


def calibrate_command(
    python: Annotated[
        _Text, typer.Option("--python", metavar="FILE", help="a Python that has torch (default: this one)")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="what was measured here before; nothing is measured")] = False,
    machine: Annotated[
        _Text, typer.Option("--machine", metavar="FILE", help="with --show: the machine of a saved probe")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> int:
    """Measure what only this machine can tell: memory outside the allocator, and how fast its parts are.

    On the NVIDIA GPUs that are visible, in about a minute: the CUDA context and what libraries add to it, cuBLAS
    workspaces, the allocator's granularity, an NCCL communicator and peer copies (two GPUs or more), matrix products
    by dtype and shape, memory and PCIe bandwidth. Later plans on this machine use the context, NCCL and speed figures
    in place of the catalogue's, and say so. The GPUs should be idle.

    Exit codes: 0 measured, 2 no GPU, no torch, or a measurement that failed.
    """
    from planner.calibrate.measure import visible_uuids
    from planner.calibrate.observation import mark_of
    from planner.calibrate.store import store
    from planner.hardware.load import load_machine
    from planner.hardware.probe import probe

    if machine and not show:
        raise InputError("--machine describes a machine that is not here; nothing can be measured on it, use --show")
    base = store()
    if machine:
        there = load_machine(gpus=None, ram=None, machine_file=machine)
        return _answer(_stored(base, mark_of(there).id), base, json_output)
    here = probe()
    uuids = visible_uuids(here)
    if show:
        return _answer(_stored(base, mark_of(here).id), base, json_output)
    found = _measure(here, uuids, python)
    base.keep_constants(mark_of(here).id, found.measured_at, found.to_dict())
    return _answer(found, base, json_output)


def _measure(here: Machine, uuids: Sequence[str], python: str | None) -> Constants:
    from planner.calibrate.measure import measured, python_with_torch
    from planner.cli.io import say

    interpreter = python_with_torch(python)
    for gpu in here.gpus:
        if gpu.holders:
            say(f"warning: gpu {gpu.index} is in use; speeds measured now may be too low")
    say(f"measuring {len(uuids)} GPU{'s' if len(uuids) > 1 else ''}, about a minute")
    return measured(interpreter, uuids)


def _stored(base: Store, machine_id: str) -> Constants:
    from planner.calibrate.constants import constants_from_mapping

    document = base.constants(machine_id)
    if document is None:
        raise InputError("nothing was measured on this machine yet; `plan calibrate` measures")
    return constants_from_mapping(document, place=str(base.path))


def _answer(found: Constants, base: Store, as_json: bool) -> int:
    from planner.cli.io import screen, write_out

    if as_json:
        from planner.cli.jsonout import document

        write_out(document({"path": str(base.path), "constants": found.to_dict()}))
    else:
        screen(*constants_view(found, str(base.path)))
    return EXIT_FITS


def constants_view(found: Constants, path: str) -> list[RenderableType]:
    """Every figure with its unit, and what could not be measured with the reason."""
    from rich.table import Table
    from rich.text import Text

    from planner.cli.tables import notes

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in _rows(found):
        table.add_row(label, text)
    software = f"torch {found.torch}" + (f", CUDA {found.cuda}" if found.cuda else "")
    head = Text.assemble((found.gpu, "bold"), f"  {software}, measured {found.measured_at}")
    missing = [f"{name}: {why}" for name, why in found.refused.items()]
    return [head, Text(), table, *notes("not measured", missing), Text(), Text(f"in {path}", style="dim")]


def _rows(found: Constants) -> Iterator[tuple[str, str]]:
    from planner.units import show_gib

    def size(value: int | None) -> str:
        return "not measured" if value is None else show_gib(value, digits=2)

    def rate(value: float | None) -> str:
        return "not measured" if value is None else f"{value / 1e9:.0f} GB/s"

    growth = ", ".join(f"{name} +{show_gib(value, digits=2)}" for name, value in found.library_growth_bytes.items())
    yield "context and libraries", size(found.context_bytes)
    yield "  right after its making", size(found.context_alone_bytes) + (f"; {growth}" if growth else "")
    yield "cuBLAS workspaces", size(found.cublas_workspace_bytes)
    yield "allocator granularity", size(found.granularity_bytes)
    ranks = f" over {found.nccl_ranks} GPUs" if found.nccl_ranks else ""
    yield "NCCL communicator", size(found.nccl_bytes) + ranks
    for dtype, best in found.matmul_tflops.items():
        yield f"matrix products, {dtype}", f"{best:.4g} TFLOP/s at best ({_by_shape(found.matmul_shapes.get(dtype))})"
    yield "memory", rate(found.bandwidth_bytes_per_s)
    yield "host to GPU, pinned", rate(found.to_device_bytes_per_s)
    yield "GPU to host, pinned", rate(found.to_host_bytes_per_s)
    yield "GPU to GPU", rate(found.p2p_bytes_per_s)


def _by_shape(rates: Any) -> str:
    return ", ".join(f"{shape} {rate:.4g}" for shape, rate in (rates or {}).items())
