"""docs/accuracy.md: what was measured, on which cards, with the misses listed.

python tools/accuracy_page.py [--check]
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from accuracy import grouped, measured, percent  # noqa: E402
from comparisons import Comparison, Judged, compare, judge_rows, wrong_verdicts  # noqa: E402

TARGET = Path(__file__).resolve().parent.parent / "docs" / "accuracy.md"
MISS = 0.05
OPENING = """# Accuracy

<!-- Written by tools/accuracy_page.py from measurements/; run it after a change of the memory model. -->

Predictions against peaks that others measured and published ([measurements](../measurements/README.md)). Each run is
stated in the contract's fields as a reader of its source would, without knowledge of its result. `published` rows were
looked at while the model was built and set the margins in `rules/overheads.toml`; on `more` rows nothing is
calibrated, they served to tell mechanisms apart and are the check. Errors are predicted / measured - 1; the bias is
their median.
"""
VERDICTS = {
    "ran_but_does_not_fit": "runs that finished, judged `does_not_fit`",
    "ran_out_but_fits": "runs that ran out of memory, judged `fits`",
    "required_below_allocated": "runs whose allocated peak exceeds `required_bytes`",
}


def page() -> str:
    judged = judge_rows()
    compared = compare(judged)
    sections = (bounds(compared), meters(compared), verdicts(judged), misses(compared), cards(judged), left_out(judged))
    return OPENING + "".join(sections)


def table(heads: list[str], lines: list[list[str]]) -> str:
    """A Markdown table; figures are set to the right."""
    rule = ["---"] + ["---:"] * (len(heads) - 1)
    return "".join("| " + " | ".join(line) + " |\n" for line in (heads, rule, *lines))


def bounds(compared: list[Comparison]) -> str:
    lines = []
    for one in measured(compared):
        asked, reached = one["bounds"], one["reached"]
        worst = percent(asked["worst"]) if asked["worst"] else "-"
        figures = [str(reached["count"]), percent(asked["median"]), percent(reached["median"]), worst]
        lines.append([one["title"], *figures, percent(reached["worst"]), "yes" if one["holds"] else "**no**"])
    heads = ["allocated memory, `published`", "rows", "median asked", "reached", "worst asked", "reached", "holds"]
    return "\n## The bounds\n\n" + table(heads, lines)


def meters(compared: list[Comparison]) -> str:
    text = "\n## By stack\n"
    titles = {
        "allocated": "Allocated memory",
        "reserved": "Reserved memory",
        "nvidia-smi": "What nvidia-smi shows",
        "unknown": "Unknown meter, against `device_bytes`",
    }
    for meter, title in titles.items():
        groups = grouped([one for one in compared if one.meter == meter], stack_of)
        lines = [[" · ".join(name), *figures(one)] for name, one in groups.items()]
        text += f"\n{title}\n\n" + table(["file, stack, GPUs", "rows", "median", "90 %", "worst", "bias"], lines)
    return text


def stack_of(one: Comparison) -> tuple[str, ...]:
    return (one.file, one.stack, "several GPUs" if one.gpus > 1 else "one GPU")


def figures(one: dict[str, Any]) -> list[str]:
    errors = [percent(one["median"]), percent(one["p90"]), percent(one["worst"])]
    return [str(one["count"]), *errors, percent(one["bias"], signed=True)]


def verdicts(judged: list[Judged]) -> str:
    lines = []
    for file in ("published", "limits", "more"):
        ours = [one for one in judged if one.row["file"] == file]
        wrong = wrong_verdicts(ours)
        lines += [[f"{file}: {VERDICTS[rule]}", f"{len(names)} of {len(ours)}"] for rule, names in wrong.items()]
    words = Counter(one.estimate.verdict for one in judged if one.estimate and one.row.get("kind") == "OOM")
    told = ", ".join(f"{count} {word}" for word, count in sorted(words.items(), key=str))
    return "\n## Verdicts on each run's own card\n\n" + table(["", "rows"], lines) + f"\nRuns out of memory: {told}.\n"


def misses(compared: list[Comparison]) -> str:
    far = [one for one in compared if one.meter == "allocated" and abs(one.error) > MISS]
    lines = [[one.id, one.source, percent(one.error, signed=True)] for one in sorted(far, key=lambda one: one.error)]
    heads = [f"allocated memory more than {percent(MISS)} off", "source", "error"]
    return "\n## Misses\n\n" + table(heads, lines)


def cards(judged: list[Judged]) -> str:
    seen = Counter(one.row["gpu_model"] for one in judged if one.estimate is not None)
    lines = [[str(name), str(count)] for name, count in seen.most_common()]
    tail = (
        "\nEvery other card is untested: its capacity and context are stated, its allocated memory follows the model.\n"
    )
    return "\n## Cards\n\n" + table(["card", "rows"], lines) + tail


def left_out(judged: list[Judged]) -> str:
    problems = Counter(one.problem for one in judged if one.problem)
    lines = [[str(problem), str(count)] for problem, count in problems.most_common()]
    return "\n## Not compared\n\n" + table(["reason", "rows"], lines)


def main() -> None:
    text = page()
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.read_text(encoding="utf-8") == text else f"{TARGET.name} is stale")
    TARGET.write_text(text, encoding="utf-8")
    print(f"{TARGET.name} written")


if __name__ == "__main__":
    main()
