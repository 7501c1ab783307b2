"""trainer_log.jsonl: one line of JSON for every logged step, with LLaMA-Factory's keys, and the memory of each phase.

``current_steps``, ``total_steps``, ``loss``, ``eval_loss``, ``lr``, ``epoch``, ``percentage``, ``elapsed_time``,
``remaining_time``, ``throughput`` (tokens/s), ``total_tokens``; with a GPU also ``vram_allocated`` and
``vram_reserved`` (GiB, the largest so far, this process) and ``memory``: phase to the largest ``allocated_bytes`` and
``reserved_bytes`` since the last line. An event such as a checkpoint has a line with ``event``.
"""

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from transformers import TrainerCallback

FILE_NAME = "trainer_log.jsonl"


class Peaks:
    """The largest memory of each phase; nothing without a GPU."""

    def __init__(self):
        self.is_on = torch.cuda.is_available()
        self.since, self.largest = {}, [0, 0]

    def mark(self, phase):
        """What was used since the last mark belongs to ``phase``."""
        if not self.is_on:
            return
        now = [torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()]
        before = self.since.get(phase, {"allocated_bytes": 0, "reserved_bytes": 0}).values()
        both = (max(pair) for pair in zip(before, now, strict=True))
        self.since[phase] = dict(zip(("allocated_bytes", "reserved_bytes"), both, strict=True))
        self.largest = [max(pair) for pair in zip(self.largest, now, strict=True)]
        torch.cuda.reset_peak_memory_stats()

    def take(self):
        """The phases since the last line, which begin anew."""
        if not self.is_on:
            return {}
        phases, self.since = self.since, {}
        allocated, reserved = (round(size / 2**30, 2) for size in self.largest)
        return {"vram_allocated": allocated, "vram_reserved": reserved, "memory": phases}


class Progress:
    """Writes the log on the first process; every process measures its memory."""

    def __init__(self, folder, *, writes, total_steps, done_steps=0, done_tokens=0):
        self.path = Path(folder) / FILE_NAME if writes else None
        self.total_steps, self.done_steps, self.done_tokens = total_steps, done_steps, done_tokens
        self.start, self.peaks = time.monotonic(), Peaks()

    def log(self, step, *, tokens=0, **facts):
        """One line: ``facts`` without those that are None, between the step and the time."""
        seconds = max(time.monotonic() - self.start, 1e-9)
        rest = (self.total_steps - step) * seconds / max(step - self.done_steps, 1)
        line = {"current_steps": step, "total_steps": self.total_steps}
        line |= {name: value for name, value in facts.items() if value is not None}
        line["percentage"] = round(100 * step / max(self.total_steps, 1), 2)
        line["elapsed_time"] = str(timedelta(seconds=int(seconds)))
        line["remaining_time"] = str(timedelta(seconds=int(rest)))
        if tokens:
            line |= {"throughput": round((tokens - self.done_tokens) / seconds, 2), "total_tokens": tokens}
        line |= self.peaks.take()
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def say_out_of_memory(error, *, step, phase, batch):
    """The sentence that a log ends with, before the error itself ends the process."""
    shape = " x ".join(str(size) for size in batch) if batch else "no batch yet"
    print(f"out of memory at step {step}, {phase}, batch {shape} tokens: {error}", file=sys.stderr, flush=True)


def inject_fault(step, micro_batch):
    """For tests only, and inert unless VRAMPLAN_TEST_FAULT is set: ``oom@7``, ``kill@7``, ``hang@7``, ``exit@7``.

    ``oom@7:4`` runs out of memory at step 7 only where the micro batch is 4 or more: a smaller one then survives.
    The last process of the run is the one that fails.
    """
    fault, _, place = os.environ.get("VRAMPLAN_TEST_FAULT", "").partition("@")
    when, _, least = place.partition(":")
    is_last = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
    if not fault or step != int(when) or micro_batch < int(least or 1) or not is_last:
        return
    if fault == "oom":
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 20.00 GiB of which 1.25 GiB "
            "is free. Of the allocated memory 17.50 GiB is allocated by PyTorch, and 512.00 MiB is reserved by PyTorch "
            "but unallocated. (VRAMPLAN_TEST_FAULT)"
        )
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang":
        time.sleep(86400)
    sys.exit(f"error: {fault} at step {step} (VRAMPLAN_TEST_FAULT)")


class ProgressLog(TrainerCallback):
    """The same log from transformers' Trainer and every trainer built on it."""

    def __init__(self):
        self.progress = None

    def on_train_begin(self, args, state, control, **kwargs):
        """The clock starts; a resumed run goes on in the same file."""
        self.progress = Progress(
            args.output_dir,
            writes=state.is_world_process_zero,
            total_steps=state.max_steps,
            done_steps=state.global_step,
            done_tokens=state.num_input_tokens_seen,
        )
        self.progress.peaks.mark("load")

    def on_step_begin(self, args, state, control, **kwargs):
        """The step about to run is the one after those that are done."""
        inject_fault(state.global_step + 1, args.per_device_train_batch_size)

    def on_step_end(self, args, state, control, **kwargs):
        """Forward, backward and the optimizer's step together: the Trainer has no hook between them."""
        self.progress.peaks.mark("step")

    def on_evaluate(self, args, state, control, **kwargs):
        """The evaluation that has just ended."""
        if self.progress:
            self.progress.peaks.mark("eval")

    def on_save(self, args, state, control, **kwargs):
        """A checkpoint has been written."""
        self.progress.peaks.mark("save")
        self.progress.log(state.global_step, event="checkpoint", tokens=state.num_input_tokens_seen)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Loss and learning rate of a step, or the loss of an evaluation."""
        if self.progress is None or not logs or not {"loss", "eval_loss"} & set(logs):
            return
        names = {"loss": "loss", "eval_loss": "eval_loss", "learning_rate": "lr", "grad_norm": "grad_norm"}
        facts = {name: _number(logs.get(key)) for key, name in names.items()}
        epoch = logs.get("epoch", state.epoch)
        self.progress.log(state.global_step, epoch=epoch, tokens=state.num_input_tokens_seen, **facts)


def _number(value):
    """transformers 4 and TRL log some figures as words."""
    return None if value is None else float(value)
