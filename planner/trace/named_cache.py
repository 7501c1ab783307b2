"""The key-value cache that old modeling files hand out in training, beside checkpoints that were to save it.

gpt_bigcode of transformers before 4.53 does. Its keys and values are views into the projection of queries, keys and
values, which lives with the outputs.
"""

from __future__ import annotations

from typing import Any

from planner.trace import releases
from planner.trace.job import Job

PROJECTION = "c_attn"


def with_cache(job: Job, model: Any, batch: dict[str, Any]) -> Any:
    """The model's outputs, with the cache where the installed transformers leaves it out."""
    if not job.names_cache or releases.runs_own_code(job):
        return model(**batch)
    made: list[Any] = []
    projections = [module for name, module in model.named_modules() if name.rpartition(".")[2] == PROJECTION]
    hooks = [module.register_forward_hook(lambda _, __, out: made.append(out)) for module in projections]
    try:
        outputs = model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    outputs["past_key_values"] = tuple(out[..., model.config.hidden_size :] for out in made)
    return outputs
