"""Fine-tune a causal language model with transformers' Trainer, as train_args.json beside this file says.

Started by launch.sh through torchrun or accelerate, one process a GPU. Settings are overridden by words such as
``arguments.max_steps=10`` or ``model.name_or_path=/models/mine`` behind the script's name.
"""

import csv
import json
import sys
from itertools import chain
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

HERE = Path(__file__).resolve().parent
IGNORED = -100  # labels that the loss leaves out


def read_settings(words):
    """train_args.json with the overrides of the command line."""
    settings = json.loads((HERE / "train_args.json").read_text(encoding="utf-8"))
    for word in words:
        path, _, text = word.partition("=")
        section, _, key = path.rpartition(".")
        if section not in settings or not text:
            sys.exit(f"error: {word!r} is no override; write section.key=value, sections: {', '.join(settings)}")
        try:
            settings[section][key] = json.loads(text)
        except ValueError:
            settings[section][key] = text
    return settings


def read_rows(name):
    """The samples of a data set that dataset_info.json names, and its columns by meaning."""
    entry = json.loads((HERE / "dataset_info.json").read_text(encoding="utf-8"))[name]
    path = HERE / entry["file_name"]
    if path.suffix in (".parquet", ".arrow"):
        import pyarrow.dataset

        rows = pyarrow.dataset.dataset(str(path), format=path.suffix[1:]).to_table().to_pylist()
    elif path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    elif path.suffix == ".txt":
        rows = [{"text": line} for line in path.read_text(encoding="utf-8-sig").splitlines()]
    else:
        text = path.read_text(encoding="utf-8-sig")
        is_array = text.lstrip().startswith("[")
        rows = json.loads(text) if is_array else [json.loads(line) for line in text.splitlines() if line.strip()]
    return rows, entry["columns"], entry.get("tags", {"role_tag": "from", "content_tag": "value"})


def messages_of(row, columns, tags):
    """One sample as a dialogue of roles and contents that ends with the answer to learn."""
    if "messages" in columns:
        roles = {"human": "user", "gpt": "assistant"}
        turns = [(turn[tags["role_tag"]], turn[tags["content_tag"]]) for turn in row[columns["messages"]]]
        while turns and turns[-1][0] not in ("assistant", "gpt"):
            turns.pop()
        dialogue = [{"role": roles.get(role, role), "content": content} for role, content in turns]
    else:
        asked = [row[columns[part]] for part in ("prompt", "query") if row.get(columns.get(part))]
        answer = {"role": "assistant", "content": row[columns["response"]]}
        dialogue = [{"role": "user", "content": "\n".join(asked)}, answer]
    system = row.get(columns.get("system"))
    return ([{"role": "system", "content": system}] if system else []) + dialogue


def encode_dialogue(tokenizer, dialogue):
    """Token ids and labels: only the last answer is learnt."""
    *before, answer = dialogue
    if tokenizer.chat_template:
        prompt = tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True)
    else:
        prompt = "".join(turn["content"] + "\n" for turn in before)
    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    learnt = tokenizer(answer["content"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    return asked + learnt, [IGNORED] * len(asked) + learnt


def encode(tokenizer, name, data):
    """The samples of a data set as dicts of ids and labels, cut or packed to the length."""
    rows, columns, tags = read_rows(name)
    if data["stage"] == "pt":
        texts = [row[columns["prompt"]] + tokenizer.eos_token for row in rows]
        pairs = [(ids, list(ids)) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    else:
        dialogues = [messages_of(row, columns, tags) for row in rows]
        pairs = [encode_dialogue(tokenizer, dialogue) for dialogue in dialogues if dialogue]
    length = data["cutoff_len"]
    if data["packing"]:
        ids, labels = (list(chain.from_iterable(parts)) for parts in zip(*pairs, strict=True))
        starts = range(0, max(len(ids) - length, 0) + 1, length)
        pairs = [(ids[start : start + length], labels[start : start + length]) for start in starts]
    pairs = [(ids[:length], labels[:length]) for ids, labels in pairs]
    # A sample whose answer was cut off teaches nothing, and a batch of such samples has no loss.
    return [{"input_ids": ids, "labels": labels} for ids, labels in pairs if any(label != IGNORED for label in labels)]


class Collator:
    """Pads a batch on the right; a mask is made only where something was padded."""

    def __init__(self, pad_id):
        self.pad_id = pad_id

    def __call__(self, samples):
        """Stack ids and labels to the longest sample."""
        lengths = [len(sample["input_ids"]) for sample in samples]
        longest = max(lengths)

        def stacked(key, filler):
            rows = [sample[key] + [filler] * (longest - len(sample[key])) for sample in samples]
            return torch.tensor(rows, dtype=torch.long)

        batch = {"input_ids": stacked("input_ids", self.pad_id), "labels": stacked("labels", IGNORED)}
        if min(lengths) < longest:
            batch["attention_mask"] = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
        return batch


def load_model(settings, arguments):
    """The model in its stated dtype, quantized and with adapters where the settings have them."""
    model, quantization, adapter = settings["model"], settings["quantization"], settings["adapter"]
    dtype = getattr(torch, model["dtype"])
    extra = {}
    if quantization:
        if quantization["bits"] == 4:
            extra["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=quantization["type"],
                bnb_4bit_use_double_quant=quantization["double"],
                bnb_4bit_compute_dtype=dtype,
                bnb_4bit_quant_storage=dtype,
            )
        else:
            extra["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
        if settings["parallelism"]["kind"] in ("none", "ddp", "zero1", "zero2"):
            extra["device_map"] = {"": arguments.device}
    loaded = AutoModelForCausalLM.from_pretrained(
        model["name_or_path"],
        dtype=dtype,
        attn_implementation=model["attention"],
        trust_remote_code=model["trust_remote_code"],
        **extra,
    )
    if not adapter:
        return loaded
    from peft import LoraConfig, get_peft_model

    target = adapter["target"]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter["rank"],
        lora_alpha=adapter["alpha"],
        lora_dropout=adapter["dropout"],
        target_modules="all-linear" if target == "all" else target,
        modules_to_save=adapter["modules_to_save"],
        use_dora=adapter["dora"],
        use_rslora=adapter["rslora"],
    )
    return get_peft_model(loaded, config, autocast_adapter_dtype=adapter["upcast"])


def main():
    """Load, train, save, and say how much memory it took."""
    settings = read_settings(sys.argv[1:])
    arguments = TrainingArguments(**settings["arguments"])  # first: it tells from_pretrained about ZeRO-3
    model = settings["model"]
    tokenizer = AutoTokenizer.from_pretrained(model["name_or_path"], trust_remote_code=model["trust_remote_code"])
    data = settings["data"]
    samples = encode(tokenizer, data["dataset"], data)
    held_out = encode(tokenizer, data["eval_dataset"], data) if data["eval_dataset"] else None
    if data["val_size"] and arguments.eval_strategy != "no":
        count = max(1, int(len(samples) * data["val_size"]))
        samples, held_out = samples[count:], samples[:count]
    trainer = Trainer(
        model=load_model(settings, arguments),
        args=arguments,
        train_dataset=samples,
        eval_dataset=held_out,
        data_collator=Collator(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id),
        processing_class=tokenizer,
    )
    there = Path(arguments.output_dir)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(there) if there.is_dir() else None)
    trainer.save_model()
    trainer.save_state()
    if torch.cuda.is_available() and trainer.is_world_process_zero():
        print(json.dumps({"max_memory_allocated_bytes": torch.cuda.max_memory_allocated()}))


if __name__ == "__main__":
    main()
