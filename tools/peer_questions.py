"""The measured rows as questions to other memory estimators: one JSON line a row, on stdout.

    python tools/peer_questions.py > questions.jsonl

Each line has the model's config.json, its exact parameter count (what the hub reports), the setup in contract fields
and the dtype in which states and gradients are held, so that ``peer_answers.py``, which runs in an environment without
this package, can put the row in each tool's own words.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from comparisons import Judged, judge_rows, peaks  # noqa: E402

from planner.memory.regime import resolve_regime  # noqa: E402
from planner.model.catalogue import catalogue, config_of  # noqa: E402


def config_dict(name: str) -> dict[str, Any] | None:
    """The config.json of a catalogue name or of a file; None where the catalogue has numbers only."""
    if name.endswith("config.json"):
        return dict(json.loads(Path(name).read_text(encoding="utf-8")))
    row = catalogue().by_name.get(name.lower())
    return config_of(row.fields) or None if row is not None else None


def question(one: Judged) -> dict[str, Any] | None:
    """One row; None where it has no peak or could not be stated."""
    if one.setup is None or one.spec is None or one.machine is None or not list(peaks(one.row)):
        return None
    regime = resolve_regime(one.setup, one.spec)
    return {
        "id": one.name,
        "model": one.row["model"],
        "config": config_dict(one.setup.model),
        "parameters": one.spec.parameters,
        "gpus": one.machine.world_size,
        "card_gib": one.machine.smallest.capacity_bytes / 2**30,
        "setup": one.setup.to_dict(),
        "trained_dtype": regime.trained,
        "quantized": regime.quantized,
        "loss": regime.loss,
    }


def main() -> None:
    for one in judge_rows():
        asked = question(one)
        if asked is not None:
            print(json.dumps(asked))


if __name__ == "__main__":
    main()
