"""Where the run works: its output, the folder, the port, the other machines. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from planner.errors import shown
from planner.run.checks.records import Need, OutputFacts, Surroundings, failed, passed, warned
from planner.run.records import Check


def place(need: Need, here: Surroundings) -> Iterator[Check]:
    """What would be written over, by whom, and how the processes meet."""
    yield from _others(here.output)
    yield _output(need, here.output)
    yield from _meeting(need, here)


def _others(output: OutputFacts) -> Iterator[Check]:
    if output.others:
        who = ", ".join(f"{name} ({number})" for number, name in output.others)
        sentence = f"{who} works in this folder: two runs would write over each other's checkpoints"
        yield failed("folder", sentence, "wait for it or end it, or plan into another folder with --out")


def _output(need: Need, output: OutputFacts) -> Check:
    """A folder with checkpoints is resumed; finished weights without any would be overwritten."""
    shown = output.shown
    if output.unwritable is not None:
        return failed(
            "output", f"{shown} cannot be written: {output.unwritable}", "make it writable, or change output_dir"
        )
    if need.overwrites and (output.whole or output.torn or output.models):
        remedy = "set overwrite_output_dir to false to resume"
        return warned("output", f"{shown} is not empty, and overwrite_output_dir gives up what is there", remedy)
    if output.step is not None:
        said = f"{shown} has checkpoints: the run resumes from step {output.step}"
        return warned("output", said, "plan into another folder with --out to start anew")
    if output.models:
        sentence = f"{shown} holds a trained model ({output.models[0]}) and no checkpoint to resume from"
        return failed("output", sentence, "move it away, or plan into another folder with --out")
    if output.torn:
        return warned("output", f"no checkpoint in {shown} is whole: the run starts at the first step")
    return passed("output", f"{shown} is new")


def _machines(need: Need, here: Surroundings) -> Check:
    if here.unresolved is not None:
        sentence = f"MASTER_ADDR {shown(need.first_machine)} leads nowhere from here ({here.unresolved})"
        return failed("machines", sentence, "set it to the first machine's address, or a name that is known on each")
    said = f"only this one was looked at, {need.planned.nodes - 1} more take part"
    return warned("machines", said, "run --preflight-only on each")


def _meeting(need: Need, here: Surroundings) -> Iterator[Check]:
    if need.unset:
        sentence = f"{', '.join(need.unset)} is not set, and a run on {need.planned.nodes} machines needs it"
        yield failed("machines", sentence, "set NODE_RANK (0, 1, ...) and MASTER_ADDR (the first machine's) on each")
    elif need.planned.nodes > 1:
        yield _machines(need, here)
    if need.no_port:
        remedy = "set it to a number from 1 to 65535" + (", the same on every machine" if need.first_machine else "")
        yield failed("port", f"MASTER_PORT {shown(need.no_port)} is no port", remedy)
    if need.port is None:
        return
    if here.port_taken is not None:
        yield failed(
            "port", f"{need.port} is not free ({here.port_taken})", "set MASTER_PORT to a free one, or end who has it"
        )
    else:
        yield passed("port", f"{need.port} is free")
