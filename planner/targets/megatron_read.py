"""The Megatron adapter's train.yaml back into a setup."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from planner.errors import InputError
from planner.memory.megatron import ENGINE
from planner.targets import llamafactory_read
from planner.targets.context import Reading
from planner.targets.llamafactory_settle import FILE_NAME
from planner.targets.megatron import SIZES
from planner.targets.schema import check_arguments, megatron_arguments
from planner.targets.yaml_text import dump_yaml, load_yaml
from planner.training import setup_from_mapping

HiddenOf = Callable[[str], int | None]
# Settings that change memory and that a setup cannot state: key -> the values without effect on its price.
UNPRICED: dict[str, tuple[Any, ...]] = {
    "cross_entropy_loss_fusion": (None, False),
    "fp8": (None,),
    "moe_layer_recompute": (None, False),
    "mtp_num_layers": (None, 0),
    "optimizer_cpu_offload": (None, False),
    "recompute_modules": (None,),
    "sequence_packing": (None, False),
    "virtual_pipeline_model_parallel_size": (None, 1),
}


def is_ours(values: Mapping[str, Any]) -> bool:
    """Whether a LLaMA-Factory file is one for the adapter: it states one of its arguments."""
    return not set(megatron_arguments()).isdisjoint(values)


def read(files: Mapping[str, str], *, hidden_of: HiddenOf | None = None, name: str = FILE_NAME) -> Reading:
    """The setup that ``files`` state. Raises InputError for keys and values that neither parser knows."""
    values = load_yaml(files[name], place=name)
    check_arguments(values, place=name, more=megatron_arguments())
    if values.get("recompute_granularity") == "selective":
        raise InputError(f"{name}: recompute_granularity selective is not priced; choose full, or leave it out")
    theirs = {key: value for key, value in values.items() if key not in megatron_arguments()}
    plain = {**theirs, "disable_gradient_checkpointing": values.get("recompute_granularity") is None}
    rest = {each: text for each, text in files.items() if each != name} | {name: dump_yaml(plain)}
    reading = llamafactory_read.read(rest, hidden_of=hidden_of, name=name)
    own = {field: int(values.get(argument) or 1) for field, argument in SIZES.items()}
    fields = reading.setup.to_dict() | {"engine": ENGINE, "parallelism": "zero1", "param_dtype": None} | own
    setup = setup_from_mapping(fields, place=name)
    return Reading(setup=setup, warnings=(*reading.warnings, *_warnings(values)))


def _warnings(values: Mapping[str, Any]) -> tuple[str, ...]:
    found = [
        f"{key}: {values[key]} is not priced: the estimate is made without it"
        for key, neutral in UNPRICED.items()
        if values.get(key) not in neutral
    ]
    if not values.get("use_distributed_optimizer"):
        found.append("use_distributed_optimizer: off keeps all states on every rank; priced as if it were on")
    if int(values.get("tensor_model_parallel_size") or 1) > 1 and not values.get("sequence_parallel"):
        found.append("sequence_parallel: off keeps whole layer inputs on every rank; priced as if it were on")
    return tuple(found)
