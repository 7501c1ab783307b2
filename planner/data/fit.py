"""A plan for the lengths that the data has, not only for the longest that is allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from planner.data.lengths import Lengths, advice, measure
from planner.model.spec import ModelSpec
from planner.plan.plan import Plan, Request


def with_lengths(request: Request, spec: ModelSpec, make: Callable[[Request], Plan]) -> Plan:
    """The plan of a request with data. Where no sample is as long as ``seq_len``, the longest one is the length.

    That cuts nothing, because every sample was counted with the model's own tokenizer; else the lengths are advice.
    """
    found = measure(str(request.data), request.stage, spec, request.mixing)
    if found is None:
        unread = "the lengths of the data are not known: reading it needs pyarrow (pip install 'vramplan[data]')"
        plan = make(request)
        return replace(plan, warnings=(*plan.warnings, unread))
    fitted = fitted_length(request, found)
    plan = make(replace(request, seq_len=fitted or request.seq_len))
    said = (
        (_shortened(found, fitted, request.seq_len),)
        if fitted
        else advice(found, request.seq_len, packing=_packs(request))
    )
    return replace(
        plan, data=found, assumptions=(*plan.assumptions, _counted(found, request)), warnings=(*plan.warnings, *said)
    )


def fitted_length(request: Request, found: Lengths) -> int | None:
    """The longest sample's length where it is shorter than what was asked for; packed samples fill any length."""
    longest = found.longest
    return longest if longest is not None and longest < request.seq_len and not _packs(request) else None


def _packs(request: Request) -> bool:
    return bool(request.pinned.get("packing", request.stage == "pt"))


def _shortened(found: Lengths, length: int, asked: int) -> str:
    return (
        f"no sample of the data is longer than {length} tokens, template included, so the plan is for {length} "
        f"in place of {asked}: that cuts nothing"
    )


def _counted(found: Lengths, request: Request) -> str:
    if found.mixture:
        share = "all" if found.whole else "some of each data set's"
        return f"lengths of {share} samples are counted by {found.counted_by}; {_mixed(found, request)}"
    share = (
        "all" if found.whole else f"{len(found.lengths):,} of" + (f" {found.samples:,}" if found.samples else " the")
    )
    return f"lengths of {share} samples are counted by {found.counted_by}"


def _mixed(found: Lengths, request: Request) -> str:
    """What several data sets make of an epoch; drawn by chance, its samples are what is to be expected."""
    parts = ", ".join(f"{part.share:.0%} {part.name}" for part in found.mixture)
    number = f", about {found.samples:,} samples" if found.samples and request.interleave_probs else ""
    return f"an epoch ({request.mix_strategy}) is {parts}{number}"
