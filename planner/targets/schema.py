"""Argument names of LLaMA-Factory 0.9.5: keys, types, choices and defaults, from rules/llamafactory_args.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from planner.errors import InputError, nearest, unknown_choice
from planner.rulebook.load import read_rules
from planner.rulebook.paths import rules_dir

REMEDIES = {
    "evaluation_strategy": "it is called eval_strategy since transformers 4.46",
    "max_seq_length": "LLaMA-Factory calls it cutoff_len",
    "gradient_checkpointing_enable": "LLaMA-Factory checkpoints unless disable_gradient_checkpointing is true",
    "deepspeed_config": "DeepSpeed's settings go into a JSON file named by the key deepspeed",
    "cpu_offload": "offload is set in the JSON file named by the key deepspeed",
    "group_by_length": "transformers 5 calls it train_sampling_strategy: group_by_length",
}


@lru_cache(maxsize=1)
def arguments() -> dict[str, dict[str, Any]]:
    """Argument name to its row: group, type, default and, where limited, choices."""
    raw = json.loads((rules_dir() / "llamafactory_args.json").read_text(encoding="utf-8"))
    rows: dict[str, dict[str, Any]] = raw["arguments"]
    return rows


def default_of(key: str) -> Any:
    """What the engine takes when the key is absent."""
    return arguments()[key]["default"]


@lru_cache(maxsize=1)
def megatron_arguments() -> dict[str, dict[str, Any]]:
    """What the Megatron adapter adds, from rules/megatron_args.toml."""
    rows: dict[str, dict[str, Any]] = dict(read_rules("megatron_args")["argument"])
    return rows


def check_arguments(values: dict[str, Any], *, place: str, more: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Refuse what LLaMA-Factory's argument parser refuses: unknown keys, wrong types, wrong choices. ``more`` are
    arguments that an adapter adds.

    Raises InputError naming the first offending key, its value and the nearest valid one.
    """
    known: dict[str, Mapping[str, Any]] = {**arguments(), **(more or {})}
    for key, value in values.items():
        if key not in known:
            raise _unknown_key(key, place, known)
        if value is not None:
            _check_value(key, value, known[key], place)


def _unknown_key(key: str, place: str, known: Mapping[str, Any]) -> InputError:
    close = nearest(key, known)
    remedy = REMEDIES.get(key) or (f"did you mean {close[0]}?" if close else "see `llamafactory-cli train -h`")
    return InputError(f"{place}: {key!r} is no argument of LLaMA-Factory 0.9.5; {remedy}")


def _check_value(key: str, value: Any, row: Mapping[str, Any], place: str) -> None:
    if row["type"] == "choice":
        if value not in row["choices"]:
            raise unknown_choice(str(value), f"{place}: {key}", row["choices"])
    elif not _is_of_type(value, row["type"], key):
        raise InputError(f"{place}: {key} {value!r} is not {_WORDS[row['type']]}")


_WORDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text", "list": "a list"}
# Declared as text or flag by the dataclass, and documented to take more.
_ALSO = {"report_to": list, "deepspeed": dict, "fsdp_config": dict, "include_num_input_tokens_seen": str, "fsdp": list}


def _is_of_type(value: Any, kind: str, key: str) -> bool:
    if kind in ("any", "list") or isinstance(value, _ALSO.get(key, ())):
        return True
    if kind == "bool":
        return isinstance(value, bool) or str(value).lower() in ("true", "false")
    if isinstance(value, bool):
        return kind == "str" and key == "fsdp"
    if kind in ("int", "float"):
        return _is_number(value, whole=kind == "int")
    return isinstance(value, str | int | float | list)


def _is_number(value: Any, *, whole: bool) -> bool:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return False
    return not whole or number.is_integer()
