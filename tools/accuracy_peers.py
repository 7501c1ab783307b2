"""What other estimators say about the same rows, from measurements/peers.jsonl (``make accuracy-peers`` writes it)."""

from __future__ import annotations

import json
from typing import Any

from accuracy import percent
from comparisons import Comparison, origin, summary
from measured_setups import MEASUREMENTS

TARGET = MEASUREMENTS / "peers.jsonl"
# What each tool's figure stands for: its own words, so that it is held to no more than it claims.
CLAIMS = {
    "fitcheck": "one GPU, dense Llama-like models, full, LoRA, QLoRA; allocated: its five physical parts, nvidia-smi: "
    "its total. Its own measurements of one T4 are 35 of these rows",
    "canifinetune": "one GPU; reserved is what it estimates (its safety margin left out), allocated its parts without "
    "the overhead that it takes as a share of the card",
    "llm-analysis": "full training on one or several GPUs, sharded or not; weights, gradients, states and activations",
    "accelerate estimate-memory": "full training with Adam by model size alone, a batch of one",
}
OWN = {"fitcheck": "Anassbzdd/fitcheck"}  # the repository whose rows a tool was fitted on


def stored() -> list[dict[str, Any]]:
    """The stored lines, empty where nobody has asked yet."""
    return [json.loads(line) for line in TARGET.read_text(encoding="utf-8").splitlines()] if TARGET.is_file() else []


def peers_section(compared: list[Comparison]) -> str:
    """One line a tool and meter, ours on the same rows beside it, and what each could not be asked."""
    ours = {(one.id, one.meter): one for one in compared}
    lines = stored()
    heads = "| tool | meter | rows | median | 90 % | worst | bias | ours: median | 90 % | worst | bias |\n"
    text = (
        "\n## Other estimators on the same rows\n\nEach tool is asked only what it has options for, with the model's "
        "config.json and exact parameter count, and compared on the meters that it claims.\n\n" + heads
    )
    text += "| --- | --- |" + " ---: |" * 9 + "\n"
    for peer in CLAIMS:
        for meter in ("allocated", "reserved", "nvidia-smi"):
            text += peer_lines(peer, meter, lines, ours)
    return text + "\n" + "".join(claim(one) for one in lines if "asked" in one)


def peer_lines(peer: str, meter: str, lines: list[dict[str, Any]], ours: dict[tuple[str, str], Comparison]) -> str:
    """The table line of one tool and meter, and one without the rows that the tool was fitted on."""
    pairs = [
        (one["bytes"][meter], ours[one["id"], meter])
        for one in lines
        if one["peer"] == peer and meter in one.get("bytes", {}) and (one["id"], meter) in ours
    ]
    text = peer_line(peer, meter, pairs)
    apart = [(size, row) for size, row in pairs if origin(row.source) != OWN.get(peer)]
    return text + (peer_line(f"{peer}, rows of others", meter, apart) if len(apart) < len(pairs) else "")


def peer_line(name: str, meter: str, pairs: list[tuple[int, Comparison]]) -> str:
    if not pairs:
        return ""
    theirs = summary([size / row.measured_bytes - 1 for size, row in pairs])
    ours = summary([row.error for _, row in pairs])
    cells = [name, meter, str(len(pairs))]
    for one in (theirs, ours):
        cells += [percent(one["median"]), percent(one["p90"]), percent(one["worst"]), percent(one["bias"], signed=True)]
    return "| " + " | ".join(cells) + " |\n"


def claim(one: dict[str, Any]) -> str:
    """A sentence a tool: version, day, what it claims, and why most other rows cannot be put to it."""
    reasons = ", ".join(f"{reason} ({count})" for reason, count in list(one["cannot_say"].items())[:6])
    answered = one["asked"] - sum(one["cannot_say"].values())
    return (
        f"- {one['peer']} {one['version']}, {one['date']}: {CLAIMS[one['peer']]}. "
        f"Answers {answered} of {one['asked']} rows; not: {reasons}.\n"
    )
