"""Fine-tune a causal language model with a loop around accelerate, as train.json beside this file says.

Started by launch.sh through torchrun, one process a GPU. Settings are overridden by words such as
``arguments.max_steps=10`` or ``model.name_or_path=/models/mine`` behind the script's name.

``main`` is the whole story: accelerator, samples, model, optimizer, then updates until the last one. Every update
takes the same samples whatever the number of processes and the micro batch, so that a run can go on from its last
checkpoint with other ones.
"""

import inspect
import math
import random
import sys
from contextlib import nullcontext
from datetime import timedelta
from functools import lru_cache

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import DeepSpeedPlugin, GradientAccumulationPlugin, set_seed
from checkpoints import last_checkpoint, restore_optimizer, restore_random_state, save_checkpoint, save_model
from model import load_model, read_settings
from progress import Progress, inject_fault, say_out_of_memory
from samples import IGNORED, Collator, train_and_eval
from sharding import shard
from transformers import AutoTokenizer
from transformers.integrations import HfDeepSpeedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

ZERO = ("zero1", "zero2", "zero3")


def make_accelerator(settings):
    """Process group, autocast and DeepSpeed, as the settings have them."""
    arguments, kind = settings["arguments"], settings["parallelism"]["kind"]
    steps = arguments["gradient_accumulation_steps"]
    return Accelerator(
        mixed_precision="bf16" if arguments["bf16"] else "fp16" if arguments["fp16"] else "no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=steps, sync_with_dataloader=False),
        cpu=arguments.get("use_cpu", False) and kind not in ZERO,  # asked for the CPU, accelerate forgets DeepSpeed
        log_with=None if arguments["report_to"] == "none" else arguments["report_to"],
        project_dir=arguments["output_dir"],
        dynamo_backend="inductor" if arguments["torch_compile"] else "no",
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=arguments["deepspeed"]) if kind in ZERO else None,
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=False),
            InitProcessGroupKwargs(timeout=timedelta(seconds=arguments["ddp_timeout"])),
        ],
    )


def prepare_model(settings, accelerator, weights):
    """The model ready to train: what is trained is fp32 where the plan says so, layers are checkpointed."""
    arguments, adapter = settings["arguments"], settings["adapter"]
    model = load_model(settings, accelerator.device, weights=weights, straight_to_device=True)
    model.config.use_cache = False
    if adapter and adapter["upcast"]:  # modules trained whole beside the adapters too
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if arguments["use_liger_kernel"]:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(model=model.get_base_model() if adapter else model)
    if arguments["gradient_checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        leave_layers_out(model, every=int(arguments["gradient_checkpointing"]))
    return model


def leave_layers_out(model, every):
    """Checkpointing of every n-th layer, counted from the first; 1 is all of them."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for place, layer in enumerate(layers, start=1):
        layer.gradient_checkpointing = place % every == 0


def make_optimizer(model, arguments):
    """The optimizer by transformers' name; biases and norms are not decayed."""
    name, rate = arguments["optim"], arguments["learning_rate"]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [each for each in trained if each.ndim >= 2], "weight_decay": arguments["weight_decay"]},
        {"params": [each for each in trained if each.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if name in ("adamw_torch", "adamw_torch_fused"):
        return torch.optim.AdamW(groups, lr=rate, fused=name.endswith("fused"))
    if name == "sgd":
        return torch.optim.SGD(groups, lr=rate)
    if name == "adafactor":
        from transformers import Adafactor

        return Adafactor(groups, lr=rate, scale_parameter=False, relative_step=False)
    return quantized_optimizer(model, groups, name, rate)


def quantized_optimizer(model, groups, name, rate):
    """bitsandbytes' optimizers; embeddings keep 32-bit states, which 8-bit ones would spoil."""
    import bitsandbytes

    kinds = {"adamw": bitsandbytes.optim.AdamW, "lion": bitsandbytes.optim.Lion}
    kind = kinds["lion" if "lion" in name else "adamw"]
    optimizer = kind(groups, lr=rate, optim_bits=8 if "8bit" in name else 32, is_paged=name.startswith("paged"))
    if "8bit" in name:
        manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                manager.register_module_override(module, "weight", {"optim_bits": 32})
    return optimizer


def learning_rate(step, total, arguments):
    """The rate of update ``step``, counted from 0: a linear warm-up, then the schedule."""
    warmup = arguments["warmup_steps"]
    warmup = math.ceil(warmup * total) if warmup < 1 else int(warmup)
    if step < warmup:
        return arguments["learning_rate"] * step / warmup
    share = (step - warmup) / max(1, total - warmup)
    shapes = {"cosine": 0.5 * (1 + math.cos(math.pi * share)), "linear": 1 - share, "constant": 1.0}
    return arguments["learning_rate"] * shapes[arguments["lr_scheduler_type"]]


class Order:
    """Which samples an update takes: a shuffle of every epoch, the same for any micro batch and number of processes.

    The longest samples lie in the second update, when the optimizer's states exist, and within an update the longer
    ones come first: a run whose largest batch does not fit ends in its first seconds. The last update of an epoch is
    filled up from its beginning.
    """

    LONGEST = 8

    def __init__(self, samples, arguments, processes):
        self.micro = arguments["per_device_train_batch_size"]
        self.rounds, self.processes = arguments["gradient_accumulation_steps"], processes
        self.size = self.micro * self.rounds * processes
        self.seed, self.lengths = arguments["seed"], [len(sample["input_ids"]) for sample in samples]
        self.per_epoch = math.ceil(len(samples) / self.size)

    @lru_cache(maxsize=1)  # noqa: B019 one order lives as long as the process
    def epoch(self, number):
        """Every sample of an epoch, and as many again as fill its last update."""
        places = list(range(len(self.lengths)))
        random.Random(self.seed * 1_000_003 + number).shuffle(places)  # noqa: S311 a shuffle keeps no secret
        if number == 0 and self.per_epoch > 1:
            longest = sorted(places, key=self.lengths.__getitem__)[-min(self.size, self.LONGEST) :]
            rest = [place for place in places if place not in longest]
            places = rest[: self.size] + longest + rest[self.size :]
        return [places[index % len(places)] for index in range(self.per_epoch * self.size)]

    def update(self, step):
        """The samples of update ``step``, counted from 0."""
        epoch, place = divmod(step, self.per_epoch)
        return sorted(self.epoch(epoch)[place * self.size : (place + 1) * self.size], key=lambda at: -self.lengths[at])

    def micro_batch(self, places, turn, rank):
        """What one process takes of an update in one of its rounds."""
        start = (turn * self.processes + rank) * self.micro
        return places[start : start + self.micro]


def answer_tokens(samples):
    """How many labels count: the first of a sequence is predicted from nothing."""
    return sum(label != IGNORED for sample in samples for label in sample["labels"][1:])


def divides_by_tokens(model):
    """Whether the model divides its summed loss by a count of tokens that it is given, as most of transformers' do."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    parameters = inspect.signature(base.forward).parameters.values()
    return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


class Run:
    """One training run: the model with what moves it, and where it stands."""

    def __init__(self, settings, accelerator, model, optimizer, samples, held_out, collate, *, counts_tokens):
        self.settings, self.arguments = settings, settings["arguments"]
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.samples, self.held_out, self.collate = samples, held_out, collate
        self.order = Order(samples, self.arguments, accelerator.num_processes)
        self.total = self.arguments.get("max_steps", 0) or math.ceil(
            self.arguments["num_train_epochs"] * self.order.per_epoch
        )
        self.step = self.tokens = 0
        self.phase, self.shape, self.progress = "load", None, None
        self.counts_tokens = counts_tokens

    def mark(self, finished, following):
        """The memory since the last mark belongs to the phase that is over."""
        self.progress.peaks.mark(finished)
        self.phase = following

    def loss_of(self, batch, tokens):
        """The summed loss of a batch over ``tokens``; what the model computes it from is let go at once."""
        batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
        self.shape = tuple(batch["input_ids"].shape)
        with self.accelerator.autocast():
            if self.counts_tokens:
                return self.model(**batch, num_items_in_batch=tokens).loss
            return self.model(**batch).loss * (batch["labels"][:, 1:] != IGNORED).sum() / tokens

    def update(self):
        """One step of the optimizer over the whole effective batch; returns loss, gradient norm and rate."""
        accelerator, order = self.accelerator, self.order
        places = order.update(self.step)
        tokens = answer_tokens(self.samples[place] for place in places)
        rate = learning_rate(self.step, self.total, self.arguments)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        inject_fault(self.step + 1, order.micro)
        loss = norm = torch.zeros((), device=accelerator.device)
        for turn in range(order.rounds):
            mine = order.micro_batch(places, turn, accelerator.process_index)
            with accelerator.accumulate(self.model) if not self.is_sharded_by_hand else nullcontext():
                self.phase = "forward"
                part = self.loss_of(self.collate([self.samples[place] for place in mine]), tokens)
                self.mark("forward", "backward")
                # Gradients are averaged over processes, and divided by the rounds, where the sum is meant.
                factor = accelerator.num_processes * (1 if self.is_sharded_by_hand else order.rounds)
                self.backward(part * factor)
                self.mark("backward", "optimizer")
                loss = loss + part.detach()
                if turn == order.rounds - 1:
                    norm = self.step_optimizer()
        self.mark("optimizer", "forward")
        self.step += 1
        self.tokens += sum(len(self.samples[place]["input_ids"]) for place in places)
        return accelerator.reduce(loss, "sum").item(), norm, rate

    @property
    def is_sharded_by_hand(self):
        """fully_shard reduces in every round: unsharded gradients of the whole model are never held."""
        return self.settings["parallelism"]["kind"] == "fsdp2"

    def backward(self, loss):
        """accelerate's backward; sharded by hand, autograd's own."""
        loss.backward() if self.is_sharded_by_hand else self.accelerator.backward(loss)

    def step_optimizer(self):
        """Clip, step, clear; DeepSpeed has done it inside its backward, and knows the norm."""
        most = self.arguments["max_grad_norm"]
        if self.is_sharded_by_hand:
            trained = [each for each in self.model.parameters() if each.grad is not None]
            norm = torch.nn.utils.clip_grad_norm_(trained, most).full_tensor()
        else:
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), most)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def evaluate(self, *, longest_only=False):
        """The mean loss of an answer token of the held-out samples; ``longest_only`` tries the largest batch."""
        accelerator, size = self.accelerator, self.arguments["per_device_eval_batch_size"]
        self.model.eval()
        self.phase = "eval"
        rows = sorted(self.held_out, key=lambda sample: -len(sample["input_ids"]))
        each = size * accelerator.num_processes
        rows = rows[:each] if longest_only else rows
        loss = torch.zeros((), device=accelerator.device)
        for start in range(0, len(rows), each):
            mine = rows[start + accelerator.process_index * size :][:size]
            part = self.loss_of(self.collate(mine or rows[:1]), 1)  # every process takes part in every batch
            loss = loss + (part if mine else 0 * part)
        self.model.train()
        self.mark("eval", "forward")
        return accelerator.reduce(loss, "sum").item() / max(1, answer_tokens(rows))

    def train(self):
        """Updates until the last one, with a log, evaluations and checkpoints between them."""
        arguments, sums = self.arguments, []
        while self.step < self.total:
            loss, norm, rate = self.update()
            sums.append(loss)
            if self.step % arguments["logging_steps"] == 0 or self.step == self.total:
                self.say(loss=round(sum(sums) / len(sums), 6), lr=rate, grad_norm=float(norm or 0))
                sums = []
            if self.held_out and (self.step % arguments["eval_steps"] == 0 or self.step == self.total):
                self.say(eval_loss=round(self.evaluate(), 6))
            elif self.held_out and self.step == 2:  # the optimizer's states exist now: does the largest batch fit?
                self.evaluate(longest_only=True)
            if self.step % arguments["save_steps"] == 0:
                self.save()

    def save(self):
        """A checkpoint that the run can go on from."""
        self.phase = "save"
        save_checkpoint(self)
        self.mark("save", "forward")
        self.progress.log(self.step, event="checkpoint", tokens=self.tokens)

    def say(self, **facts):
        """A line of the log, of the screen and of the tracker."""
        facts = {**facts, "epoch": round(self.step / self.order.per_epoch, 4)}
        self.progress.log(self.step, tokens=self.tokens, **facts)
        self.accelerator.print(f"step {self.step}/{self.total}: {facts}", flush=True)
        self.accelerator.log(facts, step=self.step)


def main():
    """Load, train, save; an out-of-memory error is told with its step and phase before it ends the process."""
    settings = read_settings("train.json", sys.argv[1:])
    arguments, kind = settings["arguments"], settings["parallelism"]["kind"]
    zero = HfDeepSpeedConfig(arguments["deepspeed"]) if kind == "zero3" else None  # kept: from_pretrained asks for it
    accelerator = make_accelerator(settings)
    set_seed(arguments["seed"])
    name, trusts = settings["model"]["name_or_path"], settings["model"]["trust_remote_code"]
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trusts)
    evaluates = arguments["eval_strategy"] != "no"
    samples, held_out = train_and_eval(tokenizer, settings["data"], evaluates)
    found = last_checkpoint(arguments["output_dir"])
    run = None
    try:
        model = prepare_model(settings, accelerator, found)
        counts_tokens = divides_by_tokens(model)
        if kind == "fsdp2":
            model = shard(model, accelerator, settings)
            optimizer = make_optimizer(model, arguments)
        else:
            model, optimizer = accelerator.prepare(model, make_optimizer(model, arguments))
        collate = Collator(tokenizer)
        run = Run(settings, accelerator, model, optimizer, samples, held_out, collate, counts_tokens=counts_tokens)
        resume_and_train(run, found, tokenizer)
    except torch.OutOfMemoryError as error:
        say_out_of_memory(
            error,
            step=run.step + 1 if run else 0,
            phase=run.phase if run else "load",
            batch=run.shape if run else None,
        )
        raise
    del zero


def resume_and_train(run, found, tokenizer):
    """From the last checkpoint, where there is one, to the saved model."""
    arguments, accelerator = run.arguments, run.accelerator
    accelerator.init_trackers("vramplan")
    if found:
        restore_optimizer(run, found)
        accelerator.print(f"resumed from {found} at step {run.step}", flush=True)
    run.progress = Progress(
        arguments["output_dir"],
        writes=accelerator.is_main_process,
        total_steps=run.total,
        done_steps=run.step,
        done_tokens=run.tokens,
    )
    run.mark("load", "forward")
    run.model.train()
    restore_random_state(run, found)
    run.train()
    run.phase = "save"
    save_model(run, arguments["output_dir"])
    if accelerator.is_main_process:
        tokenizer.save_pretrained(arguments["output_dir"])
    accelerator.print(f"saved to {arguments['output_dir']}", flush=True)
    accelerator.end_training()


if __name__ == "__main__":
    main()
