"""Run TRL's own script for a stage on train.yaml: ``train.py sft``, one process a GPU.

Before it starts, the data of dataset_info.json are written to ``prepared/`` in TRL's form; while it runs,
``trainer_log.jsonl`` is written; and a run that was interrupted goes on from its last checkpoint. Words behind the
stage such as ``max_steps=10`` override train.yaml, ``deepspeed=null`` takes a key out of it.
"""

import json
import os
import runpy
import sys
from pathlib import Path

import transformers.trainer
import yaml
from progress import ProgressLog
from samples import before_answer, dialogue_of, entry_of, read_rows, text_before
from transformers import AutoTokenizer, Trainer
from transformers.trainer_utils import get_last_checkpoint

HERE = Path(__file__).resolve().parent
PREPARED = HERE / "prepared"
STAGES = ("sft", "dpo", "kto", "reward", "grpo")


def read_settings(words):
    """The values of train.yaml with the overrides of the command line; what is null is left to TRL."""
    values = yaml.safe_load((HERE / "train.yaml").read_text(encoding="utf-8"))
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or not key.isidentifier():
            sys.exit(f"error: {word!r} is no override; write key=value, with a key of TRL's arguments")
        values[key] = yaml.safe_load(text)
    return {key: value for key, value in values.items() if value is not None}


def sample_of(stage, values, row, entry, tokenizer):
    """One sample in TRL's form: dialogues where the tokenizer has a chat template, text where it has none."""
    columns = entry["columns"]
    if stage == "sft" and not values["completion_only_loss"]:
        return {"text": row[columns["prompt"]]}

    def answer(text):
        return [{"role": "assistant", "content": text}] if tokenizer.chat_template else text

    def asked(dialogue):
        return dialogue if tokenizer.chat_template else text_before(tokenizer, dialogue)

    if stage in ("dpo", "reward"):
        pair = {name: answer(row[columns[name]]) for name in ("chosen", "rejected")}
        return {"prompt": asked(before_answer(row, entry)), **pair}
    *before, last = dialogue_of(row, entry)
    if stage == "grpo":
        return {"prompt": asked(within(before, prompt_tokens(values), tokenizer)), "answer": last["content"]}
    sample = {"prompt": asked(before), "completion": answer(last["content"])}
    return sample | ({"label": bool(row[columns["kto_tag"]])} if stage == "kto" else {})


def prompt_tokens(values):
    """What max_completion_length leaves of the whole length; TRL itself cuts no prompt. None: no limit."""
    whole = values.get("vllm_max_model_length")
    return None if whole is None else whole - values.get("max_completion_length", 512)


def within(dialogue, limit, tokenizer):
    """The dialogue with its last message cut at its end, so that the prompt has at most ``limit`` tokens."""
    *before, last = dialogue
    text = last["content"]
    while limit is not None and text:
        cut = [*before, {**last, "content": text}]
        excess = len(tokenizer(text_before(tokenizer, cut))["input_ids"]) - limit
        if excess <= 0:
            break
        shorter = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:-excess])
        text = shorter if len(shorter) < len(text) else text[: len(text) // 2]
    return [*before, {**last, "content": text}]


def prepare(stage, values):
    """``prepared/train.jsonl`` and, for an evaluation, ``prepared/test.jsonl``; every process writes the same."""
    tokenizer = AutoTokenizer.from_pretrained(
        values["model_name_or_path"], trust_remote_code=values.get("trust_remote_code", False)
    )
    names = json.loads((HERE / "dataset_info.json").read_text(encoding="utf-8"))
    train, *other = names
    sets = {"train": samples_of(stage, values, train, tokenizer)}
    if values["eval_strategy"] != "no":
        if other:
            sets["test"] = samples_of(stage, values, other[0], tokenizer)
        else:
            count = max(1, len(sets["train"]) // 10)
            sets = {"train": sets["train"][count:], "test": sets["train"][:count]}
    for name, samples in sets.items():
        place(PREPARED / f"{name}.jsonl", "".join(json.dumps(sample) + "\n" for sample in samples))


def place(path, text):
    """Write a file that other processes write at the same time: whole, or not at all."""
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f".{path.name}-{os.environ.get('RANK', '0')}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def samples_of(stage, values, name, tokenizer):
    """All samples of a data set that have an answer."""
    entry = entry_of(name)
    return [sample_of(stage, values, row, entry, tokenizer) for row in read_rows(name)]


def resume_by_itself(output_dir):
    """TRL's scripts start anew unless they are told the checkpoint: tell them the last one."""
    train = Trainer.train

    def train_from_checkpoint(self, resume_from_checkpoint=None, **rest):
        there = Path(output_dir)
        found = get_last_checkpoint(there) if there.is_dir() else None
        return train(self, resume_from_checkpoint=resume_from_checkpoint or found, **rest)

    Trainer.train = train_from_checkpoint


def main():
    """Prepare, then run TRL's script as its own command does."""
    stage, *words = sys.argv[1:] or [""]
    if stage not in STAGES:
        sys.exit(f"error: stage {stage!r} is not known; choose {', '.join(STAGES)}")
    values = read_settings(words)
    prepare(stage, values)
    config = HERE / ".train.yaml"  # TRL reads train.yaml as it is; overrides need a file of their own
    place(config, yaml.safe_dump(values, sort_keys=False))
    resume_by_itself(values["output_dir"])
    transformers.trainer.DEFAULT_CALLBACKS.append(ProgressLog)
    sys.argv = [f"trl {stage}", "--config", str(config)]
    runpy.run_module(f"trl.scripts.{stage}", run_name="__main__", alter_sys=False)


if __name__ == "__main__":
    main()
