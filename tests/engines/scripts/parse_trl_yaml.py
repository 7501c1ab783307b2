"""Have TRL's own parser read train.yaml of each ``command=folder`` word: RESULT {folder: what it understood}."""

import importlib
import json
import os
import sys
from pathlib import Path

from trl import get_peft_config, get_quantization_config

answers = {}
for word in sys.argv[1:]:
    command, _, folder = word.partition("=")
    os.chdir(folder)
    parser = importlib.import_module(f"trl.scripts.{command}").make_parser()
    text = Path("train.yaml").read_text().replace("bf16: true\nfp16: false", "bf16: true\nuse_cpu: true")
    Path(".on_cpu.yaml").write_text(text)
    try:
        _, training, model, _ = parser.parse_args_and_config(["--config", ".on_cpu.yaml"])
        peft, quantization = get_peft_config(model), get_quantization_config(model)
        answers[folder] = {
            "dtype": model.dtype,
            "attention": model.attn_implementation,
            "rank": peft.r if peft else None,
            "targets": peft.target_modules if isinstance(getattr(peft, "target_modules", None), str) else "list",
            "task": peft.task_type if peft else None,
            "bits": None if quantization is None else 4 if quantization.load_in_4bit else 8,
            "double": bool(quantization and quantization.bnb_4bit_use_double_quant),
            "batch": [training.per_device_train_batch_size, training.gradient_accumulation_steps],
            "length": getattr(training, "max_length", None) or training.max_completion_length,
            "groups": [
                getattr(training, name, None)
                for name in ("num_generations", "num_generations_eval", "generation_batch_size")
            ],
            "checkpointing": training.gradient_checkpointing,
            "liger": training.use_liger_kernel,
            "optim": str(getattr(training.optim, "value", training.optim)),
            "loss": training.loss_type if hasattr(training, "loss_type") else None,
            "deepspeed": training.deepspeed,
        }
    except (Exception, SystemExit) as problem:
        answers[folder] = {"problem": f"{type(problem).__name__}: {problem}"}
print("RESULT " + json.dumps(answers))
