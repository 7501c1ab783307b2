"""Named values that conditions in rules/*.toml read: the setup's fields and what follows from them.

A name is a field of the setup (``method``), a derived value (``deepspeed``), something of the machine or the
model (``machine.has_bf16``, ``model.layers``), a version (``versions.torch``) or a key of an engine's own file
(``config.streaming``). None is unknown, and a condition on something unknown does not hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from planner.hardware.machine import Machine
from planner.memory.kernels import sdpa_in_tiles
from planner.model.spec import Block, ModelSpec
from planner.rulebook.load import engine_rows
from planner.training import FIELD_NAMES, Targets, TrainingSetup

_GEFORCE = re.compile(r"(?:geforce\s*)?rtx\s*(\d\d)\d\d", re.IGNORECASE)
_PROFESSIONAL = re.compile(r"quadro|ada generation|rtx\s*pro|rtx\s*[4-6]000|rtx\s*a\d", re.IGNORECASE)


class Facts:
    """Looks values up by name, each computed once. ``config`` is an engine's own file, where one is judged."""

    __slots__ = ("_known", "config", "machine", "setup", "spec")

    def __init__(
        self,
        setup: TrainingSetup,
        spec: ModelSpec | None,
        machine: Machine | None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.setup = setup
        self.spec = spec
        self.machine = machine
        self.config = config
        self._known: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """The value behind a name; None if it is unknown."""
        known = self._known
        try:
            return known[name]
        except KeyError:
            value = known[name] = self._compute(name)
            return value

    def _compute(self, name: str) -> Any:
        derive = DERIVED.get(name)
        if derive is not None:
            return derive(self)
        if name.startswith("config."):
            return self._config(name[7:])
        if name.startswith("versions."):
            return self.setup.versions.get(name[9:])
        return getattr(self.setup, name)

    def _config(self, key: str) -> Any:
        if self.config is None:
            return None
        return True if key == "is_file" else self.config.get(key)


def _world(facts: Facts) -> int | None:
    return facts.machine.world_size if facts.machine else None


def _parallelism(facts: Facts) -> str:
    """The contract's default: none on one GPU, ddp on several."""
    return facts.setup.parallelism or ("ddp" if (_world(facts) or 1) > 1 else "none")


def _model_parallel(facts: Facts) -> int:
    setup = facts.setup
    return setup.tensor_parallel * setup.pipeline_parallel * setup.context_parallel


def _pure_bf16(facts: Facts) -> bool:
    """LLaMA-Factory's pure_bf16: trained weights held in bf16 (BAdam holds them so by itself)."""
    setup = facts.setup
    return setup.param_dtype == "bf16" and not setup.is_adapter and setup.method != "badam"


def _capability(facts: Facts) -> tuple[int, int] | None:
    """The lowest compute capability; None if any card's is unknown."""
    if facts.machine is None:
        return None
    known = [gpu.compute_capability for gpu in facts.machine.gpus]
    return None if None in known else min(found for found in known if found)


def _has_bf16(facts: Facts) -> bool | None:
    if facts.machine is None:
        return None
    answers = [gpu.has_bf16 for gpu in facts.machine.gpus]
    if False in answers:
        return False
    return None if None in answers else True


def _kind(facts: Facts, name: str) -> Any:
    kind = facts.machine.smallest.kind if facts.machine else None
    return getattr(kind, name) if kind else None


def _geforce_series(facts: Facts) -> int | None:
    """40 for a GeForce RTX 4090; None for cards that are no GeForce."""
    name = _kind(facts, "name") or ""
    found = None if _PROFESSIONAL.search(name) else _GEFORCE.search(name)
    return int(found[1]) if found else None


def _first_block(facts: Facts) -> Block | None:
    return facts.spec.runs[0].block if facts.spec and facts.spec.runs else None


def _attention(facts: Facts, name: str) -> Any:
    block = _first_block(facts)
    return getattr(block.attention, name) if block else None


def _spec(name: str) -> Callable[[Facts], Any]:
    return lambda facts: getattr(facts.spec, name) if facts.spec else None


def _sdpa_in_tiles(facts: Facts) -> bool:
    return facts.spec is None or sdpa_in_tiles(facts.setup, facts.spec, facts.machine)


def _length_over_positions(facts: Facts) -> int | None:
    """How many times the model's own positions the samples are long, rounded down."""
    positions = facts.spec.max_positions if facts.spec else None
    return facts.setup.seq_len // positions if positions and facts.setup else None


def _machine(name: str) -> Callable[[Facts], Any]:
    return lambda facts: getattr(facts.machine, name) if facts.machine else None


def _quantized(name: str) -> Callable[[Facts], Any]:
    def look(facts: Facts) -> Any:
        kept = facts.spec.quantized if facts.spec else None
        return getattr(kept, name) if kept else None

    return look


def _engine_has(kind: str, field: str) -> Callable[[Facts], bool | None]:
    """Whether the engine's row lists the setup's value of a field; None for an engine without a row."""

    def look(facts: Facts) -> bool | None:
        row = engine_rows().get(facts.setup.engine)
        return facts.get(field) in row[kind] if row is not None else None

    return look


def _mixed(facts: Facts) -> bool | None:
    if facts.machine is None:
        return None
    return len({(gpu.name, gpu.total_bytes) for gpu in facts.machine.gpus}) > 1


def _layers_over_freeze(facts: Facts) -> int | None:
    return facts.spec.layers % max(1, facts.setup.freeze_trainable_layers) if facts.spec else None


def _kv_heads_over_tensor(facts: Facts) -> int | None:
    heads = _attention(facts, "kv_heads")
    return heads % facts.setup.tensor_parallel if heads else None


def _smallest_target_width(facts: Facts) -> int | None:
    """Elements of the narrowest side of any module that LoRA's targets name; routers are left out."""
    spec, setup = facts.spec, facts.setup
    return _narrowest(spec, setup.lora_target) if spec and setup.is_adapter else None


@lru_cache(maxsize=256)
def _narrowest(spec: ModelSpec, targets: Targets) -> int | None:
    from planner.model.modules import lora_targets

    found = [linear for run in spec.runs for linear in lora_targets(spec, run.block, targets)]
    sides = [min(linear.inputs, linear.outputs) for linear in found if linear.role not in ("router", "shared_router")]
    return min(sides, default=None)


def _additional_target(facts: Facts) -> Targets | None:
    """What is trained whole beside adapters, None for nothing. Raises InputError for what the model does not have."""
    names = facts.setup.additional_target
    if names and facts.spec and facts.setup.is_adapter:
        _require_modules(facts.spec, names)
    return names or None


@lru_cache(maxsize=256)
def _require_modules(spec: ModelSpec, names: tuple[str, ...]) -> None:
    from planner.model.modules import additional_parameters

    additional_parameters(spec, [name for name in names if "norm" not in name and not name.startswith("ln_")])


DERIVED: dict[str, Callable[[Facts], Any]] = {
    "parallelism": _parallelism,
    "deepspeed": lambda facts: facts.get("parallelism").startswith("zero"),
    "fsdp": lambda facts: facts.get("parallelism").startswith("fsdp"),
    "sharded_weights": lambda facts: facts.get("parallelism") in ("zero3", "fsdp", "fsdp2"),
    "pure_bf16": _pure_bf16,
    "adapter": lambda facts: facts.setup.is_adapter,
    "additional_target": _additional_target,
    "checkpointed": lambda facts: facts.setup.gradient_checkpointing is not False,
    "model_parallel": _model_parallel,
    "parallel_remainder": lambda facts: (_world(facts) or 0) % _model_parallel(facts),
    "engine.has_stage": _engine_has("stages", "stage"),
    "engine.has_method": _engine_has("methods", "method"),
    "engine.has_parallelism": _engine_has("parallelism", "parallelism"),
    "machine.world_size": _world,
    "machine.gpus_per_node": _machine("gpus_per_node"),
    "machine.nodes": _machine("nodes"),
    "machine.ram_bytes": _machine("ram_bytes"),
    "machine.disk_free_bytes": _machine("disk_free_bytes"),
    "machine.nvlink": lambda facts: facts.machine.links.nvlink if facts.machine else None,
    "machine.compute_capability": _capability,
    "machine.has_bf16": _has_bf16,
    "machine.may_have_bf16": lambda facts: facts.get("machine.has_bf16") is not False,
    "machine.vendor": lambda facts: _kind(facts, "vendor"),
    "machine.architecture": lambda facts: _kind(facts, "architecture"),
    "machine.geforce_series": _geforce_series,
    "machine.mixed": _mixed,
    "machine.mig": lambda facts: any(gpu.mig for gpu in facts.machine.gpus) if facts.machine else None,
    "model.type": _spec("model_type"),
    "model.architecture": lambda facts: None,
    "model.layers": _spec("layers"),
    "model.max_positions": _spec("max_positions"),
    "model.length_over_positions": _length_over_positions,
    "model.learned_positions": lambda facts: bool(facts.spec.position_embeddings) if facts.spec else None,
    "model.is_moe": _spec("is_moe"),
    "model.quantized": _quantized("method"),
    "model.quantized_bits": _quantized("bits"),
    "model.heads": lambda facts: _attention(facts, "heads"),
    "model.kv_heads": lambda facts: _attention(facts, "kv_heads"),
    "model.kv_heads_over_tensor": _kv_heads_over_tensor,
    "model.head_dim": lambda facts: _attention(facts, "head_dim"),
    "sdpa_in_tiles": _sdpa_in_tiles,
    "model.softcap": lambda facts: _attention(facts, "softcap"),
    "model.layers_over_freeze": _layers_over_freeze,
    "model.smallest_target_width": _smallest_target_width,
}
KNOWN_FIELDS: frozenset[str] = frozenset(FIELD_NAMES) | frozenset(DERIVED)
# Facts of the model and the machine that ask nothing of the setup.
_OF_BOTH = frozenset(
    {
        "model.kv_heads_over_tensor",
        "model.layers_over_freeze",
        "model.length_over_positions",
        "model.smallest_target_width",
    }
)
OF_THE_PLACE: frozenset[str] = frozenset(name for name in DERIVED if name.startswith(("machine.", "model."))) - _OF_BOTH
