"""The machine that a command asks about (an edge): from flags, from a saved probe, or the one that is here."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from planner.errors import InputError
from planner.files import read_text

if TYPE_CHECKING:
    from planner.hardware.machine import Machine


def load_machine(*, gpus: str | None, ram: str | None, machine_file: str | None) -> Machine:
    """The machine that flags name, that a file describes, or that is here, in this order.

    Nothing is probed when ``gpus`` or ``machine_file`` is given. Raises InputError for a contradiction,
    a wrong size or name, and for a file that is not a saved probe.
    """
    if gpus and machine_file:
        raise InputError("--gpus and --machine both say what the hardware is; give one of them")
    if gpus:
        from planner.hardware.parse import parse_machine

        return parse_machine(gpus, ram)
    machine = _machine_from_file(machine_file) if machine_file else _probed()
    if not machine.gpus:
        raise _no_gpu(machine_file)
    if ram is None:
        return machine
    from planner.hardware.parse import parse_ram_bytes

    return replace(machine, ram_bytes=parse_ram_bytes(ram))


def _no_gpu(machine_file: str | None) -> InputError:
    where = f"--machine {machine_file!r} lists no GPU" if machine_file else "no GPU was found here"
    return InputError(
        f"{where} and none is named; say which, such as --gpus 3x20GB",
        hint="`plan probe` shows what was looked for; `plan gpus` lists the cards that are known by name",
    )


def _machine_from_file(path: str) -> Machine:
    from planner.hardware.store import machine_from_json

    return machine_from_json(read_text(path, place="--machine"), place=path)


def _probed() -> Machine:
    from planner.hardware.probe import probe

    return probe()
