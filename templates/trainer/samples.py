"""The data sets that dataset_info.json names: rows of a file, dialogues, token ids with the labels to learn."""

import csv
import json
from itertools import chain
from pathlib import Path

HERE = Path(__file__).resolve().parent
IGNORED = -100  # labels that the loss leaves out
ROLES = {"human": "user", "gpt": "assistant"}
TAGS = {"role_tag": "from", "content_tag": "value"}


def entry_of(name):
    """What dataset_info.json says of a data set: its file, its columns by meaning, its words for roles."""
    return json.loads((HERE / "dataset_info.json").read_text(encoding="utf-8"))[name]


def read_rows(name):
    """The samples of a data set, one mapping each."""
    path = HERE / entry_of(name)["file_name"]
    if path.suffix in (".parquet", ".arrow"):
        import pyarrow.dataset

        return pyarrow.dataset.dataset(str(path), format=path.suffix[1:]).to_table().to_pylist()
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".txt":
        return [{"text": line} for line in text.splitlines() if line.strip()]
    return (
        json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines() if line]
    )


def before_answer(row, entry):
    """The dialogue that an answer follows: a system message, the history, the question."""
    columns, tags = entry["columns"], TAGS | entry.get("tags", {})
    if "messages" in columns:
        turns = [(turn[tags["role_tag"]], turn[tags["content_tag"]]) for turn in row[columns["messages"]] or []]
        dialogue = [{"role": ROLES.get(role, role), "content": content} for role, content in turns]
    else:
        past = [(old[0], old[1]) for old in row.get(columns.get("history")) or []]
        asked = "\n".join(row[columns[part]] for part in ("prompt", "query") if row.get(columns.get(part)))
        pairs = [[{"role": "user", "content": one}, {"role": "assistant", "content": two}] for one, two in past]
        dialogue = [*chain.from_iterable(pairs), {"role": "user", "content": asked}]
    system = row.get(columns.get("system"))
    return ([{"role": "system", "content": system}] if system else []) + dialogue


def dialogue_of(row, entry):
    """One sample as roles and contents that end with an answer; empty where it has none."""
    dialogue = before_answer(row, entry)
    if "messages" not in entry["columns"]:
        return [*dialogue, {"role": "assistant", "content": row[entry["columns"]["response"]]}]
    while dialogue and dialogue[-1]["role"] != "assistant":
        dialogue.pop()
    return dialogue


def text_before(tokenizer, dialogue):
    """The text that the model reads before it answers."""
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(dialogue, tokenize=False, add_generation_prompt=True)
    return "".join(turn["content"] + "\n" for turn in dialogue)


def encode_dialogue(tokenizer, dialogue):
    """Token ids and labels: every answer is learnt, with the token that ends it.

    Templates that rewrite earlier turns (such as those that drop old thoughts) have only later answers learnt.
    """
    ids, labels, text = [], [], ""
    for place, turn in enumerate(dialogue):
        if turn["role"] != "assistant":
            continue
        before = text_before(tokenizer, dialogue[:place])
        if not before.startswith(text):
            ids, labels, text = [], [], ""
        asked = tokenizer(before[len(text) :], add_special_tokens=False)["input_ids"]
        answer = turn["content"] + tokenizer.eos_token
        learnt = tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids, labels, text = ids + asked + learnt, labels + [IGNORED] * len(asked) + learnt, before + answer
    return ids, labels


def encode_rows(tokenizer, name, stage):
    """Token ids and labels of every sample of one data set."""
    entry, rows = entry_of(name), read_rows(name)
    if stage == "pt":
        texts = [row[entry["columns"]["prompt"]] + tokenizer.eos_token for row in rows]
        return [(ids, list(ids)) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return [encode_dialogue(tokenizer, dialogue_of(row, entry)) for row in rows]


def encode(tokenizer, names, data):
    """The samples of data sets (a comma list of names) as dicts of ids and labels, cut or packed to the length."""
    length = data["cutoff_len"]
    pairs = list(chain.from_iterable(encode_rows(tokenizer, name, data["stage"]) for name in names.split(",")))
    if data["packing"]:
        ids, labels = (list(chain.from_iterable(parts)) for parts in zip(*pairs, strict=True))
        starts = range(0, max(len(ids) - length, 0) + 1, length)
        pairs = [(ids[start : start + length], labels[start : start + length]) for start in starts]
    pairs = [(ids[:length], labels[:length]) for ids, labels in pairs]
    # A sample whose answer was cut off teaches nothing, and a batch of such samples has no loss.
    kept = [{"input_ids": ids, "labels": labels} for ids, labels in pairs if any(one != IGNORED for one in labels[1:])]
    if not kept:
        raise SystemExit(f"error: no sample of {names} has an answer within {length} tokens; raise data.cutoff_len")
    return kept


def train_and_eval(tokenizer, data, evaluates):
    """The samples to train on, and those to evaluate on: a set of their own, or the first share of the others."""
    samples = encode(tokenizer, data["dataset"], data)
    if not evaluates:
        return samples, None
    if data["eval_dataset"]:
        return samples, encode(tokenizer, data["eval_dataset"], data)
    count = max(1, int(len(samples) * data["val_size"]))
    return samples[count:], samples[:count]


class Collator:
    """Pads a batch on the right; a mask is made only where something was padded."""

    def __init__(self, tokenizer):
        self.pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def __call__(self, samples):
        """Stack ids and labels to the longest sample."""
        import torch

        lengths = [len(sample["input_ids"]) for sample in samples]
        longest = max(lengths)

        def stacked(key, filler):
            rows = [sample[key] + [filler] * (longest - len(sample[key])) for sample in samples]
            return torch.tensor(rows, dtype=torch.long)

        batch = {"input_ids": stacked("input_ids", self.pad_id), "labels": stacked("labels", IGNORED)}
        if min(lengths) < longest:
            batch["attention_mask"] = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
        return batch
