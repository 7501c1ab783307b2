"""The constants of the speed model, read from rules/speed.toml: each stands there with its source."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from planner.rulebook.paths import rules_dir

# Tables of facts and stated assumptions, which no fit changes.
FACTS = (
    "generation",
    "attention_generation",
    "links",
    "unnamed",
    "spread",
    "launch",
    "matmul",
    "stream",
    "optimizer",
    "torchtune",
)


@dataclass(eq=False, repr=False)
class Rates:
    """What part of rated figures is reached, and bytes moved per element; see rules/speed.toml for each.

    Compared by identity, so that results can be cached per set of rates.
    """

    generation: Mapping[str, Any]
    attention_generation: Mapping[str, Any]
    links: Mapping[str, Any]
    unnamed: Mapping[str, float]
    spread: Mapping[str, float]
    launch: Mapping[str, Any]
    matmul: Mapping[str, Any]
    stream: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    torchtune: Mapping[str, Any]
    matmul_share: float
    attention_share: float
    eager_share: float
    bandwidth_share: float
    norm_bytes: float
    norm_bytes_fused: float
    mlp_bytes: float
    mlp_bytes_fused: float
    rope_bytes: float
    rope_bytes_fused: float
    logit_bytes: float
    logit_bytes_fused: float
    adapter_bytes: float
    expert_factor: float
    overlap: float
    exposed: float
    collective_seconds: float
    hop_seconds: float
    foreach_factor: float


def make_rates(fitted: Mapping[str, float] | None = None) -> Rates:
    """The shipped rates, with some of the fitted ones replaced."""
    raw = tomllib.loads((rules_dir() / "speed.toml").read_text(encoding="utf-8"))
    facts = {name: raw[name] for name in FACTS}
    return Rates(**facts, **{**raw["fitted"], **(fitted or {})})


@lru_cache(maxsize=1)
def shipped() -> Rates:
    """rules/speed.toml, read once."""
    return make_rates()
