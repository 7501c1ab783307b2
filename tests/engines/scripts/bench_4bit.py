"""The bench's 4-bit model beside the one that transformers loads from a checkpoint; one JSON line. Argument: folder."""

import json
import sys

import torch
import transformers

from bench.build import build, with_adapters
from bench.meter import PretendMeter
from bench.steps import train
from planner.training import TrainingSetup

folder = sys.argv[1]
config = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512, "max_position_embeddings": 64,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
setup = TrainingSetup(
    model="-", engine="transformers", method="qlora", param_dtype="bf16", compute_dtype="bf16", seq_len=16
).to_dict()
made = build(config, setup, "cpu")

plain = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config), dtype=torch.bfloat16)
plain.save_pretrained(folder)
wanted = transformers.BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
)
loaded = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.bfloat16, quantization_config=wanted, device_map={"": "cpu"}
)


def look(model):
    found = {}
    for name, each in model.named_parameters():
        state = getattr(each, "quant_state", None)
        scales = [str(state.dtype), state.nested, state.absmax.numel(), str(state.absmax.dtype)] if state else None
        found[name] = [type(each).__name__, str(each.dtype), list(each.shape), each.requires_grad, scales]
    return found


print("RESULT " + json.dumps({
    "made": look(made), "loaded": look(with_adapters(loaded, setup)),
    "trained": train(made, setup, PretendMeter(torch, {}), steps=(1, 2), device="cpu"),
}))  # fmt: skip
