"""Fine-tune a causal language model with transformers' Trainer, as train_args.json beside this file says.

Started by launch.sh through torchrun or accelerate, one process a GPU. Settings are overridden by words such as
``arguments.max_steps=10`` or ``model.name_or_path=/models/mine`` behind the script's name.
"""

import json
import sys
from pathlib import Path

import torch
from model import load_model, read_settings
from progress import ProgressLog
from samples import Collator, train_and_eval
from transformers import AutoTokenizer, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


def main():
    """Load, train, save, and say how much memory it took."""
    settings = read_settings("train_args.json", sys.argv[1:])
    arguments = TrainingArguments(**settings["arguments"])  # first: it tells from_pretrained about ZeRO-3
    model, log = settings["model"], ProgressLog()
    tokenizer = AutoTokenizer.from_pretrained(model["name_or_path"], trust_remote_code=model["trust_remote_code"])
    samples, held_out = train_and_eval(tokenizer, settings["data"], arguments.eval_strategy != "no")
    trainer = Trainer(
        model=load_model(settings, arguments.device),
        args=arguments,
        train_dataset=samples,
        eval_dataset=held_out,
        data_collator=Collator(tokenizer),
        processing_class=tokenizer,
        callbacks=[log],
    )
    there = Path(arguments.output_dir)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(there) if there.is_dir() else None)
    trainer.save_model()
    trainer.save_state()
    if torch.cuda.is_available() and trainer.is_world_process_zero():
        print(json.dumps({"max_memory_allocated_bytes": log.progress.peaks.largest[0]}))


if __name__ == "__main__":
    main()
