"""transformers' own Trainer over a few steps of full-length random tokens, its phases metered (imports torch).

The peak counts from the beginning of training on: what building and sharding took is the phase ``load`` beside it.
Nothing is emptied between phases, and nothing here keeps a tensor alive.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from bench.meter import Meter

SEED = 10
FSDP_CONFIG = {
    "version": 2,
    "fsdp_version": 2,
    "reshard_after_forward": True,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "cpu_ram_efficient_loading": False,
}


def train(
    model: Any, setup: Mapping[str, Any], meter: Meter, *, steps: tuple[int, int], device: str, ranks: int = 1
) -> dict[str, Any]:
    """Train for ``steps`` (warm-up, timed); seconds of a timed step and tokens/s of this GPU.

    Raises what torch raises; the meter then says in which phase.
    """
    with tempfile.TemporaryDirectory(prefix="vramplan-bench-") as folder:
        trainer = make_trainer(model, setup, meter, steps, arguments(setup, sum(steps), device, ranks, folder))
        trainer.train()
    clock = next(one for one in trainer.callback_handler.callbacks if isinstance(one, _clock_class()))
    seconds = clock.seconds / steps[1]
    tokens = setup["seq_len"] * setup["micro_batch_size"] * setup["gradient_accumulation_steps"]
    answer = {
        "step_seconds": round(seconds, 6),
        "use_reentrant": _reentrant(trainer.model),
        "wrapped": type(trainer.model_wrapped).__name__,
    }
    # collectives that do nothing say nothing about speed
    return answer | {"tokens_per_s": round(tokens / seconds, 1) if ranks == 1 else None}


def make_trainer(
    model: Any, setup: Mapping[str, Any], meter: Meter, steps: tuple[int, int], stated: dict[str, Any]
) -> Any:
    """The Trainer with hooks at the borders of its phases."""
    import transformers

    args = transformers.TrainingArguments(**stated)
    needed = sum(steps) * setup["micro_batch_size"] * setup["gradient_accumulation_steps"] * args.world_size
    trainer = transformers.Trainer(
        model=model,
        args=args,
        train_dataset=tokens_of(needed, setup["seq_len"], model.config.vocab_size),
        callbacks=[_clock_class()(meter, steps)],
    )
    _mark_phases(trainer, meter)
    return trainer


def arguments(setup: Mapping[str, Any], steps: int, device: str, ranks: int, folder: str) -> dict[str, Any]:
    """TrainingArguments of the setup; what is not stated is transformers' default."""
    stated = {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": setup["micro_batch_size"],
        "gradient_accumulation_steps": setup["gradient_accumulation_steps"],
        "optim": setup["optim"],
        "bf16": setup["compute_dtype"] == "bf16",
        "fp16": setup["compute_dtype"] == "fp16",
        "gradient_checkpointing": bool(setup["gradient_checkpointing"]),
        "remove_unused_columns": False,
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": device == "cpu" and ranks == 1,
    }
    if setup["liger_kernel"]:
        stated |= {"use_liger_kernel": True, **_liger(setup["loss"])}
    if ranks > 1:
        stated |= {"fsdp": _fsdp_word(), "fsdp_config": dict(FSDP_CONFIG)}
    return stated


def _liger(loss: str | None) -> dict[str, Any]:
    """Liger's switches for the loss; by default it fuses the head and the loss."""
    if loss in (None, "fused_linear"):
        return {}
    return {"liger_kernel_config": {"fused_linear_cross_entropy": False, "cross_entropy": loss == "fused"}}


def _fsdp_word() -> Any:
    """transformers 5.20 takes a switch, older ones words."""
    import transformers

    numbers = tuple(int(part) for part in transformers.__version__.split(".")[:2] if part.isdecimal())
    return True if numbers >= (5, 20) else "full_shard auto_wrap"


def tokens_of(samples: int, seq_len: int, vocab: int) -> list[dict[str, Any]]:
    """The same random tokens every time, each sample of full length, without a mask."""
    import torch

    ids = torch.randint(0, vocab, (samples, seq_len), generator=torch.Generator().manual_seed(SEED))
    return [{"input_ids": row, "labels": row} for row in ids]


def _mark_phases(trainer: Any, meter: Meter) -> None:
    """Borders: the model's forward, its head's (where the logits are made), backward, and what follows it.

    Clipping counts to the optimizer. A loss fused with the head calls no head, and its phase is part of forward.
    """
    model = trainer.model
    model.register_forward_pre_hook(lambda *_: meter.open("forward"), prepend=True)
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(lambda *_: meter.open("loss"), prepend=True)
    backward = trainer.accelerator.backward

    def marked(loss: Any, **named: Any) -> None:
        meter.open("backward")
        backward(loss, **named)
        meter.open("optimizer")

    trainer.accelerator.backward = marked


def _reentrant(model: Any) -> bool | None:
    """Whether checkpoints were reentrant, as transformers chose; None without checkpoints."""
    for module in model.modules():
        function = getattr(module, "_gradient_checkpointing_func", None)
        if function is not None:
            return bool(getattr(function, "keywords", {}).get("use_reentrant", True))
    return None


_CLOCK: list[Any] = []


def _clock_class() -> Any:
    """A TrainerCallback (transformers is imported late): opens training, and times the steps after the warm-up."""
    if not _CLOCK:
        import transformers

        class Clock(transformers.TrainerCallback):
            def __init__(self, meter: Meter, steps: tuple[int, int]) -> None:
                self.meter, self.steps, self.seconds, self._began = meter, steps, 0.0, 0.0

            def on_train_begin(self, *_: Any, **__: Any) -> None:
                self.meter.open("forward")

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == self.steps[0]:
                    self.meter.synchronize()
                    self._began = time.perf_counter()
                if state.global_step == sum(self.steps):
                    self.meter.synchronize()
                    self.seconds = time.perf_counter() - self._began

        _CLOCK.append(Clock)
    return _CLOCK[0]


def pretend_ranks(ranks: int, device: str) -> None:
    """Make this process rank 0 of ``ranks`` over torch's fake process group, whose collectives do nothing.

    Every buffer of FSDP2 is allocated for real. On the CPU accelerate knows no FSDP: it is told of GPUs, and keeps
    its tensors where they are, so that the dry mode runs the code of a GPU.
    """
    import torch.distributed as distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    os.environ.update(place, MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    # accelerate refuses some cards unless these are set; no NCCL runs here
    os.environ.update(NCCL_P2P_DISABLE="1", NCCL_IB_DISABLE="1")
    distributed.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    if device == "cpu":
        _tell_of_gpus()


def _tell_of_gpus() -> None:
    import transformers.training_args as training_args
    from accelerate.state import DistributedType, PartialState

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda self, *_, **__: ("fake", DistributedType.MULTI_GPU)
    training_args.is_torch_bf16_gpu_available = lambda: True
