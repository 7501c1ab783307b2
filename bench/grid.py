"""grid.toml -> the runs of the bench: every list of a block is an axis, a run one point of their product."""

from __future__ import annotations

import hashlib
import itertools
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bench import shapes
from planner.errors import InputError
from planner.model.spec import ModelSpec
from planner.training import TrainingSetup, setup_from_mapping

HOME = Path(__file__).resolve().parent
LISTS = frozenset({"lora_target", "additional_target"})  # one value of these is a list: an axis is a list of lists
OWN_FIELDS = frozenset({"about", "layers", "ranks"})
# What the bench's worker does with a setup; every other field would be priced and not run.
RUNNABLE = frozenset(
    {
        "model", "method", "lora_rank", "lora_target", "lora_dropout", "additional_target", "double_quantization",
        "seq_len", "micro_batch_size", "gradient_accumulation_steps", "optim", "param_dtype", "compute_dtype",
        "adapter_dtype", "gradient_checkpointing", "attention", "liger_kernel", "loss", "parallelism",
    }
)  # fmt: skip
METHODS = frozenset({"full", "lora", "dora", "qlora"})
ALWAYS = {"engine": "transformers", "compute_dtype": "bf16"}
BNB_OPTIMIZERS = ("8bit", "paged", "lion", "ademamix", "rmsprop_bnb")


@dataclass(frozen=True)
class Run:
    """One run: the stated fields (the contract's), the layers kept (None: all), and the ranks pretended."""

    fields: Mapping[str, Any]
    layers: int | None = None
    ranks: int = 1

    @cached_property
    def config(self) -> shapes.Config:
        """The model's config, cut to ``layers``."""
        return shapes.config_for(self.fields["model"], self.layers)

    @cached_property
    def spec(self) -> ModelSpec:
        """The shape as the planner reads it."""
        return shapes.spec_of(self.config, self.fields["model"])

    def setup(self, card: str, versions: Mapping[str, str] | None = None) -> TrainingSetup:
        """The setup on this card under these versions. Raises InputError."""
        return setup_from_mapping(self.stated(card, versions), place=self.name)

    def stated(self, card: str, versions: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The contract's fields of the run, ready for JSON."""
        named = {"versions": dict(versions)} if versions else {}
        return {**ALWAYS, **self.fields, "gpus": f"{self.ranks}x{card}", **named}

    @property
    def name(self) -> str:
        """A readable id, the same for the same fields: ``llama-3.1-8b-4l-lora-2048x2-1a2b3c4d``."""
        model = str(self.fields["model"]).rstrip("/").rpartition("/")[2].lower().removeprefix("meta-")
        layers = f"-{self.layers}l" if self.layers else ""
        size = f"{self.fields.get('seq_len', 2048)}x{self.fields.get('micro_batch_size', 1)}"
        ranks = f"-{self.ranks}ranks" if self.ranks > 1 else ""
        return f"{model}{layers}-{self.fields.get('method', 'lora')}-{size}{ranks}-{self.digest}"

    @property
    def digest(self) -> str:
        """Eight letters that stand for all fields."""
        text = json.dumps([self.fields, self.layers, self.ranks], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def needs(self) -> tuple[str, ...]:
        """Packages beyond the bench's own that this run imports."""
        optim = str(self.fields.get("optim", ""))
        wanted = {
            "liger-kernel": bool(self.fields.get("liger_kernel")),
            "bitsandbytes": self.fields.get("method") == "qlora" or any(word in optim for word in BNB_OPTIMIZERS),
            "flash-attn": self.fields.get("attention") == "flash_attention_2",
        }
        return tuple(package for package, is_needed in wanted.items() if is_needed)

    def but(self, **changes: Any) -> Run:
        """A copy with some fields changed."""
        return Run({**self.fields, **changes}, self.layers, self.ranks)


def read_grid(path: Path | None = None) -> tuple[list[Run], list[Run]]:
    """The runs of ``[[runs]]`` and the cases of ``[[caps]]``, without repetitions, in the file's order.

    Raises InputError for a file that is no TOML, an unknown table or field, and a setup that is not valid.
    """
    path = path or HOME / "grid.toml"
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise InputError(f"{path}: {problem}") from None
    unknown = tables.keys() - {"runs", "caps"}
    if unknown:
        raise InputError(f"{path}: table {sorted(unknown)[0]!r} is not known; a grid has [[runs]] and [[caps]]")
    return _unique(tables.get("runs", []), path), _unique(tables.get("caps", []), path)


def _unique(blocks: list[dict[str, Any]], path: Path) -> list[Run]:
    """Each run once, also where one block states a default and another leaves it out."""
    found: dict[str, Run] = {}
    for run in (run for block in blocks for run in _product(block, path)):
        found.setdefault(json.dumps([run.setup("80GB").to_dict(), run.layers]), run)
    return list(found.values())


def _product(block: Mapping[str, Any], path: Path) -> Iterator[Run]:
    fields = {name: value for name, value in block.items() if name not in OWN_FIELDS}
    axes = {name: _axis(name, value) for name, value in fields.items()}
    axes |= {name: _axis(name, block[name]) for name in ("layers", "ranks") if name in block}
    for point in itertools.product(*axes.values()):
        chosen = dict(zip(axes, point, strict=True))
        run = Run(chosen, chosen.pop("layers", None), chosen.pop("ranks", 1))
        _check(run, path)
        yield run


def _axis(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        return [value]
    if name in LISTS:
        return value if value and isinstance(value[0], list) else [value]
    return value


def _check(run: Run, path: Path) -> None:
    """Raises InputError for a setup that is not valid, or that the worker would not run as it is stated."""
    place = f"{path.name}, {run.name}"
    setup = setup_from_mapping(run.stated("80GB"), place=place)
    unknown = run.fields.keys() - RUNNABLE
    checks = {
        f"the bench runs no {', '.join(sorted(unknown))}": bool(unknown),
        f"the bench runs no method {setup.method}": setup.method not in METHODS,
        "the bench checkpoints every layer or none": not isinstance(setup.gradient_checkpointing, bool),
        f"loss {setup.loss} goes with liger_kernel": setup.loss not in (None, "torch") and not setup.liger_kernel,
        "parallelism is none or fsdp2 here": setup.parallelism not in (None, "none", "fsdp2"),
        f"ranks {run.ranks} go with parallelism fsdp2 only": (run.ranks > 1) != (setup.parallelism == "fsdp2"),
    }
    for sentence, is_met in checks.items():
        if is_met:
            raise InputError(f"{place}: {sentence}")
