"""What rules/engines.toml says of engines: names, the order of preference, what one never runs."""

from __future__ import annotations

from planner.rulebook.load import engine_rows

# Engines that `plan run` starts by itself, in the order of preference, with what speaks for each.
MERITS = {
    "llamafactory": "has the most stages, methods and launchers for quick fine-tuning",
    "trl": "has this stage",
    "embedded": "needs torch, transformers and accelerate only, and lies in the folder itself",
}


def engine_name(engine: str) -> str:
    """The engine's name in sentences."""
    row = engine_rows().get(engine)
    return engine if row is None else str(row["name"])


def never_runs(engine: str, stage: str, method: str | None, parallelism: str | None) -> str | None:
    """What of it an engine does not have, whatever is installed; None if it has all. None as a value is left open."""
    row = engine_rows()[engine]
    asked = {"stage": (stage, "stages"), "method": (method, "methods"), "parallelism": (parallelism, "parallelism")}
    lacking = (f"has no {kind} {value}" for kind, (value, known) in asked.items() if value and value not in row[known])
    return next(lacking, None)
