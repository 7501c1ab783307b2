"""The longest batch first: the plan's own files on made-up samples of full length, for two steps. Pure.

Two steps, because the optimizer's states are there from the second one on; two micro batches a step where the plan
accumulates, because gradients then live through the next forward pass; an evaluation batch and a save, because either
may hold more than a step. GRPO generates for all micro batches of a step at once, so its accumulation stays, and
completions are made to reach their length.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from planner.data.source import demo_source
from planner.memory.generation import completion_tokens
from planner.training import TrainingSetup

TRAIN, EVAL = "vramplan_longest", "vramplan_longest_eval"
STEPS = 2
OUTPUT = "output"
# Words of one letter and a space: no tokenizer makes fewer tokens of them than words.
_WORDS = ("a", "b", "c", "d", "e", "f", "g", "h")


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """Files of a folder beside the plan's, the settings that differ from the plan's, and the setup that this makes."""

    files: dict[str, str]
    overrides: dict[str, Any]
    setup: TrainingSetup


def can_rehearse(setup: TrainingSetup) -> bool:
    """False where no rehearsal is known: TRL's reward trainer drops samples that are longer than the length, and how
    many tokens the made-up ones become is the tokenizer's to say (trl 1.16 trainer/reward_trainer.py).
    """
    return setup.engine in _SETTINGS and (setup.engine, setup.stage) != ("trl", "rm")


def rehearsal(setup: TrainingSetup, texts: Mapping[str, str], *, ranks: int) -> Rehearsal | None:
    """The rehearsal of a setup whose trainer reads ``texts``; None where none is known."""
    if not can_rehearse(setup):
        return None
    settings = _SETTINGS[setup.engine]
    accumulation = setup.gradient_accumulation_steps
    if setup.stage != "grpo":
        accumulation = min(2, accumulation)
    count = STEPS * accumulation * setup.micro_batch_size * ranks
    files = dict(texts) | _data(setup, count, (setup.eval_micro_batch_size or 0) * ranks)
    short = setup.but(gradient_accumulation_steps=accumulation)
    overrides = settings(setup, accumulation) | _unmixed(texts)
    return Rehearsal(files=files, overrides=overrides, setup=short)


def _unmixed(texts: Mapping[str, str]) -> dict[str, Any]:
    """One made-up set takes the place of several, of which LLaMA-Factory would want probabilities of each."""
    mixed = "interleave_probs:" in texts.get("train.yaml", "")
    return {"mix_strategy": "concat", "interleave_probs": None} if mixed else {}


def _data(setup: TrainingSetup, samples: int, held_out: int) -> dict[str, str]:
    demo = demo_source(setup.stage)
    entry = next(iter(demo.info.values()))
    rows = json.loads(next(iter(demo.texts.values())))
    long = [_stretched(row, setup) for row in rows]
    files = {}
    info = {}
    for name, count in ((TRAIN, samples), (EVAL, max(held_out, 1))):
        file = f"data/{name}.json"
        files[file] = json.dumps([long[number % len(long)] for number in range(count)])
        info[name] = dict(entry) | {"file_name": file}
    return files | {"dataset_info.json": json.dumps(info, indent=2)}


def _stretched(row: Mapping[str, Any], setup: TrainingSetup) -> dict[str, Any]:
    """A demo sample whose answers alone fill the length; questions stay short, so that there is something to learn.

    GRPO writes its answers itself: there the questions are long, and its script cuts them to their share.
    """
    filled = {"instruction"} if setup.stage == "grpo" else {"output", "text", "chosen", "rejected"}
    return {key: _long(setup.seq_len) if key in filled else value for key, value in row.items()}


def _long(tokens: int) -> str:
    return " ".join(_WORDS[number % len(_WORDS)] for number in range(tokens + 16))


def _steps(setup: TrainingSetup, accumulation: int) -> dict[str, Any]:
    """What every engine calls by transformers' names."""
    settings: dict[str, Any] = {
        "max_steps": STEPS,
        "gradient_accumulation_steps": accumulation,
        "logging_steps": 1,
        "save_steps": STEPS,
        "save_total_limit": 1,
        "output_dir": OUTPUT,
        "report_to": "none",
    }
    evaluates = setup.eval_micro_batch_size is not None
    return settings | ({"eval_strategy": "steps", "eval_steps": STEPS} if evaluates else {})


def _llamafactory(setup: TrainingSetup, accumulation: int) -> dict[str, Any]:
    settings = _steps(setup, accumulation)
    settings |= {"dataset_dir": ".", "dataset": TRAIN, "overwrite_output_dir": True}
    return settings | ({"val_size": 0.0, "eval_dataset": EVAL} if setup.eval_micro_batch_size is not None else {})


def _script(setup: TrainingSetup, accumulation: int) -> dict[str, Any]:
    """The engines whose scripts lie in the folder: settings in sections."""
    settings = {f"arguments.{key}": value for key, value in _steps(setup, accumulation).items()}
    settings["data.dataset"] = TRAIN
    evaluates = setup.eval_micro_batch_size is not None
    return settings | ({"data.val_size": 0.0, "data.eval_dataset": EVAL} if evaluates else {})


def _trl(setup: TrainingSetup, accumulation: int) -> dict[str, Any]:
    settings = _steps(setup, accumulation)
    if setup.stage == "grpo":  # no completion ends before its length
        settings["generation_kwargs"] = {"min_new_tokens": completion_tokens(setup.seq_len)}
    return settings


# TRL's script takes the first set of dataset_info.json to train on and the second to evaluate.
_SETTINGS: dict[str, Callable[[TrainingSetup, int], dict[str, Any]]] = {
    "llamafactory": _llamafactory,
    "transformers": _script,
    "embedded": _script,
    "trl": _trl,
}
