"""A tiny model with a wide vocabulary, and grids of it: what the dry mode of the bench can run in a moment."""

from __future__ import annotations

import json
from pathlib import Path

TINY = {
    "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 512, "max_position_embeddings": 64,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip


def write_tiny(folder: Path, **changes: object) -> Path:
    path = folder / "tiny.json"
    path.write_text(json.dumps({**TINY, **changes}))
    return path


def write_grid(folder: Path, *blocks: str) -> Path:
    path = folder / "grid.toml"
    path.write_text("\n".join(blocks))
    return path
