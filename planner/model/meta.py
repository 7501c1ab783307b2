"""EDGE: architectures without rules here, counted by transformers' own model code on the meta device.

Needs the extra ``vramplan[count]``; torch and transformers are imported only when a config needs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from planner.errors import UnsupportedError
from planner.model.assumed import llama_like
from planner.model.interpret import ENCODER_DECODERS, unknown_type
from planner.model.spec import ModelSpec


def can_count() -> bool:
    """True where torch and transformers are installed; neither is imported to find out."""
    return find_spec("torch") is not None and find_spec("transformers") is not None


def count_with_transformers(config: Mapping[str, Any], *, place: str) -> int:
    """Parameters of the model that transformers builds from this config, tied weights once.

    Raises UnsupportedError where torch or transformers is missing, or where transformers does not know the type.
    """
    model_type = str(config.get("model_type"))
    if model_type in ENCODER_DECODERS:
        raise unknown_type(model_type, place)
    try:
        torch: Any = import_module("torch")
        transformers: Any = import_module("transformers")
    except ImportError:
        raise unknown_type(model_type, place) from None
    if model_type not in transformers.CONFIG_MAPPING:
        raise UnsupportedError(
            f"{place}: model_type {model_type!r} has no counting rules here and the installed transformers "
            "does not know it either",
            hint="a newer transformers may know it; remote code is never run to count a model",
        )
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    kind = "AutoModelForImageTextToText" if "vision_config" in config else "AutoModelForCausalLM"
    try:
        with torch.device("meta"):
            model = getattr(transformers, kind).from_config(transformers.CONFIG_MAPPING[model_type](**plain))
    except Exception as problem:  # whatever transformers raises for a config it cannot build
        reason = str(problem).strip().splitlines()[0]
        raise UnsupportedError(f"{place}: transformers cannot build {model_type!r}: {reason}") from None
    return int(sum(parameter.numel() for parameter in model.parameters()))


def spec_by_counting(config: Mapping[str, Any], *, id: str, place: str) -> ModelSpec:
    """A spec whose total is transformers' and whose blocks are taken to be Llama's, which a note says."""
    return llama_like(config, count_with_transformers(config, place=place), id=id, place=place)
