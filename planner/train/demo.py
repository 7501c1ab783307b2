"""EDGE: a folder that trains anywhere: a tiny random model, its tokenizer and the shipped samples, without a hub.

The folder is a plan's: the embedded engine, its files and its ``plan.json``, for one notional GPU. Needs the extra
``train`` (torch, transformers, accelerate); they are imported here and nowhere on the way here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from planner.emit.dataset import demo_source
from planner.emit.folder import plan_files
from planner.emit.write import write_folder
from planner.errors import InputError
from planner.hardware.parse import parse_machine
from planner.model.catalogue import resolve
from planner.plan.make import make_plan
from planner.plan.plan import Plan, Request

NEEDS = ("torch", "transformers", "accelerate", "tokenizers")
GPUS = "1x4GB"
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
# About twenty passes over 60 samples: the loss falls visibly, with a checkpoint every few steps.
ARGUMENTS: dict[str, Any] = {
    "use_cpu": True,
    "max_steps": 120,
    "learning_rate": 3e-3,
    "logging_steps": 1,
    "save_steps": 20,
    "save_total_limit": 2,
}
_PINNED = {
    "method": "full",
    "micro_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "liger_kernel": False,
    "attention": "sdpa",
    "gradient_checkpointing": False,
    "compute_dtype": "fp32",
}


def write_demo(folder: str | Path) -> Path:
    """Write the demo into an empty or absent ``folder`` and give its path; the model lies in ``folder/model``.

    Raises InputError where the folder has something in it, or where a package of the extra ``train`` is missing.
    """
    place = Path(folder).expanduser().resolve()
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise InputError(f"the demo needs {', '.join(missing)}: pip install 'vramplan[train]'")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InputError(f"the demo needs an empty folder, and {str(place)!r} is not one")
    make_model(place / "model")
    texts = plan_files(demo_plan(place / "model"))
    return write_folder(for_cpu(texts), place, force=True).folder


def demo_plan(model: Path) -> Plan:
    """The plan of the demo, for a notional GPU: the search picks nothing that the demo does not state."""
    request = Request(model=str(model), engine="embedded", seq_len=128, global_batch=8, gpus=GPUS, pinned=dict(_PINNED))
    return make_plan(request, resolve(str(model)), parse_machine(GPUS))


def for_cpu(texts: Mapping[str, str]) -> dict[str, str]:
    """The files with the demo's pace, on the CPU."""
    settings = json.loads(texts["train.json"])
    settings["arguments"] |= ARGUMENTS
    return {**texts, "train.json": json.dumps(settings, indent=2) + "\n"}


def make_model(folder: Path) -> None:
    """A Llama of about 700,000 parameters with random weights, and a byte-level tokenizer of the shipped samples."""
    torch: Any = import_module("torch")
    transformers: Any = import_module("transformers")
    tokenizer = _tokenizer()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
    fast.save_pretrained(folder)
    config = transformers.LlamaConfig(vocab_size=tokenizer.get_vocab_size(), **MODEL)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = range(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)


def _tokenizer() -> Any:
    tokenizers: Any = import_module("tokenizers")
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    rows = json.loads(next(iter(demo_source("sft").texts.values())))
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
