"""Settings changed for one attempt, as words behind the engine's command: the plan's files stay as they are. Pure.

LLaMA-Factory takes ``key=value`` (OmegaConf), the transformers script ``section.key=value``; both read the value as
JSON, or as the text that it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planner.errors import InputError, UnsupportedError
from planner.targets import TARGETS, Target, accelerate, deepspeed
from planner.targets.yaml_text import dump_yaml, load_yaml

Values = dict[str, Any]
SIDE_FILES = (deepspeed.FILE_NAME, accelerate.FILE_NAME)
_ABSENT = object()


@dataclass(frozen=True, kw_only=True)
class Changed:
    """What differs between two setups' files: keys of the trainer's own file, and files beside it that are new."""

    values: Values
    files: dict[str, str]


def settings_of(text: str, name: str) -> Values:
    """A trainer's file as key to value; the sections of a JSON file are joined by dots."""
    if name.endswith(".json"):
        return _joined(json.loads(text), sections=1)
    return dict(load_yaml(text, place=name))


def _joined(values: Mapping[str, Any], *, sections: int, before: str = "") -> Values:
    flat: Values = {}
    for key, value in values.items():
        if isinstance(value, dict) and sections:
            flat |= _joined(value, sections=sections - 1, before=f"{before}{key}.")
        else:
            flat[before + key] = value
    return flat


def with_settings(text: str, name: str, changes: Mapping[str, Any]) -> str:
    """The trainer's file as the engine will see it with these changes, so that what runs can be priced."""
    if not changes:
        return text
    if not name.endswith(".json"):
        return dump_yaml({**load_yaml(text, place=name), **changes})
    values = json.loads(text)
    for key, value in changes.items():
        section, _, inner = key.partition(".")
        if not inner or not isinstance(values.get(section), dict):
            raise InputError(f"--set {key}: {name} has no such section; sections: {', '.join(values)}")
        values[section][inner] = value
    return json.dumps(values, indent=2) + "\n"


def changed_between(before: Mapping[str, str], after: Mapping[str, str], target: Target) -> Changed:
    """What turns the files ``before`` into ``after``. Raises UnsupportedError where words cannot say it."""
    name = target.file_name
    old, new = settings_of(before[name], name), settings_of(after[name], name)
    values = {key: value for key, value in new.items() if old.get(key, _ABSENT) != value}
    values |= {key: None for key in old if key not in new}
    if name.endswith(".json") and any("." not in key for key in values):
        raise UnsupportedError(f"{name} cannot be told {', '.join(key for key in values if '.' not in key)} in words")
    files = {each: after[each] for each in SIDE_FILES if each in after and before.get(each) != after[each]}
    return Changed(values=values, files=files)


def words_of(changes: Mapping[str, Any]) -> tuple[str, ...]:
    """``("max_steps=10", "deepspeed=null")``: each change as one word."""
    return tuple(f"{key}={_said(value)}" for key, value in changes.items())


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def parse_settings(pairs: tuple[str, ...]) -> Values:
    """``--set key=value`` words as key to value. Raises InputError for one without a sign."""
    values: Values = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not (key and sign):
            raise InputError(f"--set {pair!r} is not key=value, such as max_steps=100")
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = text
    return values


def target_of(engine: str) -> Target:
    """The target of an engine. Raises UnsupportedError naming those that there are."""
    if engine not in TARGETS:
        raise UnsupportedError(f"engine {engine} cannot be run from here; engines that can: {', '.join(TARGETS)}")
    return TARGETS[engine]
