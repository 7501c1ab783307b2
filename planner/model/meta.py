"""EDGE: architectures without rules here, counted by transformers' own model code on the meta device.

Needs the extra ``vramplan[count]``; torch and transformers are imported only when a config needs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from planner.errors import InputError, UnsupportedError
from planner.model.count import count
from planner.model.families import Traits, build
from planner.model.interpret import quantized, stored_dtype, unknown_type
from planner.model.keys import Keys
from planner.model.spec import ModelSpec, Run


def can_count() -> bool:
    """True where torch and transformers are installed; neither is imported to find out."""
    return find_spec("torch") is not None and find_spec("transformers") is not None


def count_with_transformers(config: Mapping[str, Any], *, place: str) -> int:
    """Parameters of the model that transformers builds from this config, tied weights once.

    Raises UnsupportedError where torch or transformers is missing, or where transformers does not know the type.
    """
    model_type = str(config.get("model_type"))
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
    """A spec whose total is transformers' and whose blocks are taken to be Llama's, which a note says.

    What the Llama blocks do not account for is spread over the layers as ``extra_parameters``.
    """
    total = count_with_transformers(config, place=place)
    text = config.get("text_config")
    nested = isinstance(text, Mapping)
    keys = Keys(text if isinstance(text, Mapping) else config, str(config["model_type"]), place=place, nested=nested)
    try:
        spec = build(keys, Traits())
    except InputError as problem:
        raise UnsupportedError(
            f"{place}: model_type {keys.model_type!r} has no rules here and is not shaped like Llama "
            f"({problem.sentence.removeprefix(place + ': ')})"
        ) from None
    missing = total - count(spec).total
    block, layers = spec.runs[0].block, spec.layers
    first = replace(block, extra_parameters=missing // layers + missing % layers)
    rest = replace(block, extra_parameters=missing // layers)
    runs = (
        (Run(count=1, block=first), Run(count=layers - 1, block=rest)) if layers > 1 else (Run(count=1, block=first),)
    )
    note = (
        f"model_type {keys.model_type} has no rules here: its {total:,} parameters were counted by transformers, its "
        "activations are taken to be those of a Llama block"
    )
    return replace(
        spec, id=id, runs=runs, parameters=total, stored_dtype=stored_dtype(config),
        quantized=quantized(config, place), verified="transformers meta-device count", notes=(note,),
    )  # fmt: skip
