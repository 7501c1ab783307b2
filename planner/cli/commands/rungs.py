"""``plan rungs``: the ladder, searchable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from planner.search.rungs import Ladder, Rung

_FEW = 4


def rungs_command(
    query: Annotated[
        list[str] | None, typer.Argument(help="words of an id or title, such as zero or offload; all without")
    ] = None,
    machine: Annotated[
        str | None, typer.Option("--machine", metavar="FILE", help="only rungs that a saved probe allows")
    ] = None,
    ladder: Annotated[str | None, typer.Option("--ladder", metavar="FILE", help="your own ladder instead")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """The rungs that --allow, --require and --forbid name, in the order of the walk.

    A rung is taken only where the ones before it were not enough. Those marked ? are priced and shown, but taken only
    when asked for. With few rungs left, their reasons and sources are shown too.
    """
    from pathlib import Path

    from planner.search.rungs import load_ladder

    steps = load_ladder(Path(ladder) if ladder else None)
    found = matching(steps, " ".join(query or []))
    if machine is not None:
        found = [rung for rung in found if allowed_by(machine, rung)]
    if json_output:
        from planner.cli.io import write_out
        from planner.cli.jsonout import document

        write_out(document({"rungs": [entry(rung) for rung in found]}))
        return
    from planner.cli.io import screen

    screen(*ladder_view(steps, found))


def matching(ladder: Ladder, words: str) -> list[Rung]:
    """The rungs whose id or title has every word. Raises InputError with the nearest ids where none has."""
    wanted = words.lower().split()
    found = [rung for rung in ladder if all(word in f"{rung.id} {rung.title}".lower() for word in wanted)]
    if not found:
        from planner.errors import unknown_choice

        raise unknown_choice(words, "rung", (rung.id for rung in ladder))
    return found


def allowed_by(path: str, rung: Rung) -> bool:
    """True if every condition that the rung puts on the hardware holds for the machine of a saved probe."""
    from planner.hardware.load import load_machine
    from planner.search.facts import Facts
    from planner.training import TrainingSetup

    facts = Facts(TrainingSetup(model="any"), None, load_machine(gpus=None, ram=None, machine_file=path))
    return all(each.holds(facts) for each in rung.when if each.field.startswith("machine."))


def entry(rung: Rung) -> dict[str, Any]:
    """One rung as plain values."""
    return {
        "id": rung.id,
        "title": rung.title,
        "tier": rung.tier,
        "changes": dict(rung.changes),
        "steps": rung.steps,
        "through": list(rung.through),
        "environment": dict(rung.environment),
        "forbids": sorted(rung.forbids),
        "on_request": rung.on_request,
        "quality_risk": rung.quality_risk,
        "reason": rung.reason,
        "source": rung.source,
    }


def ladder_view(ladder: Ladder, found: Sequence[Rung]) -> list[RenderableType]:
    """The rungs tier by tier, with the reason of each tier, and of each rung once few are left."""
    from rich.text import Text

    from planner.cli.tables import notes

    parts: list[RenderableType] = []
    for tier in sorted({rung.tier for rung in found}):
        title, _, why = ladder.tiers.get(tier, "").partition(": ")
        parts.append(Text.assemble((f"tier {tier}: {title}", "bold"), "  ", (why, "dim")))
        parts += [tier_table([rung for rung in found if rung.tier == tier]), Text()]
    if len(found) <= _FEW:
        for rung in found:
            parts += notes(rung.id, [f"{rung.reason}. Source: {rung.source}"])
    return parts


def tier_table(rungs: Sequence[Rung]) -> Table:
    """The rungs of one tier: id, what they set, what they risk."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=1)
    table.add_column(no_wrap=True, width=20)
    table.add_column(overflow="fold", width=28)
    table.add_column(overflow="fold", ratio=1)
    for rung in rungs:
        table.add_row("?" if rung.on_request else " ", rung.id, effect(rung), f"risk: {rung.quality_risk}")
    return table


def effect(rung: Rung) -> str:
    """What the rung sets, in the words of the flags."""
    changes = [f"{name}={_word(value)}" for name, value in rung.changes.items()]
    changes += [f"{name}={value}" for name, value in rung.environment.items()]
    if rung.steps:
        changes.append(f"lowers {rung.steps}")
    return ", ".join(changes) or rung.title


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
