"""The demo's model and tokenizer, made in the Python that trains: run as a script with a folder, samples on stdin.

Nothing of the planner is imported: that Python need not have it.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
MODEL = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


def make_model(folder: Path, rows: list[dict[str, str]]) -> None:
    """A Llama of about 700,000 parameters with random weights, and a byte-level tokenizer of the samples."""
    torch: Any = import_module("torch")
    transformers: Any = import_module("transformers")
    tokenizer = _tokenizer(rows)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
    fast.save_pretrained(folder)
    config = transformers.LlamaConfig(vocab_size=tokenizer.get_vocab_size(), **MODEL)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = range(3)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def _tokenizer(rows: list[dict[str, str]]) -> Any:
    tokenizers: Any = import_module("tokenizers")
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=768,
        show_progress=False,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=byte_level.alphabet(),
    )
    tokenizer.train_from_iterator((text for row in rows for text in row.values()), trainer)
    return tokenizer


if __name__ == "__main__":
    make_model(Path(sys.argv[1]), json.loads(sys.stdin.read()))
