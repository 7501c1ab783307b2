"""What an engine says about its progress -> Progress. Pure: lines in, records out.

``trainer_log.jsonl`` is LLaMA-Factory's (LogCallback, 0.9.5) and the embedded engine's; plain transformers and TRL
print a Python dict a log step (values are strings since transformers 5), and tqdm's bar counts the steps.
"""

from __future__ import annotations

import ast
import json
import math
import re
from dataclasses import dataclass, field, replace
from typing import Any

from planner.run.records import LOSSES_KEPT, Progress
from planner.units import GIB

_DICT = re.compile(rb"\{'[^{}\r\n]*'[^{}\r\n]*\}")
_BAR = re.compile(rb"(\d+)/(\d+) \[[0-9:?]+<")
_RATES = (b"it/s", b"s/it")
_KNOWN = ("loss", "eval_loss", "learning_rate", "epoch", "grad_norm", "train_loss")
_MOST = re.compile(rb'"max_memory_allocated_bytes": (\d+)')
NON_FINITE_IN_A_ROW = 3


@dataclass
class Tracker:
    """Gathers progress; ``marks`` counts signs of life, ``sick`` logged losses in a row that are no number."""

    now: Progress = field(default_factory=Progress)
    marks: int = 0
    sick: int = 0
    first_step: int | None = None
    has_log: bool = False
    _first: tuple[int, float] | None = None
    _bar: tuple[int, int] | None = None
    _bars: dict[int, int] = field(default_factory=dict)  # every bar's newest state: of how many -> done
    _waiting: dict[int, int] = field(default_factory=dict)  # the same when a loss was printed

    def log_line(self, text: str, at: float) -> dict[str, Any] | None:
        """One line of trainer_log.jsonl; None where it is none (half a line, or something else)."""
        try:
            entry = json.loads(text)
        except ValueError:
            return None
        if not isinstance(entry, dict) or not isinstance(entry.get("current_steps"), int):
            return None
        if not self.has_log:  # what was printed of the same steps would count twice
            self._begin_log(entry.get("total_steps"))
        stepped = self._stepped(entry["current_steps"], entry.get("total_steps"), at)
        if self.first_step is not None and 0 < entry["current_steps"] < self.first_step:
            self.first_step = entry["current_steps"]  # the bar was read first, and had gone on
        self.now = replace(self.now, **stepped, **self._stated(entry))
        return entry

    def _begin_log(self, total: Any) -> None:
        self.has_log, self.sick, self._waiting = True, 0, {}
        self.now = replace(self.now, losses=())
        if isinstance(total, int) and self.now.total_steps not in (None, total):  # another bar was taken for the run's
            self.now = replace(self.now, step=None, total_steps=total, seconds_per_step=None)
            self.first_step = self._first = None

    def output(self, chunk: bytes, at: float) -> list[dict[str, Any]]:
        """Whole lines of the engine's output, in their order: dicts that it printed, and the states of its bars."""
        found = []
        signs = [*_DICT.finditer(chunk), *(_BAR.finditer(chunk) if any(rate in chunk for rate in _RATES) else ())]
        for sign in sorted(signs, key=re.Match.start):
            entry = _printed(sign[0]) if sign.re is _DICT else None
            if entry:
                found.append(entry)
                self._told(entry)
            elif sign.re is _BAR:
                self._count(int(sign[1]), int(sign[2]), at)
        most = _MOST.findall(chunk)
        if most:
            self.now = replace(self.now, allocated_bytes=_most(int(most[-1]), self.now.allocated_bytes))
        return found

    def _told(self, entry: dict[str, Any]) -> None:
        self.marks += 1
        if self.has_log:
            return
        self.now = replace(self.now, **self._stated(entry))
        if self.now.total_steps is None and "loss" in entry:
            self._waiting = dict(self._bars)

    def _count(self, done: int, of: int, at: float) -> None:
        """A bar counts steps where it has as many as the run; others (data, shards, evaluation) are signs of life.

        Where nobody says how many there are, it is the bar that had begun before a loss was printed, and goes on.
        """
        if (done, of) != self._bar:
            self.marks += 1
            self._bar = (done, of)
        self._bars[of] = done
        if self._waiting.get(of, done) < done:
            self._waiting, self.now = {}, replace(self.now, total_steps=of)
        if self.now.total_steps is not None and of == self.now.total_steps:
            self.now = replace(self.now, **self._stepped(done, of, at))

    def _stepped(self, step: int, total: Any, at: float) -> dict[str, Any]:
        """What a step changes; nothing where it is none that is new."""
        if self.now.step is not None and step <= self.now.step:
            return {}
        self.marks += 1
        if self.first_step is None and step > 0:
            self.first_step = step
        if self._first is None or at == self._first[1]:
            self._first = (step, at)  # the last of those that were read at the first look
        known = total if isinstance(total, int) else self.now.total_steps
        return {"step": step, "total_steps": known, "seconds_per_step": self._pace(step, at)}

    def _pace(self, step: int, at: float) -> float | None:
        if self._first is None or step <= self._first[0] or at <= self._first[1]:
            return self.now.seconds_per_step
        return (at - self._first[1]) / (step - self._first[0])

    def _stated(self, entry: dict[str, Any]) -> dict[str, Any]:
        """The fields that an entry states; a loss that is no number counts as sick, and the last good one stays."""
        now = self.now
        loss = _number(entry.get("loss"))
        changes: dict[str, Any] = {
            "eval_loss": _number(entry.get("eval_loss")),
            "learning_rate": _number(entry.get("lr", entry.get("learning_rate"))),
            "epoch": _number(entry.get("epoch")),
            "tokens_per_s": _number(entry.get("throughput")),
            "allocated_bytes": _most(_gib(entry.get("vram_allocated")), now.allocated_bytes),
            "reserved_bytes": _most(_gib(entry.get("vram_reserved")), now.reserved_bytes),
        }
        if "memory" in entry:
            changes["phases"] = _phases(entry["memory"], now.phases)
        if loss is not None and math.isfinite(loss):
            changes |= {"loss": loss, "losses": (*now.losses, loss)[-LOSSES_KEPT:]}
        if loss is not None:
            self.sick = 0 if math.isfinite(loss) else self.sick + 1
        return {name: value for name, value in changes.items() if value is not None}


def _phases(told: Any, known: dict[str, int]) -> dict[str, int]:
    """The most of each phase: the embedded engine logs ``{"backward": {"allocated_bytes": ...}}``."""
    most = dict(known)
    for phase, sizes in told.items() if isinstance(told, dict) else ():
        size = sizes.get("allocated_bytes") if isinstance(sizes, dict) else None
        if isinstance(size, int) and size > 0:
            most[str(phase)] = max(size, most.get(str(phase), 0))
    return most


def _printed(text: bytes) -> dict[str, Any] | None:
    """A dict as transformers prints it; other dicts in the output are none of ours."""
    try:
        entry = ast.literal_eval(
            text.decode("utf-8", "replace").replace(": nan", ": 'nan'").replace(": inf", ": 'inf'")
        )
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    is_ours = isinstance(entry, dict) and any(name in entry for name in _KNOWN)
    return entry if is_ours else None


def _number(value: Any) -> float | None:
    try:
        return None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def _gib(value: Any) -> int | None:
    """Bytes of a peak in GiB; on a machine without a GPU it is logged as zero, which measures nothing."""
    number = _number(value)
    return int(number * GIB) if number is not None and math.isfinite(number) and number > 0 else None


def _most(new: int | None, old: int | None) -> int | None:
    return max((each for each in (new, old) if each is not None), default=None)
