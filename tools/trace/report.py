"""Turns a ledger into one JSON row, and into a timeline that a person can read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from ledger import Birth, Event, Ledger

VIEWS = {"view", "t", "transpose", "expand", "unsqueeze", "squeeze", "slice", "detach", "alias"}
VIEWS |= {"_unsafe_view", "permute", "select", "split", "unbind"}
BLOCK = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)(?:\.| |$)")
LAST = 1  # the second step: optimizer states exist from its start


def summary(ledger: Ledger, model: torch.nn.Module) -> dict[str, Any]:
    """Peak and per-phase peaks of both steps, raw and rounded, and what was alive at the peak."""
    raw, up = ledger.peaks(), ledger.peaks(round_up=True)
    phase = max(raw, key=lambda name: raw[name].nbytes)
    second = {name: peak for name, peak in up.items() if name.split()[-1].split(".")[0] == str(LAST)}
    resident = sum(p.nbytes for p in ledger.births.values() if p.phase == "load")
    return {
        "peak_allocated_bytes": max(peak.nbytes for peak in up.values()),
        "peak_requested_bytes": raw[phase].nbytes,
        "peak_phase": phase,
        "phase_peak_bytes": {name: peak.nbytes for name, peak in up.items()},
        "steady_peak_bytes": max(peak.nbytes for peak in second.values()),
        "steady_phase": max(second, key=lambda name: second[name].nbytes),
        "resident_bytes": resident,
        "end_of_forward_bytes": ledger.live_at_mark("phase backward 1.0"),
        "start_of_forward_bytes": ledger.live_at_mark("phase forward 1.0"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "alive_at_peak": [_line(b) for b in ledger.live_at(raw[phase].at)[:10] if b.phase != "load"],
    }


def _line(birth: Birth) -> dict[str, Any]:
    where = birth.where.split(".", 2)[-1] if birth.where.startswith("model.") else birth.where
    return {
        "bytes": birth.nbytes,
        "shape": list(birth.shape),
        "dtype": birth.dtype,
        "op": birth.op,
        "where": where,
        "phase": birth.phase,
    }


def segments(ledger: Ledger, step: int = LAST) -> dict[str, Any]:
    """Peaks of one step's stretches: embedding, blocks and head, forward and backward, absolute and per block.

    A stretch belongs to the block whose operations run in it. ``block_kept``: live bytes from one block's start to
    the next one's. ``block_*_window``: the highest point of a block's stretch above the bytes alive at its start.
    """
    peaks: dict[str, int] = {}
    windows: dict[tuple[str, int], list[int]] = {}
    starts: dict[int, int] = {}
    at: dict[str, str] = {}
    for _, event, live in ledger.curve():
        phase, _, number = event.phase.partition(" ")
        if phase not in ("forward", "backward") or number != f"{step}.0":
            continue
        found = BLOCK.search(event.where) if event.kind == "op" else None
        if found:
            at[phase] = found[1]
        elif phase not in at:
            at[phase] = "before"
        elif event.kind == "op" and at[phase].isdigit() and event.where.strip() and event.where[0] not in "?<":
            at[phase] = "after"
        here = at[phase]
        name = {"before": ("embed", "head"), "after": ("head", "embed")}.get(here, ("blocks", "blocks"))
        key = f"{phase} {name[phase == 'backward']}"
        peaks[key] = max(peaks.get(key, 0), live)
        if here.isdigit():
            window = windows.setdefault((phase, int(here)), [live, live])
            window[1] = max(window[1], live)
            if phase == "forward":
                starts.setdefault(int(here), live)
    ordered = [starts[index] for index in sorted(starts)]
    return {
        "segment_peak_bytes": peaks,
        "block_kept_bytes": [later - earlier for earlier, later in pairwise(ordered[1:])],
        "block_forward_window_bytes": _windows(windows, "forward"),
        "block_backward_window_bytes": _windows(windows, "backward"),
    }


def _windows(windows: dict[tuple[str, int], list[int]], phase: str) -> list[int]:
    return [window[1] - window[0] for (name, _), window in sorted(windows.items()) if name == phase]


def kept(ledger: Ledger, block: int, step: int = LAST) -> Iterator[str]:
    """The storages that one block's forward leaves alive for backward: bytes, what they are, who made them."""
    end = next(i for i, event in enumerate(ledger.events) if event.text == f"phase backward {step}.0")
    mine = re.compile(rf"(?:^|\.)(?:layers|h)\.{block}(?:\.|$)(.*)")
    for birth in ledger.live_at(end):
        found = mine.search(birth.where)
        if found and birth.phase == f"forward {step}.0":
            yield f"{birth.nbytes:>14,} {birth.dtype}{list(birth.shape)} {birth.op} @{found[1]}"


def timeline(ledger: Ledger, *, step: int = LAST, phases: tuple[str, ...] = ()) -> Iterator[str]:
    """Every operation of one step with live bytes before and after, and each birth and death by number."""
    for _, event, live in ledger.curve():
        number = event.phase.split()[-1].split(".")[0]
        if number != str(step) or (phases and event.phase.split()[0] not in phases):
            continue
        if event.kind != "op" or event.text.split("(")[0].split(".")[0] not in VIEWS:
            yield _timeline_line(ledger, event, live)


def _timeline_line(ledger: Ledger, event: Event, live: int) -> str:
    if event.kind == "op":
        return f"{live:>16,}  {event.text}  @{event.where}"
    if event.kind == "mark":
        return f"{live:>16,}  == {event.text}"
    if event.kind == "spike":
        return f"{live:>16,}      ^ {event.nbytes:,} {event.text}"
    birth = ledger.births[event.number]
    sign = "+" if event.kind == "birth" else "-"
    what = f"{birth.dtype}{list(birth.shape)} {birth.op} @{birth.where}"
    return f"{live:>16,}      {sign} #{birth.number} {birth.nbytes:,} {what}"
