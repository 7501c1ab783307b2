"""What a loop's name for the model's outputs keeps alive: the logits, and with a cache every layer's keys and values.

``outputs = model(...)`` frees the last step's only once the next ones exist: they lie beside the whole forward pass,
beside backward and beside the optimizer's step.
"""

from __future__ import annotations

from planner.memory.habits import makes_cache
from planner.memory.regime import bytes_of
from planner.memory.stretches import Step, Stretch


def cache_per_token(step: Step, stretch: Stretch) -> int:
    """Bytes per token that one layer of a stretch leaves in the key-value cache, in the residual stream's dtype."""
    attention = stretch.layer.block.attention
    if not makes_cache(step.setup) or attention.kind != "gqa":
        return 0
    return 2 * attention.kv_width * bytes_of(step.regime.stream)
