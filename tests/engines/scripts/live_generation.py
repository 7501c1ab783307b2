"""Live bytes of TRL's real generation on a tiny Llama on the CPU: RESULT {prompts, last, cache, dtypes}.

``full`` or ``lora``, then the dtype of the weights, then that of autocast (or none). Counted is every storage that an
operation makes while TRL generates for one optimizer step, until it is freed.
"""

import functools
import gc
import json
import sys
import weakref

import torch
import transformers.cache_utils
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

METHOD, HELD, AUTOCAST = sys.argv[1:4]
PROMPT, COMPLETION, MICRO, ACCUMULATION = 192, 12, 2, 8
DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}[HELD]


class Live(TorchDispatchMode):
    """The most bytes alive since ``peak`` was set back, over what was there before."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        there = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
        self.known = {each.untyped_storage()._cdata: 0 for each in there}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for each in tree_flatten(made)[0]:
            if isinstance(each, torch.Tensor):
                self.see(each.untyped_storage())
        return made

    def see(self, storage):
        key = storage._cdata
        if key not in self.known:
            self.known[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.gone, key)

    def gone(self, key):
        self.live -= self.known.pop(key, 0)


def tiny(folder):
    words = 8192
    vocabulary = [f"w{number}" for number in range(words - 4)] + ["<unk>", "<pad>", "</s>", "<s>"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=words, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=False,
        pad_token_id=words - 3, eos_token_id=words - 2, bos_token_id=words - 1,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(DTYPE).save_pretrained(folder)


def trainer_of(folder):
    texts = [" ".join(f"w{(row * 7 + word) % 999}" for word in range(PROMPT - 5 * (row % 2))) for row in range(16)]
    arguments = GRPOConfig(
        output_dir="out", use_cpu=True, bf16=AUTOCAST == "bf16", report_to="none", max_steps=1,
        per_device_train_batch_size=MICRO, gradient_accumulation_steps=ACCUMULATION,
        max_completion_length=COMPLETION, generation_kwargs={"min_new_tokens": COMPLETION},
        model_init_kwargs={"dtype": DTYPE},
    )  # fmt: skip
    adapter = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM") if METHOD == "lora" else None
    return GRPOTrainer(
        model=folder, args=arguments, train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
        reward_funcs=lambda completions, **_: [float(len(each)) for each in completions], peft_config=adapter,
    )  # fmt: skip


def main():
    tiny("tiny")
    trainer = trainer_of("tiny")
    dtypes, sizes = set(), {}
    update, generate = transformers.cache_utils.DynamicLayer.update, trainer._generate_single_turn

    def updated(self, *words, **named):
        answer = update(self, *words, **named)
        dtypes.add((str(self.keys.dtype), str(self.values.dtype)))
        sizes[id(self)] = self.keys.nbytes + self.values.nbytes
        return answer

    def counted(*words, **named):
        gc.collect()
        live, peaks = Live(), []
        model = trainer.accelerator.unwrap_model(trainer.model)
        model = model.get_base_model() if METHOD == "lora" else model
        forward = model.forward

        @functools.wraps(forward)  # generate looks at the signature
        def watched(*words, **named):
            live.peak = live.live
            answer = forward(*words, **named)
            peaks.append(live.peak)
            return answer

        model.forward = watched
        with live:
            generate(*words, **named)
        found = {"prompts": peaks[0], "last": peaks[-1], "cache": sum(sizes.values()), "dtypes": sorted(dtypes)}
        print("RESULT " + json.dumps(found))
        sys.exit(0)

    transformers.cache_utils.DynamicLayer.update = updated
    trainer._generate_single_turn = counted
    trainer.train()


main()
