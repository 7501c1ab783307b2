"""The embedded engine: a loop around accelerate that lies in the folder itself, and ``train.json`` with its settings.

It runs where torch, transformers, accelerate and (for adapters) peft are installed. Weights of full fine-tuning are
made fp32; FSDP 2 is PyTorch's own fully_shard, which also runs on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from planner.targets import accelerate, script
from planner.targets.context import EmitContext, Reading
from planner.targets.launchers import Launch, Launcher, place_environment, torchrun_words
from planner.targets.script import Script
from planner.training import TrainingSetup

OPTIMIZERS = (
    "adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit",
    "lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit", "adafactor", "sgd",
)  # fmt: skip


def _check(setup: TrainingSetup) -> tuple[str, str] | None:
    """What the loop cannot do, and why; None for what it can."""
    if setup.optim not in OPTIMIZERS:
        return f"optim {setup.optim}", f"it knows {', '.join(OPTIMIZERS)}"
    if setup.parallelism == "fsdp":
        return "parallelism fsdp", "it shards by fully_shard; choose fsdp2"
    if setup.parallelism != "fsdp2":
        return None
    wrong = {
        "offload": setup.offload != "none",
        "quantization_bit": setup.quantization_bit is not None,
        "torch_compile": setup.torch_compile,
        "compute_dtype": setup.compute_dtype == "fp16",
        "optim": not setup.optim.startswith("adamw_torch"),
    }
    field = next((name for name, is_wrong in wrong.items() if is_wrong), None)
    if field is None:
        return None
    return f"parallelism fsdp2 with {field} {getattr(setup, field)}", "no run of its fully_shard has shown that"


SCRIPT = Script(
    id="embedded",
    name="the embedded engine",
    file_name="train.json",
    modules=("embedded/train.py", "embedded/checkpoints.py", "embedded/sharding.py"),
    trains_in_fp32=True,
    check=_check,
    leaves_layers_out=True,
    unread=frozenset(
        {
            "gradient_checkpointing_kwargs",
            "save_strategy",
            "include_num_input_tokens_seen",
            "dataloader_num_workers",
            "dataloader_pin_memory",
            "remove_unused_columns",
            "ddp_find_unused_parameters",
            "prediction_loss_only",
        }
    ),
)


def settle(setup: TrainingSetup, context: EmitContext) -> TrainingSetup:
    """The setup as the loop would run it."""
    return script.settle(SCRIPT, setup, context)


def files(setup: TrainingSetup, context: EmitContext) -> dict[str, str]:
    """Name to text of the folder's files, without accelerate's: the script reads its own settings only."""
    texts = script.files(SCRIPT, setup, context)
    texts.pop(accelerate.FILE_NAME, None)
    return texts


def launch(setup: TrainingSetup, context: EmitContext) -> Launch:
    """torchrun, on one GPU too: plain python would leave the others visible and unused."""
    chosen = Launcher(
        name="torchrun",
        words=torchrun_words(context, (script.SCRIPT,)),
        note="one process a GPU; the script's own settings say how they work together",
    )
    return Launch(
        chosen=chosen,
        others=(),
        environment=place_environment(context),
        remedy="install it with: pip install torch transformers accelerate peft",
        alone="Other launchers bring settings of their own, which this script does not read.",
        override="arguments.max_steps=10",
    )


def read(
    texts: Mapping[str, str], *, hidden_of: Callable[[str], int | None] | None = None, name: str = SCRIPT.file_name
) -> Reading:
    """The setup that the files state. Raises InputError for a file that is not one of ours."""
    return script.read(SCRIPT, texts, hidden_of=hidden_of, name=name)
