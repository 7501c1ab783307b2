"""Architectures without rules here: their counted total, with blocks taken to be Llama's, and a note that says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from planner.errors import InputError, UnsupportedError
from planner.model.count import count
from planner.model.families import Traits, build
from planner.model.interpret import quantized, stored_dtype
from planner.model.keys import Keys
from planner.model.spec import ModelSpec, Run


def llama_like(config: Mapping[str, Any], total: int, *, id: str, place: str) -> ModelSpec:
    """A spec of ``total`` parameters; what the Llama blocks do not account for is spread over the layers.

    Raises UnsupportedError where the config lacks the widths that a Llama block has.
    """
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
    spec = replace(spec, tied_embeddings=bool(config.get("tie_word_embeddings", spec.tied_embeddings)))
    note = (
        f"model_type {config['model_type']} has no rules here: its {total:,} parameters are counted, its activations "
        "are taken to be those of a Llama block"
    )
    return replace(
        spec, id=id, runs=_with_the_rest(spec, total), parameters=total, stored_dtype=stored_dtype(config),
        quantized=quantized(config, place), verified="transformers meta-device count", assumed_blocks=True,
        notes=(note,),
    )  # fmt: skip


def _with_the_rest(spec: ModelSpec, total: int) -> tuple[Run, ...]:
    missing = total - count(spec).total
    block, layers = spec.runs[0].block, spec.layers
    first = replace(block, extra_parameters=missing // layers + missing % layers)
    rest = replace(block, extra_parameters=missing // layers)
    return (
        (Run(count=1, block=first), Run(count=layers - 1, block=rest)) if layers > 1 else (Run(count=1, block=first),)
    )
