"""Catalogue shapes for the bench: a model's config with fewer layers, its ModelSpec, and the card as a Machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from planner.errors import InputError
from planner.hardware.catalogue import name_for_flags
from planner.hardware.identify import identify
from planner.hardware.machine import Machine
from planner.hardware.parse import parse_machine
from planner.model import fetch
from planner.model.catalogue import catalogue, closest_names, config_of
from planner.model.interpret import WRAPPERS, interpret
from planner.model.keys import SPELLINGS
from planner.model.spec import ModelSpec
from planner.units import GIB

Config = dict[str, Any]
LAYER_KEYS = ("num_hidden_layers", *SPELLINGS["num_hidden_layers"])
NULL_AS_ZERO = ("sliding_window", "q_lora_rank")  # TOML has no null
NOT_THE_SHAPE = ("quantization_config",)


def config_for(model: str, layers: int | None = None) -> Config:
    """The config.json keys of a catalogue model or local config file, cut to its first ``layers`` layers.

    Raises InputError for an unknown model, one whose text side is nested, or more layers than it has.
    """
    path = fetch.config_path(model)
    row = catalogue().by_name.get(model.lower())
    if path is None and row is None:
        close = closest_names(model)
        raise InputError(f"model {model!r} is not in the catalogue" + (f"; did you mean {close[0]}?" if close else ""))
    config = fetch.read_config(path) if path is not None else config_of(row.fields) if row else {}
    if "model" in config or config.get("model_type") in WRAPPERS:
        raise InputError(f"model {model!r} has a nested text side, which the bench cannot cut; name a text model")
    return _cut({key: value for key, value in config.items() if key not in NOT_THE_SHAPE}, layers, model)


def _cut(config: Config, layers: int | None, model: str) -> Config:
    key = next((name for name in LAYER_KEYS if name in config), None)
    if layers is None:
        return config
    if key is None or not 0 < layers <= config[key]:
        has = f"it has {config[key]}" if key else "its config does not say how many it has"
        raise InputError(f"layers {layers} of {model}: {has}")
    whole = config[key]
    cut = {name: value[:layers] if _is_per_layer(value, whole) else value for name, value in config.items()}
    return cut | {key: layers}


def _is_per_layer(value: Any, layers: int) -> bool:
    return isinstance(value, list) and len(value) == layers


def for_transformers(config: Config) -> Config:
    """The same keys as transformers' config classes take them."""
    return {key: None if key in NULL_AS_ZERO and value == 0 else value for key, value in config.items()}


def spec_of(config: Config, model: str) -> ModelSpec:
    """The ModelSpec that the planner reads from this config."""
    return interpret(config, id=model, place=model)


def card_word(name: str, total_bytes: int) -> str:
    """What ``--gpus`` calls the card that the driver names so: ``H200``, or its size where it is not known."""
    kind = identify(name, total_bytes)
    return name_for_flags(kind.id) if kind else f"{-(-total_bytes // GIB)}GB"


def machine_of(gpus: str, cap_gib: float | None = None) -> Machine:
    """The machine of ``--gpus``; under a cap, its card with the capacity of a card sold with that many GiB."""
    machine = parse_machine(gpus)
    if cap_gib is None:
        return machine
    capped = parse_machine(f"1x{cap_gib:g}GB").smallest
    cards = tuple(
        replace(gpu, capacity_bytes=capped.capacity_bytes, total_bytes=None, nominal_bytes=capped.nominal_bytes)
        for gpu in machine.gpus
    )
    return replace(machine, gpus=cards)
