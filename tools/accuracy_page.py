"""docs/accuracy.md and docs/accuracy-rows.md: every published row beside its prediction, the misses with their causes.

    python tools/accuracy_page.py [--check]

``--check`` writes nothing and fails when a page is stale.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from accuracy import grouped, measured, percent  # noqa: E402
from accuracy_peers import peers_section  # noqa: E402
from comparisons import WITHIN, Comparison, Judged, compare, judge_rows, origin, summary, wrong_verdicts  # noqa: E402
from held_out import held_out, is_fitted  # noqa: E402
from measured_setups import FILES  # noqa: E402
from misses import cause_of  # noqa: E402
from required import Excess, excesses, medians  # noqa: E402

DOCS = Path(__file__).resolve().parent.parent / "docs"
# A row is listed as missed beyond these: allocated memory is predicted, the other meters hold cache and context too.
MISS = {"allocated": 0.05, "unknown": 0.05, "reserved": 0.10, "nvidia-smi": 0.20}
MISSES = "\n## Misses\n\nAllocated memory and unknown meters more than 5 % off, reserved 10 %, nvidia-smi 20 %.\n\n"
GIB = 2**30
OPENING = """# Accuracy

<!-- Written by `make accuracy` from measurements/; run it after a change of the memory model. -->

Predictions against peaks that others measured and published ([measurements](../measurements/README.md)); every row by
itself is in [accuracy-rows.md](accuracy-rows.md). Each run is stated in the contract's fields as a reader of its source
would, without knowledge of its result. Errors are predicted / measured - 1; the bias is their median.

| rows | part they had in the model |
| --- | --- |
| `published`, `limits` | looked at while the model was built; `published` sets the margins of `required_bytes` and \
the two fitted figures (`[replay]`) behind reserved and device memory. Allocated memory has no fitted constant |
| `more` | nothing is fitted on them; they served to tell mechanisms apart |
| `added` | collected last, nothing is fitted on them; what was reached before anything was changed stands in the \
[measurements](../measurements/README.md#what-was-reached-blind) |
"""
VERDICTS = {
    "ran_but_does_not_fit": "runs that finished, judged `does_not_fit`",
    "ran_out_but_fits": "runs that ran out of memory, judged `fits`",
    "required_below_allocated": "runs whose allocated peak exceeds `required_bytes`",
}
METERS = {
    "allocated": "Allocated memory",
    "reserved": "Reserved memory",
    "nvidia-smi": "What nvidia-smi shows",
    "unknown": "Unknown meter, against `device_bytes`",
}
HEADS = ["rows", "median", "90 %", "worst", "bias", *(f"≤ {bound:.0%}" for bound in WITHIN)]


def pages() -> dict[str, str]:
    """Text of each page by its file name."""
    judged = judge_rows()
    compared = compare(judged)
    sections = (
        bounds(compared),
        by_kind(compared),
        stacks(compared),
        left_out_fits(compared),
        verdicts(judged),
        required(judged),
        peers_section(compared),
        misses(compared),
        cards(judged),
        left_out(judged),
    )
    return {"accuracy.md": OPENING + "".join(sections), "accuracy-rows.md": rows_page(compared)}


def table(heads: list[str], lines: list[list[str]], words: int = 1) -> str:
    """A Markdown table; all but the first ``words`` columns are set to the right."""
    rule = ["---"] * words + ["---:"] * (len(heads) - words)
    return "".join("| " + " | ".join(line) + " |\n" for line in (heads, rule, *lines))


def bounds(compared: list[Comparison]) -> str:
    lines = []
    for one in measured(compared):
        asked, reached = one["bounds"], one["reached"]
        worst = percent(asked["worst"]) if asked["worst"] else "-"
        found = [str(reached["count"]), percent(asked["median"]), percent(reached["median"]), worst]
        lines.append([one["title"], *found, percent(reached["worst"]), "yes" if one["holds"] else "**no**"])
    heads = ["allocated memory, `published`", "rows", "median asked", "reached", "worst asked", "reached", "holds"]
    return "\n## The bounds\n\n" + table(heads, lines)


def size_of(one: Comparison) -> str:
    """How many GPUs, in classes that have rows."""
    return next(
        name for most, name in ((1, "1"), (2, "2"), (4, "3 to 4"), (8, "5 to 8"), (2**31, "more")) if one.gpus <= most
    )


KINDS: dict[str, Callable[[Comparison], str]] = {
    "source": lambda one: origin(one.source),
    "method": lambda one: one.method,
    "GPUs": size_of,
}


def by_kind(compared: list[Comparison]) -> str:
    """By source, method and number of GPUs: allocated memory, then the meters that hold cache and context too."""
    text = ""
    for title, key in KINDS.items():
        text += f"\n## By {title}\n"
        for name, chosen in (
            ("Allocated memory", [one for one in compared if one.meter == "allocated"]),
            ("Reserved and device memory", [one for one in compared if one.meter != "allocated"]),
        ):
            groups = grouped(chosen, lambda one, key=key: (key(one),))
            lines = [[*group, *figures(found)] for group, found in groups.items()]
            lines.append(["all", *figures(summary([one.error for one in chosen]))])
            text += f"\n{name}\n\n" + table([title, *HEADS], lines)
    return text


def stacks(compared: list[Comparison]) -> str:
    text = "\n## By stack\n"
    for meter, title in METERS.items():
        groups = grouped([one for one in compared if one.meter == meter], stack_of)
        lines = [[" · ".join(name), *figures(one)] for name, one in groups.items()]
        text += f"\n{title}\n\n" + table(["file, stack, GPUs", *HEADS], lines)
    return text


def stack_of(one: Comparison) -> tuple[str, ...]:
    return (one.file, one.stack, "several GPUs" if one.gpus > 1 else "one GPU")


def figures(one: dict[str, Any]) -> list[str]:
    errors = [percent(one["median"]), percent(one["p90"]), percent(one["worst"])]
    shares = [f"{share:.0%}" for share in one["within"].values()]
    return [str(one["count"]), *errors, percent(one["bias"], signed=True), *shares]


def left_out_fits(compared: list[Comparison]) -> str:
    """Fitted rows, with the constants as they ship and as they come out without the row's own source."""
    other = held_out()
    fitted = [one for one in compared if is_fitted(one)]
    text = (
        "\n## Rows that constants were fitted on\n\nReserved and nvidia-smi figures of `published` set the two "
        "figures of `[replay]`. Below, each source is predicted with figures fitted on the others alone.\n\n"
    )
    lines = []
    groups = {(origin(one.source), one.meter) for one in fitted}
    for name, meter in [*sorted(groups), ("all", "reserved"), ("all", "nvidia-smi")]:
        chosen = [one for one in fitted if one.meter == meter and name in ("all", origin(one.source))]
        apart = summary([other[one.id, one.meter] / one.measured_bytes - 1 for one in chosen])
        shipped = summary([one.error for one in chosen])
        both = [percent(each[figure]) for figure in ("median", "p90") for each in (shipped, apart)]
        lines.append([name, meter, str(len(chosen)), *both])
    heads = ["source", "meter", "rows", "median", "without it", "90 %", "without it"]
    return text + table(heads, lines, words=2)


def verdicts(judged: list[Judged]) -> str:
    lines = []
    for file in FILES:
        ours = [one for one in judged if one.row["file"] == file and one.estimate]
        if not ours:
            continue
        wrong = wrong_verdicts(ours)
        lines += [[f"{file}: {VERDICTS[rule]}", f"{len(names)} of {len(ours)}"] for rule, names in wrong.items()]
    words = Counter(one.estimate.verdict for one in judged if one.estimate and one.row.get("kind") == "OOM")
    told = ", ".join(f"{count} {word}" for word, count in sorted(words.items(), key=str))
    return "\n## Verdicts on each run's own card\n\n" + table(["", "rows"], lines) + f"\nRuns out of memory: {told}.\n"


REQUIRED = """
## Required memory

`required_bytes` above the measured allocated peak, as shares of that peak; medians. The rest is the margin of trust,
what fragments take, and the error of the prediction itself.

"""


def required(judged: list[Judged]) -> str:
    """Whether the bound holds, how wide it is, and what the width is made of."""
    found = excesses(judged)
    groups: dict[str, list[Excess]] = {}
    for file in (*FILES, "all"):
        for few, name in ((True, "one GPU"), (False, "several GPUs")):
            groups[f"{file} · {name}"] = [one for one in found if file in (one.file, "all") and (one.gpus == 1) is few]
    lines = []
    for name, ones in groups.items():
        if ones:
            held = f"{sum(one.covered for one in ones)} of {len(ones)}"
            lines.append([name, held, *(percent(share) for share in medians(ones).values())])
    heads = [
        "file, GPUs",
        "hold peak and context",
        "above",
        "context, NCCL",
        "the rest",
    ]
    return REQUIRED + table(heads, lines)


def misses(compared: list[Comparison]) -> str:
    """Peaks beyond the bound of their meter, by source and cause; rows of one cause share a line."""
    far: dict[tuple[str, str, str], list[Comparison]] = {}
    for one in compared:
        if abs(one.error) > MISS[one.meter]:
            cause = cause_of(one.id, one.meter) or "not known"
            far.setdefault((one.meter, origin(one.source), cause), []).append(one)
    lines = []
    for (meter, source, cause), ones in sorted(far.items()):
        errors = sorted(one.error for one in ones)
        span = percent(errors[0], signed=True)
        span += "" if len(errors) == 1 else " to " + percent(errors[-1], signed=True)
        first = ones[0].id + (f" and {len(ones) - 1} more" if len(ones) > 1 else "")
        lines.append([meter, first, source, cause, span])
    heads = ["meter", "row", "source", "what is known of the cause", "error"]
    return MISSES + table(heads, lines, words=4)


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


def rows_page(compared: list[Comparison]) -> str:
    """Every compared peak, by source."""
    text = (
        "# Accuracy, row by row\n\n<!-- Written by `make accuracy` from measurements/. -->\n\n"
        "Each published peak beside its prediction, in GiB per GPU; the summary is in [accuracy.md](accuracy.md). "
        "\\* marks a peak that constants were fitted on, with the error without its source in brackets.\n"
    )
    other = held_out()
    by_source: dict[str, list[Comparison]] = {}
    for one in compared:
        by_source.setdefault(one.source, []).append(one)
    for source, ones in sorted(by_source.items()):
        lines = [row_line(one, other) for one in ones]
        heads = ["row", "method", "card", "meter", "GPUs", "measured", "predicted", "error"]
        text += f"\n## {source}\n\n" + table(heads, lines, words=4)
    return text


def row_line(one: Comparison, other: dict[tuple[str, str], int]) -> list[str]:
    error = percent(one.error, signed=True)
    if is_fitted(one):
        error += f" \\* ({percent(other[one.id, one.meter] / one.measured_bytes - 1, signed=True)})"
    sizes = [f"{size / GIB:.2f}" for size in (one.measured_bytes, one.predicted_bytes)]
    return [one.id, one.method, one.card, one.meter, str(one.gpus), *sizes, error]


def main() -> None:
    stale = []
    for name, text in pages().items():
        target = DOCS / name
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                target.write_text(text, encoding="utf-8")
                print(f"{name} written")
    if "--check" in sys.argv and stale:
        sys.exit(f"{', '.join(stale)} stale; run make accuracy")


if __name__ == "__main__":
    main()
